"""Scores: how hard an example is for the student, a file each."""
