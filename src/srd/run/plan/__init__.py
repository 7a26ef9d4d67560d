"""What `srd plan` and `srd doctor` say of a recipe, which is not run."""
