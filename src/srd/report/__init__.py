"""The report of a run: its files read, its models compared, shown as a page and as the last screen."""
