"""A check on a GPU within minutes: what is right or wrong there, and how fast it is."""
