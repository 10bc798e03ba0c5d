"""`python -m zo_kernels`: what this installation can do here."""

from . import show_config

show_config()
