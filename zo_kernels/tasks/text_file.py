"""Reads UTF-8 files as tokens, one per character."""

from __future__ import annotations

import codecs
import os
import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

CodePoints = npt.NDArray[np.uint32]
Tokens = npt.NDArray[np.unsignedinteger]

_BLOCK = 1 << 20
"""Bytes that are read and decoded at once: at least 4, the longest character."""

_ALL_CODE_POINTS = 0x110000

_OTHER_FORMATS = (
    (rb"\x1f\x8b", "a gzip file", "decompress it first (gunzip {})"),
    (rb"PK\x03\x04", "a zip archive", "extract the text first (unzip {})"),
    (rb"\xfd7zXZ\0", "an xz file", "decompress it first (unxz {})"),
    (rb"\x28\xb5\x2f\xfd", "a zstd file", "decompress it first (unzstd {})"),
    (rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "a bzip2 file", "decompress it first (bunzip2 {})"),
    (rb"\xff\xfe\0\0|\0\0\xfe\xff", "UTF-32 text", "convert it to UTF-8 first (iconv -f UTF-32 -t UTF-8 {})"),
    (rb"\xff\xfe|\xfe\xff", "UTF-16 text", "convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8 {})"),
)
"""How the files of other formats begin, as a regular expression; what they are; and what to do. The first match counts.

A bzip2 file begins with letters that a text may begin with too, hence the longer expression.
"""


class EncodedText(NamedTuple):
    """A text as tokens of its own characters.

    code_points: uint32 [V], the different characters in order.
    tokens: [N], the index of each character in code_points; of the `token_dtype` of V.
    """

    code_points: CodePoints
    tokens: Tokens

    def decode(self) -> str:
        """The text itself."""
        return from_code_points(self.code_points[self.tokens])

    def tokens_in(self, code_points: CodePoints) -> Tokens:
        """The tokens of the text in another vocabulary, which has all of its characters."""
        token_of = np.searchsorted(code_points, self.code_points).astype(token_dtype(len(code_points)))
        tokens = np.empty(len(self.tokens), dtype=token_dtype(len(code_points)))
        for start in range(0, len(tokens), _BLOCK):  # since NumPy copies indices to int64
            tokens[start : start + _BLOCK] = token_of[self.tokens[start : start + _BLOCK]]
        return tokens


def read_text(path: Path) -> EncodedText:
    """Reads a UTF-8 file, without the byte order mark that it may begin with.

    Raises ValueError if the file can't be read, is in another format, is not UTF-8 or is empty.
    """
    data = read_bytes(path)
    start = len(codecs.BOM_UTF8) if data.startswith(codecs.BOM_UTF8) else 0
    occurs = np.zeros(_ALL_CODE_POINTS, dtype=bool)
    length = 0
    try:
        for block in _decoded_blocks(data, start):
            occurs[block] = True
            length += len(block)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text (byte {error.start} can't be decoded): convert it to UTF-8"
        ) from error
    if length == 0:
        raise ValueError(f"{path} is empty: give a text file to learn from")
    code_points = np.flatnonzero(occurs).astype(np.uint32)
    token_of = np.zeros(_ALL_CODE_POINTS, dtype=token_dtype(len(code_points)))
    token_of[code_points] = np.arange(len(code_points))
    tokens = np.empty(length, dtype=token_dtype(len(code_points)))
    end = 0
    for block in _decoded_blocks(data, start):
        tokens[end : end + len(block)] = token_of[block]
        end += len(block)
    return EncodedText(code_points, tokens)


def token_dtype(vocab_size: int) -> npt.DTypeLike:
    """The smallest unsigned dtype that holds the tokens 0 .. vocab_size-1."""
    return np.uint8 if vocab_size <= 1 << 8 else np.uint16 if vocab_size <= 1 << 16 else np.uint32


def to_code_points(text: str) -> CodePoints:
    """The code point of each character."""
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def from_code_points(code_points: CodePoints) -> str:
    """The text of code points."""
    return code_points.astype("<u4").tobytes().decode("utf-32-le")


def read_bytes(path: Path) -> bytearray:
    """Reads a file. Raises ValueError if it can't be read, is a device, or begins as one of another format."""
    data = bytearray()
    try:
        with path.open("rb") as file:
            if stat.S_ISCHR(os.fstat(file.fileno()).st_mode):  # /dev/zero would never end
                raise ValueError(f"{path} is a device: give a text file to learn from")
            while block := file.read(_BLOCK):  # in blocks, since Ctrl-C waits for the end of a read
                if not data:
                    _refuse_other_formats(path, block)
                data += block
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror}") from error
    return data


def _refuse_other_formats(path: Path, beginning: bytes) -> None:
    for pattern, name, remedy in _OTHER_FORMATS:
        if re.match(pattern, beginning):
            raise ValueError(f"{path} is {name}: {remedy.format(shlex.quote(str(path)))}")


def _decoded_blocks(data: bytearray, start: int) -> Iterator[CodePoints]:
    """The code points of UTF-8 bytes from `start` on, in blocks: a whole text would take four bytes per character.

    Raises UnicodeDecodeError, whose `start` counts from the beginning of the data.
    """
    view = memoryview(data)
    while start < len(data):
        end = start + _BLOCK
        try:
            # The decoder leaves a character that the block cuts in two to the next one.
            text, decoded = codecs.utf_8_decode(view[start:end], "strict", end >= len(data))
        except UnicodeDecodeError as error:
            error.start += start
            raise
        start += decoded
        yield to_code_points(text)
