"""Callbacks and trainers for other libraries."""
