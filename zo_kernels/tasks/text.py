"""The text task: predict the next token of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .characters import CharacterWindows
from .codecs import CHARACTERS, Codec
from .parts import DEFAULT_PARTS, TextLength, read_parts, require_context
from .text_file import read_text


class Text(CharacterWindows):
    """Language modelling of one UTF-8 file.

    Losses are in nats per token. By default the tokens are the characters of the file, in code point order. A byte
    order mark at the start of a file is skipped.

    data: path of the file.
    parts: shares of the file's characters for training, validation and testing, in this order. None is
        "0.9,0.05,0.05".
    validation_data: path of another UTF-8 file to validate on. The share for validation is then for training, too.
    tokenizer: None or "characters", or as for `get_codec`, which learns from the part for training, or a codec.
    The other options are those of `Windows`.

    Raises the errors of `Windows` and `get_codec`, and ValueError if parts are not three positive numbers that sum to
    1, or if a file can't be read, is compressed, is empty, is not UTF-8, is too short for the context length or, of
    validation_data, has a character that does not occur in data (if tokens are characters).
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
        tokenizer: str | Codec | None = None,
    ) -> None:
        super().__init__(batch_size, context_length, seed, curriculum, eval_tokens, stateful)
        shares = DEFAULT_PARTS if parts is None else read_parts(parts)
        path = Path(data)
        text = read_text(path)
        other = None if validation_data is None else Path(validation_data)
        if tokenizer is not None and tokenizer != CHARACTERS:
            characters = text.decode()
            first, held_out, last = shares.sizes(len(characters))
            texts = [characters[:first], characters[first : first + held_out], characters[-last:]]
            if other is not None:
                texts[:2] = [characters[:-last], read_text(other).decode()]
            self.set_texts([path, other or path, path], texts, tokenizer)
            return
        self.set_alphabet(text)
        if other is None:
            require_context(context_length, TextLength(path, len(text.tokens), shares))
            self.set_one_sequence(text.tokens, shares)
            return
        validation = self.tokens_of(read_text(other), other, path)
        kept = (shares.training + shares.validation, shares.test)
        require_context(context_length, TextLength(path, len(text.tokens), kept), TextLength(other, len(validation)))
        training, test = np.split(text.tokens, [-shares.sizes(len(text.tokens))[2]])
        self.set_tokens(training, validation, test)
