"""Trainers that curated rows are laid out for: a file each, whose name is what ``--for`` takes."""
