"""The recipe: every setting of a run, and how it is read."""
