"""Other tools, each in an environment of its own, given what srd writes for them: see ``docs/neighbours.md``."""
