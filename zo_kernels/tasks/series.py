"""The series task: predict a column of a table whose rows are steps of time.

Shape suffixes: B batch, T time, K inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from .base import Batch
from .number_table import Numbers, as_numbers, numeric_columns, read_columns
from .parts import DEFAULT_PARTS, TextLength, read_parts, require_context
from .windows import Rows, Windows


class Column(NamedTuple):
    """A column of a table, and the mean and standard deviation with which its values are normalised."""

    name: str
    mean: float
    deviation: float

    def __str__(self) -> str:
        """As in vocabulary.json: name, mean and standard deviation, separated by tabs."""
        return f"{self.name}\t{self.mean!r}\t{self.deviation!r}"

    @classmethod
    def read(cls, text: str) -> Column:
        """Reads what `str` has written. Raises ValueError for anything else."""
        name, mean, deviation = text.rsplit("\t", 2)
        found = cls(name, float(mean), float(deviation))
        if not (math.isfinite(found.mean) and math.isfinite(found.deviation) and found.deviation > 0):
            raise ValueError(f"{text!r} is no column")
        return found


class Columns(NamedTuple):
    """The columns that a series model reads and the one that it predicts."""

    inputs: tuple[Column, ...]
    target: Column

    @property
    def is_ahead(self) -> bool:
        """Whether the target is that of the next step, since that of the present one is an input."""
        return self.target.name in self.names

    @property
    def names(self) -> list[str]:
        """The names of the inputs."""
        return [column.name for column in self.inputs]

    def normalise(self, inputs: Numbers) -> npt.NDArray[np.float32]:
        """Inputs [..., K] as the model reads them: float32, those of the training part with mean 0 and deviation 1."""
        mean_K, deviation_K = np.array([column[1:] for column in self.inputs]).T
        return ((inputs - mean_K) / deviation_K).astype(np.float32)


class Series(Windows):
    """Predicts the target of each row of a CSV file from the inputs of this row and those before it.

    The rows are in order of time. Batches have numbers: inputs float32 [B, T, K], and targets float32 [B, T], all
    normalised with the mean and standard deviation of the training part. The loss is the mean squared error in these
    units, so that predicting the mean has a loss of 1 in the training part. The header is needed; columns that are not
    inputs are ignored.

    data: path of the CSV file.
    target: name of the column to predict. If it is one of the inputs, its value in the next row is predicted.
    input: names of the input columns, separated by commas. None: all others that begin with a number or, if there is
        none, the target itself.
    parts: shares of the rows for training, validation and testing, in order of time. None is "0.9,0.05,0.05".
    The other options are those of `Windows`, with rows instead of tokens.

    Raises the errors of `Windows` and `read_columns`, and ValueError if a value is no number, a column is missing or
    constant in the training part, or the file is too short for the context length.
    """

    loss_unit = "mean squared error"
    has_accuracy = False
    reads_numbers = True

    def __init__(
        self,
        *,
        data: str | Path,
        target: str,
        batch_size: int,
        context_length: int,
        seed: int,
        input: str | None = None,
        parts: str | None = None,
        eval_tokens: int | None = None,
        stateful: bool = False,
    ) -> None:
        super().__init__(batch_size, context_length, seed, 0, eval_tokens, stateful)
        path, shares = Path(data), DEFAULT_PARTS if parts is None else read_parts(parts)
        found = read_columns(path)
        if input is None:
            names = [name for name in numeric_columns(found) if name != target] or [target]
        else:
            names = input.split(",")
        if len(set(names)) < len(names):
            raise ValueError(f"an input is named twice: {', '.join(names)}")
        table = as_numbers(path, found, [*names, target])
        require_context(context_length, TextLength(path, len(table), shares), unit="rows")
        training, validation, _ = shares.sizes(len(table))
        columns = [_column(path, name, x[:training]) for name, x in zip([*names, target], table.T, strict=True)]
        self.columns = Columns(tuple(columns[:-1]), columns[-1])
        self.symbols: Sequence[str] = [str(column) for column in columns]
        self.vocab_size = len(columns)
        everything = Columns(tuple(columns), columns[-1])
        rows = everything.normalise(table)
        self._training, self._validation, self._test = np.split(rows, [training, training + validation])
        steps = np.diff(self._training[:, -1].astype(np.float64))
        self.reference_losses = {"mean": 1.0, "last target": float(np.mean(steps**2))}

    def describe(self, kind: str) -> str:
        names = ", ".join(self.columns.names)
        when = "the next row" if self.columns.is_ahead else "the same row"
        return f"{self.columns.target.name} of {when} from {names}; losses are mean squared errors of normalised values"

    def in_words(self, loss: float, accuracy: float) -> str:
        return f"RMSE {self.columns.target.deviation * math.sqrt(loss):.4g}"

    def _windows(self, part: Rows, starts_B: npt.NDArray[np.int64]) -> Batch:
        places_BT = (starts_B[:, None] + np.arange(self.context_length + 1)) % len(part)
        window = torch.from_numpy(part[places_BT])
        targets = window[:, 1:, -1] if self.columns.is_ahead else window[:, :-1, -1]
        return Batch(window[:, :-1, :-1].contiguous(), targets.contiguous())


def _column(path: Path, name: str, values: Numbers) -> Column:
    if any(mark in name for mark in "\t\r\n"):
        raise ValueError(f"{path} has a tab or a newline in the name of the column {name!r}: rename it")
    mean, deviation = float(values.mean()), float(values.std())
    if not (math.isfinite(deviation) and deviation > 0):
        what = "is constant" if deviation == 0 else "has numbers too large for float64"
        raise ValueError(f"the column {name!r} of {path} {what} in the part for training: leave it out")
    return Column(name, mean, deviation)
