"""Benchmarks: `python -m bench` lists the scripts."""

import os

# Before any of them imports torch, whose OpenMP reads it then: as for the programs of the package.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
