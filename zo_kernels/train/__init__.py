"""Zero-order training from the command line: `python -m zo_kernels.train`."""
