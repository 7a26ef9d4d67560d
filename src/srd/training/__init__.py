"""Training: losses, divergences, who writes the text, one training stage by stage."""
