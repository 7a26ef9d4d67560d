"""What a run made, in the forms that other tools take."""
