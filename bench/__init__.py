"""Benchmarks: `python -m bench` runs every `bench_*.py` of this folder (see `__main__.py`)."""
