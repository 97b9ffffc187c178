"""A model as a graph of operations, and one run of it."""
