"""Encoder and projector, and the backbone file that is read back."""
