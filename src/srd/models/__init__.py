"""Models: loading, shortening, adapters, vocabularies, and logits at response positions."""
