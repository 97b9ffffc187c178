"""The job of `python -m recipes.skip_study`."""
