"""Models that can be trained from forward passes alone."""

from ..ops.checks import IGNORE_INDEX
from .base import RecurrentLM
from .cells import GRU, LSTM, MODELS, Elman
from .flash import FlashLM
from .language import LanguageModel, States
from .population import ModelPopulation

__all__ = [
    "GRU",
    "IGNORE_INDEX",
    "LSTM",
    "MODELS",
    "Elman",
    "FlashLM",
    "LanguageModel",
    "ModelPopulation",
    "RecurrentLM",
    "States",
]
