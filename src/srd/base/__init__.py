"""What everything stands on: files, tables, text, errors, processes, the console."""
