"""`python -m bench.gpu`: __main__ has the plan and keeps the results; ops and models measure, timing helps them."""
