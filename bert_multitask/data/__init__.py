"""Rows: read, cleaned, tokenised, and collated to batches of one task."""
