"""Reports on runs and prediction tables."""
