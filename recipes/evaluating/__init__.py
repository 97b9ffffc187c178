"""Trained networks scored on any split of any data."""
