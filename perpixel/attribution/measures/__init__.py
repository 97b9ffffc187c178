"""What an attribution says in numbers: how much of it is context, and how much lies on known evidence."""
