"""How points move through each operation: the table of rules, and one file per family of operations."""
