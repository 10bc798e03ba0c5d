"""Benchmarks: `python -m bench` lists the scripts."""
