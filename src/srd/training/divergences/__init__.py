"""Divergences between two next-token distributions, a file each."""
