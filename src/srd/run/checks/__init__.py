"""What is refused or warned of before a weight is loaded."""
