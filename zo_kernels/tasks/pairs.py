"""The pairs task: read the input of a row of a table, then write its target.

Shape suffixes: B batch, N rows, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from math import log
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from ..ops.checks import IGNORE_INDEX
from .base import SPLIT_STREAM, TRAINING_STREAM, Batch, BatchSets, Task, random_generator, require_at_least
from .codecs import CHARACTERS, Codec, get_codec
from .pair_file import END, SEPARATOR, Pair, read_pairs

_EVALUATED_TOKENS = 1 << 16
_PARTS = 20
"""1 of 20 parts of the rows (5 %) is for validation and 1 for testing."""


class Pairs(Task):
    """Rows `input separator target end` of a CSV file or of JSON lines, of which target and end are scored.

    Tokens are the characters of both columns in code point order, or those of a codec; then the separator (a tab),
    which also pads the rows at their end, and the end mark (a newline). The model reads a row without its end mark. A
    seed's random order of the rows gives 90 % to training, the next 5 % to validation and the last 5 % to testing. All
    batches of a set have the shape of its longest row. Losses are in nats per token.

    data: path of the file; see `read_pairs`. input, target: names of its columns.
    batch_size: B, number of rows of a batch.
    seed: the run seed, in [0, 2^64).
    max_length: largest number of characters of input and target together.
    tokenizer: None or "characters", or as for `get_codec`, which learns from the rows for training, or a codec.
    eval_tokens: number of tokens to score of a held-out set, padding included, but at least one row; None: 65536.

    Raises ValueError if batch_size, max_length or eval_tokens is below 1, the columns are the same, or the file has
    fewer than 20 pairs; and as `read_pairs` and `get_codec` do.
    """

    has_answers = True

    def __init__(
        self,
        *,
        data: str | Path,
        input: str,
        target: str,
        batch_size: int,
        seed: int,
        max_length: int,
        eval_tokens: int | None = None,
        tokenizer: str | Codec | None = None,
    ) -> None:
        require_at_least(1, batch_size=batch_size, max_length=max_length, eval_tokens=eval_tokens or 1)
        if input == target:
            raise ValueError(f"input and target must be two columns, not {input!r} twice")
        self.batch_size = batch_size
        self.seed = seed
        self.eval_tokens = _EVALUATED_TOKENS if eval_tokens is None else eval_tokens
        pairs = read_pairs(Path(data), (input, target), max_length)
        if len(pairs) < _PARTS:
            raise ValueError(f"{data} has {len(pairs)} pairs, but {_PARTS} are needed, to hold some of them out")
        order = random_generator(seed, SPLIT_STREAM, 0).permutation(len(pairs))
        part = len(pairs) // _PARTS
        parts = [[pairs[row] for row in rows] for rows in np.split(order, [-2 * part, -part])]

        encode = self._set_vocabulary(pairs, parts[0], tokenizer)
        separator, end = self.vocab_size - 2, self.vocab_size - 1
        self._training, self._validation, self._test = (
            _Rows([([*encode(pair.input), separator], [*encode(pair.target), end]) for pair in rows], separator)
            for rows in parts
        )
        counts = np.bincount(self._training.answers(), minlength=self.vocab_size)
        share = counts[counts > 0] / counts.sum()
        self.reference_losses = {"chance": log(len(share)), "unigram entropy": -float(np.sum(share * np.log(share)))}

    def _set_vocabulary(
        self, pairs: Sequence[Pair], training: Sequence[Pair], tokenizer: str | Codec | None
    ) -> Callable[[str], Sequence[int]]:
        """Sets the symbols, the two marks last. Returns what turns a text into tokens."""
        if tokenizer is None or tokenizer == CHARACTERS:
            symbols = tuple(sorted(set().union(*map(set, chain.from_iterable(pairs)))))
            token_of = {symbol: token for token, symbol in enumerate(symbols)}
            self._set_symbols(symbols)
            return lambda text: [token_of[character] for character in text]
        codec = get_codec(tokenizer, chain.from_iterable(training)) if isinstance(tokenizer, str) else tokenizer
        self.tokenizer_json = codec.stored
        self._set_symbols(codec.symbols)
        return lambda text: codec.encode(text).tolist()

    def _set_symbols(self, symbols: tuple[str, ...]) -> None:
        self.symbols = (*symbols, SEPARATOR, END)
        self.vocab_size = len(self.symbols)

    def batch(self, step: int) -> Batch:
        random = random_generator(self.seed, TRAINING_STREAM, step)
        return self._training.batch(random.integers(len(self._training), size=self.batch_size))

    def validation_batches(self) -> BatchSets:
        return {"validation": self._first(self._validation)}

    def test_batches(self) -> BatchSets:
        return {"test": self._first(self._test)}

    def _first(self, rows: _Rows) -> list[Batch]:
        """Batches of the first rows, which are in random order."""
        kept = np.arange(min(len(rows), max(1, self.eval_tokens // rows.longest)))
        return [rows.batch(kept[start : start + self.batch_size]) for start in range(0, len(kept), self.batch_size)]


class _Rows:
    """Rows of a table as tokens, one after the other. longest: T, tokens that are read of the longest row."""

    def __init__(self, rows: Sequence[tuple[list[int], list[int]]], padding: int) -> None:
        self._tokens = np.array([token for row in rows for part in row for token in part], dtype=np.int64)
        self._questions = np.array([len(question) for question, _ in rows])
        self._lengths = np.array([len(question) + len(answer) for question, answer in rows])
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._padding = padding
        self.longest = int(self._lengths.max()) - 1

    def __len__(self) -> int:
        return len(self._starts)

    def answers(self) -> npt.NDArray[np.int64]:
        """The tokens of all answers."""
        ends = zip(self._starts + self._questions, self._starts + self._lengths, strict=True)
        return np.concatenate([self._tokens[start:end] for start, end in ends])

    def batch(self, rows_B: npt.NDArray[np.int64]) -> Batch:
        """These rows, [B, longest] each."""
        time_T = np.arange(self.longest + 1)
        places_BT = self._starts[rows_B, None] + time_T
        window = self._tokens[places_BT.clip(max=len(self._tokens) - 1)]
        is_read = time_T[:-1] < self._lengths[rows_B, None] - 1
        is_scored = is_read & (time_T[:-1] >= self._questions[rows_B, None] - 1)
        tokens_BT = np.where(is_read, window[:, :-1], self._padding)
        targets_BT = np.where(is_scored, window[:, 1:], IGNORE_INDEX)
        return Batch(torch.from_numpy(tokens_BT), torch.from_numpy(targets_BT))
