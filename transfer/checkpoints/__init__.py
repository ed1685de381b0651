"""Anybody's checkpoint files, read without executing anything in them."""
