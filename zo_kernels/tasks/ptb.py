"""The Penn Treebank task: predict the next token of the corpus."""

from __future__ import annotations

from pathlib import Path

from .characters import CharacterWindows
from .codecs import CHARACTERS, Codec
from .parts import TextLength, require_context
from .text_file import read_text


class PennTreebank(CharacterWindows):
    """Language modelling of the Penn Treebank with its usual split.

    Losses are in nats per token. By default the tokens are the characters of the training file, in code point order.
    The files are read unchanged: a line end is one character, and `<unk>` is five. Only a byte order mark is skipped.

    data: folder of the UTF-8 files ptb.train.txt, ptb.valid.txt and ptb.test.txt.
    tokenizer: None or "characters", or as for `get_codec`, which learns from the training file, or a codec.
    The other options are those of `Windows`.

    Raises the errors of `Windows` and `get_codec`, and ValueError if a file can't be read, is compressed, is empty, is
    not UTF-8, is too short for the context length or has a character that does not occur in the training file.

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
        stateful: bool = False,
        tokenizer: str | Codec | None = None,
    ) -> None:
        super().__init__(batch_size, context_length, seed, curriculum, eval_tokens, stateful)
        paths = [Path(data) / f"ptb.{part}.txt" for part in ("train", "valid", "test")]
        texts = [read_text(path) for path in paths]
        if tokenizer not in (None, CHARACTERS):
            self.set_texts(paths, [text.decode() for text in texts], tokenizer)
            return
        self.set_alphabet(texts[0])
        tokens = [self.tokens_of(text, path, paths[0]) for text, path in zip(texts, paths, strict=True)]
        require_context(
            context_length, *(TextLength(path, len(part)) for path, part in zip(paths, tokens, strict=True))
        )
        self.set_tokens(*tokens)
