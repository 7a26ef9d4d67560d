"""Text that the student writes and learns from: ahead of its training, a refresh at a time."""
