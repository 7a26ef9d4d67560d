"""Methods: what a training trains on, a file each."""
