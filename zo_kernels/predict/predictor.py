"""Reads a trained series model from the folder of its run, and predicts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from ..errors import UsageError
from ..generate.run import load_model, read_description
from ..models import LanguageModel
from ..tasks import reads_numbers
from ..tasks.series import Column, Columns

_ROWS = 4096
"""Rows that are read at once, with the states carried over."""


@dataclass(frozen=True)
class Predictor:
    """What `load_predictor` returns.

    path: folder of the run. columns: names, means and standard deviations of the inputs and the target. model: the
    `SeriesModel` with the run's weights, frozen, on the CPU.
    """

    path: Path
    columns: Columns
    model: LanguageModel

    def predict(self, inputs: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Predictions [N] of the target, in the units of the data, from inputs [N, K] in order of time.

        Element t is the target of row t or, if the target is one of the inputs (`columns.is_ahead`), of row t + 1. It
        depends on the rows up to t. Columns are in the order of `columns.inputs`.

        Raises UsageError for inputs of another shape, or not finite.
        """
        values, count = np.asarray(inputs, dtype=np.float64), len(self.columns.inputs)
        if values.ndim != 2 or values.shape[1] != count or len(values) == 0:
            raise UsageError(
                f"inputs must be of shape [N, {count}] ({', '.join(self.columns.names)}), not {values.shape}"
            )
        if not np.isfinite(values).all():
            raise UsageError("inputs must be finite numbers: fill in or remove the rows that lack one")
        x_1TK = torch.from_numpy(self.columns.normalise(values))[None]
        found, states = [], self.model.initial_states(1)
        with torch.no_grad():
            for part in x_1TK.split(_ROWS, 1):
                predicted_1T1, states = self.model(part, states)
                found.append(predicted_1T1[0, :, 0].double())
        target = self.columns.target
        predictions: npt.NDArray[np.float64] = torch.cat(found).numpy() * target.deviation + target.mean
        return predictions


def load_predictor(path: str | Path, *, step: int | Literal["best"] | None = None) -> Predictor:
    """Loads a run of `python -m zo_kernels.train --task series`. step: as for `zo_kernels.generate.load_run`.

    Raises UsageError as `load_run` does, and for a run of another task.
    """
    path = Path(path)
    config, vocabulary = read_description(path)
    if not reads_numbers(str(config.get("task"))):
        raise UsageError(f"{path} is a run of the task {config.get('task')}: only one of series predicts numbers")
    try:
        *inputs, target = map(Column.read, vocabulary)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path / 'vocabulary.json'} does not list the columns of a series: restore it") from error
    model, _ = load_model(path, config, vocabulary, step, allow_import=False)
    return Predictor(path, Columns(tuple(inputs), target), model)
