"""Prompt templates, a file each."""
