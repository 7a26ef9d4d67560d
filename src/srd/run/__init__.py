"""A run: its directory, its steps in their order, and what they cost."""
