"""A sweep: one recipe run under many settings, compared in one table."""
