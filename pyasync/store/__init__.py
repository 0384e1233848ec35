"""All SQL: blocking functions that take a transaction first and never commit. No event loop, no threads."""
