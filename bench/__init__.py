"""Benchmarks. `python -m bench` measures everything here and writes a file of bench/results/."""
