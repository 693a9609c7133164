"""What is done with trained runs: prediction tables, ensembles, soups, exports."""
