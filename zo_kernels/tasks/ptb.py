"""The Penn Treebank task: predict the next character of the corpus."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .characters import CharacterWindows, require_characters
from .text_file import from_code_points, read_text


class PennTreebank(CharacterWindows):
    """Character-level language modelling of the Penn Treebank with its usual split.

    Losses are in nats per character. The vocabulary is the characters of the training file, in code point order. The
    files are read unchanged: a line end is one character, and `<unk>` is five. Only a byte order mark is skipped.

    data: folder of the UTF-8 files ptb.train.txt, ptb.valid.txt and ptb.test.txt.
    The other options are those of `Windows`.

    Raises the errors of `Windows`, and ValueError if a file can't be read, is compressed, is empty, is not UTF-8, is
    too short for the context length or has a character that does not occur in the training file.

    Source: the files of Mikolov et al., Recurrent neural network based language model, Interspeech 2010.
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
        paths = [Path(data) / f"ptb.{part}.txt" for part in ("train", "valid", "test")]
        texts = [read_text(path) for path in paths]
        self.set_alphabet(texts[0])
        for path, text in zip(paths, texts, strict=True):
            require_characters(path, text, context_length + 1, context_length)
            if unknown := from_code_points(np.setdiff1d(text.code_points, self._code_points)):
                raise ValueError(f"{path} has the character {unknown[0]!r}, which {paths[0].name} lacks: clean it up")
        self.set_tokens(*(text.tokens_in(self._code_points) for text in texts))
