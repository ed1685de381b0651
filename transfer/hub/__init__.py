"""Backbones that travel: the Hugging Face hub."""
