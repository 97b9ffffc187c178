"""`context_explorer`: a page in which a person asks any pixel which patches decide its label."""
