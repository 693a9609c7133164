"""Predictions and how they are scored."""
