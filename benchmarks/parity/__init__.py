"""This project beside the published code it follows, live: `python -m benchmarks.parity --help`.

Tested in tests/benchmarks/test_parity.py.
"""
