"""The OpenWebText task: predict the next token of a Hugging Face dataset."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .base import require_at_least
from .parts import DEFAULT_PARTS, TextLength, require_context
from .token_file import Source, make_tokens, read_tokens
from .windows import Windows


class OpenWebText(Windows):
    """Language modelling of OpenWebText, or of any dataset with a column `text`, with the tokens of a tokenizer.

    Losses are in nats per token. The first run writes the tokens to a file. Later runs map this file into memory; they
    need neither a network nor the packages of the extra `data`. The first 90 % of the tokens are for training, the next
    5 % for validation, the last 5 % for testing. The symbol of a token is the tokenizer's string, which may have
    several characters.

    data: path of the token file, which is created if it does not exist.
    dataset, tokenizer, max_tokens: source of the tokens; see `Source`.
    The other options are those of `Windows`.

    Raises the errors of `Windows`, and ValueError if max_tokens is below 1, or if the file can't be read or created,
    has tokens of another source, or has too few tokens for the context length.

    Source: Gokaslan and Cohen, OpenWebText corpus, 2019.
    """

    evaluated_tokens: ClassVar[int] = 1 << 12
    """Fewer than in other tasks, since evaluation is slow with a large vocabulary."""

    def __init__(
        self,
        *,
        data: str | Path,
        dataset: str,
        tokenizer: str,
        max_tokens: int,
        batch_size: int,
        context_length: int,
        seed: int,
        curriculum: int = 0,
        eval_tokens: int | None = None,
        stateful: bool = False,
    ) -> None:
        super().__init__(batch_size, context_length, seed, curriculum, eval_tokens, stateful)
        require_at_least(1, max_tokens=max_tokens)
        path, source = Path(data), Source(dataset, tokenizer, max_tokens)
        most = TextLength(path, max_tokens, DEFAULT_PARTS)
        if context_length > most.longest_context:  # before they are read
            raise ValueError(
                f"--max-tokens {max_tokens} is too few for --context-length {context_length}: "
                f"give at least --max-tokens {most.least_count(context_length)}"
            )
        if not path.exists():
            make_tokens(path, source)
        tokens, self.symbols, self.tokenizer_json = read_tokens(path, source)
        require_context(
            context_length, TextLength(path, len(tokens), DEFAULT_PARTS), unit="tokens", longer="a larger dataset"
        )
        self.vocab_size = len(self.symbols)
        self.set_one_sequence(tokens)
