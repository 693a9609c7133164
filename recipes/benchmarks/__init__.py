"""The parts of benchmark.py, by subject."""
