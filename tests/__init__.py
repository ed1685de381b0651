"""The tests, and what they share: `tests.<folder>.<module>`."""
