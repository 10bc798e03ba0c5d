"""Turns tokens into text as they come."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_LONGEST = 4
"""Bytes of the longest character, and so the most tokens that may hold parts of one."""


class TextStream:
    """Shows the text of tokens as soon as its characters are whole.

    decode: the text of tokens, with U+FFFD for a character of which a part is missing. context: the tokens before the
    first, since what a token says may depend on those before it.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._tokens = list(context[-_LONGEST:])
        self._shown = len(self._tokens)

    def push(self, token: int) -> str:
        """The text that the next token completes."""
        self._tokens.append(token)
        text = self._rest()
        if text.endswith("\ufffd") and len(self._tokens) - self._shown < _LONGEST:
            return ""
        self._tokens = self._tokens[-_LONGEST:]
        self._shown = len(self._tokens)
        return text

    def close(self) -> str:
        """The text of what was never completed."""
        return self._rest()

    def _rest(self) -> str:
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]
