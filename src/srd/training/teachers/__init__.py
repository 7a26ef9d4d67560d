"""Teachers: who says what the student should have thought of each token, a file each."""
