"""A stage: its identity, its run folder and what it was made with."""
