"""Data sets and benchmarks by name: one file each (see ``base``)."""
