"""The job of `python -m recipes.finetune`."""
