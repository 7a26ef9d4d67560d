"""Side-by-side measurements: ``python -m benchmarks.run`` writes the tables of docs/speed.md."""
