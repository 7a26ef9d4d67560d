"""Answers of models to tasks, their scores, and comparisons."""
