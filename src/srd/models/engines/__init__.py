"""Engines: who writes text where nothing is learnt from the writing itself, a file each."""
