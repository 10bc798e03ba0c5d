"""`python -m bench.gpu`: a GPU day in one command. docs/gpu.md says what it checks, measures and writes.

__main__ has the flags; plan lists the steps in their order, steps says what one is; run does them in the worker
processes of worker, journal keeps what they gave; bars and report make the table. None of these imports torch: only a
worker does, which may hang or crash. check_* and measure_* are the steps, sizes, ways and timing what they share.
"""
