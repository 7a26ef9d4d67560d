"""Training data: where rows come from, what an example is, and how it is shown to a model."""
