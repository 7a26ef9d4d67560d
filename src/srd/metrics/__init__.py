"""Text metrics as pure functions, and the statistics of their comparison. Every score is on the 0..1 scale."""
