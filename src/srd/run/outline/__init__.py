"""What a recipe alone tells of its run: the steps in their order, what each comes after and what it costs."""
