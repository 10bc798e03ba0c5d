"""Reads pairs of texts from two columns of a CSV file, or two keys of a file of JSON lines."""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .text_file import read_bytes

SEPARATOR, END = "\t", "\n"
"""Stand between input and target, and after the target. They are usually free, and a shell can write them."""

_CSV, _JSON = (".csv",), (".jsonl", ".ndjson", ".json")


class Pair(NamedTuple):
    """One row: the text to read, and the text to write after it."""

    input: str
    target: str


def read_pairs(path: Path, columns: tuple[str, str], longest: int) -> list[Pair]:
    """Reads a UTF-8 file of pairs. Empty lines and the other columns are skipped.

    path: a CSV file with a header (.csv), or a file with a JSON object on each line (.jsonl, .ndjson, .json). A number
        in JSON is the text as it is written there.
    columns: names of the columns of input and target.
    longest: largest number of characters of a pair.

    Raises ValueError, naming the line, if the file can't be read, is in another format, lacks a column, has no pairs,
    or has a pair that is too long, is no text, or contains a tab or a newline.
    """
    suffix = path.suffix.lower()
    if suffix not in _CSV + _JSON:
        raise ValueError(f"{path} must be a .csv file or a .jsonl file, by its name")
    data = read_bytes(path).removeprefix(codecs.BOM_UTF8)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text: convert the file to UTF-8") from error
    rows = _csv_rows(path, text, columns) if suffix in _CSV else _json_rows(path, text, columns)
    pairs = []
    for line, values in rows:
        pair = Pair(*values)
        for column, value in zip(columns, pair, strict=True):
            _check_text(path, line, column, value)
        if (length := sum(map(len, pair))) > longest:
            raise ValueError(
                f"{path}, line {line} has a pair of {length} characters, more than max_length {longest}: raise it, or "
                "remove the line"
            )
        pairs.append(pair)
    if not pairs:
        raise ValueError(f"{path} is empty: give a file with pairs to learn from")
    return pairs


def _check_text(path: Path, line: int, column: str, value: str) -> None:
    for mark, name in ((SEPARATOR, "a tab"), (END, "a newline")):
        if mark in value:
            raise ValueError(
                f"{path}, line {line} has {name} in {column!r}, which marks the end of a text here: replace it"
            )
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise ValueError(f"{path}, line {line} has half a character (a lone surrogate) in {column!r}: replace it")


def _csv_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the two values of each row after the header."""
    rows = csv_rows(path, text)
    line, header = next(rows, (0, []))
    if not header:
        return
    for column in columns:
        if header.count(column) != 1:
            many = "two columns" if column in header else "no column"
            raise ValueError(f"{path}, line {line} has {many} {column!r}, only {', '.join(header)}")
    places = [header.index(column) for column in columns]
    for line, row in rows:
        yield line, [row[place] for place in places]


def csv_rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields the number of the first line and the values of each row of a CSV text. The first is the header.

    Raises ValueError, naming the line, if the text is not CSV or a row has another number of values than the header.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    width = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {line} is not CSV ({error}): correct it") from error
        if row is None:
            return
        if not row:
            continue
        width = width or len(row)
        if len(row) != width:
            raise ValueError(f"{path}, line {line} has {len(row)} values, but the header has {width}: correct it")
        yield line, row


def _json_rows(path: Path, text: str, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number and the two values of each line."""
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content, parse_int=str, parse_float=str, parse_constant=str)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}, line {line} is not JSON ({error}): write one object on each line") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {line} is not a JSON object: write one on each line, with both columns")
        for column in columns:
            if column not in row:
                raise ValueError(f"{path}, line {line} has no {column!r}, only {', '.join(row) or 'nothing'}")
            if not isinstance(row[column], str):
                raise ValueError(f"{path}, line {line} has no text in {column!r}: write a string or a number there")
        yield line, [row[column] for column in columns]
