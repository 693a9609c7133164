"""The parts of reproduce_paper.py: what the tables are of, and how they are written."""
