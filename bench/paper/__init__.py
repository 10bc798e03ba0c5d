"""The tables and figures of Chaubard and Kochenderfer, arXiv 2505.17852, measured again; `python -m bench.paper`."""
