"""What several steps are made of: models that are loaded or asked, their texts, what a training takes."""
