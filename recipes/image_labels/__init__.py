"""The job of `python -m recipes.weak_supervision`."""
