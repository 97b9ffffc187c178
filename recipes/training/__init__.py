"""Training that can be killed at any moment and continued to the same bits."""
