"""Tiers of the teacher cache: what is kept of each token, a file each."""
