"""The job of `python -m recipes.fixations`."""
