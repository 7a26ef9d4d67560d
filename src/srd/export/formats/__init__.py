"""Forms that a run can be exported in: a file each, whose name is what ``--to`` takes."""
