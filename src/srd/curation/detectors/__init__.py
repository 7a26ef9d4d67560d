"""Detectors of wrong rows, a file each."""
