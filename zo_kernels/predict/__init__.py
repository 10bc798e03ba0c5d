"""Predicts numbers with a model of `--task series`: `python -m zo_kernels.predict`.

predictions = load_predictor("runs/weather").predict(inputs)
"""

from .predictor import Predictor, load_predictor

__all__ = ["Predictor", "load_predictor"]
