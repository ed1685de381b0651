"""Backbones that travel: formats of other libraries, model cards, and the Hugging Face hub."""
