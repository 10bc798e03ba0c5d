"""`python -m bench.gpu`: plan has the measures, tests runs tests, ops and models measure, __main__ keeps results."""
