"""Runs in trackers: writers of each library, the process that feeds one, its start and end."""
