"""Reads the columns of a CSV file that hold numbers."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .pair_file import csv_rows
from .text_file import read_bytes

Numbers = npt.NDArray[np.float64]


def read_columns(path: Path) -> dict[str, list[tuple[int, str]]]:
    """The columns of a UTF-8 CSV file with a header, by name: the line and the text of each value.

    Raises ValueError if the file can't be read, is no CSV file, has two columns of one name, or has no rows.
    """
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: convert the file to UTF-8") from error
    rows = csv_rows(path, text)
    _, header = next(rows, (0, []))
    if len(set(header)) < len(header):
        raise ValueError(f"{path} has two columns of one name: rename one of {', '.join(header)}")
    columns: dict[str, list[tuple[int, str]]] = {name: [] for name in header}
    for line, values in rows:
        for name, value in zip(header, values, strict=True):
            columns[name].append((line, value))
    if not header or not columns[header[0]]:
        raise ValueError(f"{path} has no rows: give a CSV file with a header and a row for each step of time")
    return columns


def numeric_columns(columns: dict[str, list[tuple[int, str]]]) -> list[str]:
    """The names of the columns that begin with a number."""
    return [name for name, values in columns.items() if _number(values[0][1]) is not None]


def as_numbers(path: Path, columns: dict[str, list[tuple[int, str]]], names: Sequence[str]) -> Numbers:
    """The values of these columns, float64 [N, columns].

    Raises ValueError for a column that is not there and, naming the line, for a value that is no finite number.
    """
    found = np.empty((len(next(iter(columns.values()))), len(names)))
    for place, name in enumerate(names):
        if name not in columns:
            raise ValueError(f"{path} has no column {name!r}, only {', '.join(columns)}")
        for row, (line, text) in enumerate(columns[name]):
            number = _number(text)
            if number is None:
                raise ValueError(f"{path}, line {line} has {text!r} in {name!r}, which is no number: correct it")
            found[row, place] = number
    return found


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
