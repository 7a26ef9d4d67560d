"""The steps of a run, each in a file: what it comes after, what decides it, what it writes, how it is made."""
