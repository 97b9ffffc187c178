"""The job of `python -m recipes.explain`."""
