"""Timings that `tools/benchmark.py` prints."""
