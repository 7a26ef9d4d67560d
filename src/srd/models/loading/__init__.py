"""From a name to a model in memory, and back to files."""
