"""What tokens are: ids that begin and end, bytes, and what two tokenizers have in common."""
