"""The text task: predict the next character of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .characters import CharacterWindows
from .parts import DEFAULT_PARTS, TextLength, read_parts, require_context
from .text_file import read_text


class Text(CharacterWindows):
    """Character-level language modelling of one UTF-8 file.

    Losses are in nats per character. The vocabulary is the characters of the file, in code point order. A byte order
    mark at the start of a file is skipped.

    data: path of the file.
    parts: shares of the file for training, validation and testing, in this order. None is "0.9,0.05,0.05".
    validation_data: path of another UTF-8 file to validate on. The share for validation is then for training, too.
    The other options are those of `Windows`.

    Raises the errors of `Windows`, and ValueError if parts are not three positive numbers that sum to 1, or if a file
    can't be read, is compressed, is empty, is not UTF-8, is too short for the context length or, of validation_data,
    has a character that does not occur in data.
    """

    def __init__(
        self,
        *,
        data: str | Path,
        batch_size: int,
        context_length: int,
        seed: int,
        curriculum: int = 0,
        parts: str | None = None,
        validation_data: str | Path | None = None,
        eval_tokens: int | None = None,
        stateful: bool = False,
    ) -> None:
        super().__init__(batch_size, context_length, seed, curriculum, eval_tokens, stateful)
        shares = DEFAULT_PARTS if parts is None else read_parts(parts)
        path = Path(data)
        text = read_text(path)
        self.set_alphabet(text)
        if validation_data is None:
            require_context(context_length, TextLength(path, len(text.tokens), shares))
            self.set_one_sequence(text.tokens, shares)
            return
        other = Path(validation_data)
        validation = self.tokens_of(read_text(other), other, path)
        kept = (shares.training + shares.validation, shares.test)
        require_context(context_length, TextLength(path, len(text.tokens), kept), TextLength(other, len(validation)))
        training, test = np.split(text.tokens, [-shares.sizes(len(text.tokens))[2]])
        self.set_tokens(training, validation, test)
