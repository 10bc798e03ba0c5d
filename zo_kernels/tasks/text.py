"""The text task: predict the next character of a file."""

from __future__ import annotations

from pathlib import Path

from .characters import CharacterWindows, require_characters
from .text_file import read_text
from .windows import PARTS


class Text(CharacterWindows):
    """Character-level language modelling of one UTF-8 file.

    Losses are in nats per character. The vocabulary is the characters of the file, in code point order. The first 90 %
    of the file are for training, the next 5 % for validation, the last 5 % for testing. A byte order mark at the start
    of the file is skipped.

    data: path of the file. The other options are those of `Windows`.

    Raises the errors of `Windows`, and ValueError if the file can't be read, is compressed, is empty, is not UTF-8 or
    is too short for the context length.
    """

    def __init__(
        self,
        *,
        data: str | Path,
        batch_size: int,
        context_length: int,
        seed: int,
        curriculum: int = 0,
        eval_tokens: int | None = None,
    ) -> None:
        super().__init__(batch_size, context_length, seed, curriculum, eval_tokens)
        text = read_text(Path(data))
        require_characters(Path(data), text, PARTS * (context_length + 1), context_length)
        self.set_alphabet(text)
        self.set_one_sequence(text.tokens)
