"""Models that can be trained from forward passes alone."""

from .lstm import LSTM

__all__ = ["LSTM"]
