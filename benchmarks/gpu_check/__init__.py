"""A check on a GPU within minutes: what is right or wrong there, and how fast it is.

Tested in tests/benchmarks/gpu_check/test_check.py.
"""
