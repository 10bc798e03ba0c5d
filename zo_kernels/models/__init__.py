"""Models that can be trained from forward passes alone."""

from ..ops.checks import IGNORE_INDEX
from .base import RecurrentLM
from .build import MODEL_NAMES, build_model, find_model, has_memory
from .cells import GRU, LSTM, MODELS, Elman
from .dnc import DNC
from .flashrnn.language_model import FlashLM
from .language import LanguageModel, ModelPopulation, States
from .paper_dnc import PaperDNC
from .presets import PRESETS, Preset
from .series import SERIES_MODELS, SeriesModel

__all__ = [
    "DNC",
    "GRU",
    "IGNORE_INDEX",
    "LSTM",
    "MODELS",
    "MODEL_NAMES",
    "PRESETS",
    "SERIES_MODELS",
    "Elman",
    "FlashLM",
    "LanguageModel",
    "ModelPopulation",
    "PaperDNC",
    "Preset",
    "RecurrentLM",
    "SeriesModel",
    "States",
    "build_model",
    "find_model",
    "has_memory",
]
