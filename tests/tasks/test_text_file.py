"""Reading text files: the same tokens as from the whole text at once, in little memory; and files of other formats."""

import bz2
import codecs
import gzip
import lzma
import os
import re
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.tasks.make import write_ptb
from zo_kernels.tasks import PennTreebank, Text, text_file
from zo_kernels.tasks.text_file import EncodedText, read_text, token_dtype

COMPRESSED_BY_ZSTD = bytes.fromhex("28b52ffd2402110000746f0aa9f4ba3c")
SCRIPT = """
import sys
import torch
from zo_kernels.tasks import Text

def peak():  # of this process alone: ru_maxrss begins with that of its parent
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])

before = peak()
task = Text(data=sys.argv[1], batch_size=4, context_length=10, seed=0)
print(peak() - before, task._training.itemsize)
"""

many_characters = "".join(map(chr, range(0x4E00, 0x4E00 + 300)))
texts = st.one_of(
    st.text(),
    st.text(alphabet="ab\r\n"),
    st.text(alphabet="aé€🦊\ufeff\0\U0010ffff"),
    st.integers(0, 300).map(lambda count: many_characters[:count] * 2),
)
files = st.one_of(
    texts.map(lambda text: text.encode()),
    texts.map(lambda text: codecs.BOM_UTF8 + text.encode()),
    st.binary(),
    st.lists(st.sampled_from([b"a", "é".encode(), "🦊".encode(), b"\x80", b"\xe2\x82", b"\xf0\x9f\xa6", b"\xed"])).map(
        b"".join
    ),
)


def reference(data: bytes) -> tuple[list[str], list[int]] | str:
    """The vocabulary and the tokens of a file, decoded at once; or why there are none."""
    start = 3 if data.startswith(codecs.BOM_UTF8) else 0
    try:
        text = data[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        return f"{{}} is not UTF-8 text (byte {start + error.start} can't be decoded): convert it to UTF-8"
    if not text:
        return "{} is empty: give a text file to learn from"
    vocabulary = sorted(set(text))
    place = {character: token for token, character in enumerate(vocabulary)}
    return vocabulary, [place[character] for character in text]


def characters(text: EncodedText) -> list[str]:
    return [chr(code_point) for code_point in text.code_points]


@given(data=files, block=st.integers(4, 40))
@example(data=b"\r\n" * 9, block=5)
@example(data=b"a" * 20, block=4)
@example(data="a🦊".encode() * 9, block=4)
@example(data="🦊".encode() * 9 + b"\xf0\x9f", block=6)
@example(data=b"abc\xf0\x9f\xa6", block=4)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_blocks_make_no_difference(data: bytes, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "_BLOCK", block)
    path = tmp_path / "text"
    path.write_bytes(data)
    expected = reference(data)
    if any(re.match(pattern, data) for pattern, _, _ in text_file._OTHER_FORMATS):
        return
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"^{re.escape(expected.format(path))}$"):
            read_text(path)
        return
    text = read_text(path)
    assert (characters(text), text.tokens.tolist()) == expected
    assert text.code_points.dtype == np.uint32
    assert text.tokens.dtype == token_dtype(len(expected[0]))
    larger = np.union1d(text.code_points, np.arange(40, 400, 7, dtype=np.uint32))
    moved = text.tokens_in(larger)
    assert moved.dtype == token_dtype(len(larger))
    assert np.array_equal(larger[moved], text.code_points[text.tokens])


@pytest.mark.parametrize(("size", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")])
def test_tokens_take_the_least_bytes(size: int, dtype: str, tmp_path: Path) -> None:
    vocabulary = "".join(map(chr, range(0x10000, 0x10000 + size)))
    (tmp_path / "text").write_text(vocabulary + vocabulary[::-1], encoding="utf-8")
    text = read_text(tmp_path / "text")
    assert text.tokens.dtype == np.dtype(dtype)
    assert text.tokens.tolist() == [*range(size), *reversed(range(size))]
    assert "".join(characters(text)) == vocabulary


def test_a_task_does_not_depend_on_blocks_or_on_a_byte_order_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = ("naïve café 🦊\r\n" * 40).encode()
    (tmp_path / "plain").write_bytes(content)
    (tmp_path / "marked").write_bytes(codecs.BOM_UTF8 + content)
    made = []
    for block, name in ((1 << 20, "plain"), (5, "plain"), (5, "marked")):
        monkeypatch.setattr(text_file, "_BLOCK", block)
        made.append(Text(data=tmp_path / name, batch_size=4, context_length=6, seed=3))
    assert made[0].symbols == tuple(sorted(set(content.decode())))
    for other in made[1:]:
        assert other.symbols == made[0].symbols
        assert other.reference_losses == made[0].reference_losses
        for step in range(5):
            assert all(map(torch.equal, other.batch(step), made[0].batch(step)))


def test_marks_are_skipped_in_every_file_of_the_treebank(tmp_path: Path) -> None:
    texts = "banknote <unk> N\n" * 9, "<unk> kNot\n" * 5, "a Not\n" * 4
    write_ptb(tmp_path, *texts)
    plain = PennTreebank(data=tmp_path, batch_size=4, context_length=6, seed=0)
    write_ptb(tmp_path, *("\ufeff" + text for text in texts))
    marked = PennTreebank(data=tmp_path, batch_size=4, context_length=6, seed=0)
    assert marked.symbols == plain.symbols == tuple(sorted(set(texts[0])))
    for name, batches in {**plain.validation_batches(), **plain.test_batches()}.items():
        others = {**marked.validation_batches(), **marked.test_batches()}[name]
        for batch, other in zip(batches, others, strict=True):
            assert torch.equal(batch.tokens, other.tokens)


def test_files_of_other_formats_are_named_with_the_remedy(tmp_path: Path) -> None:
    text = b"to be or not to be\n" * 50
    with zipfile.ZipFile(tmp_path / "zip", "w") as archive:
        archive.writestr("text", text)
    for name, content, message in (
        ("gz", gzip.compress(text), "a gzip file: decompress it first (gunzip {})"),
        ("zip", (tmp_path / "zip").read_bytes(), "a zip archive: extract the text first (unzip {})"),
        ("xz", lzma.compress(text), "an xz file: decompress it first (unxz {})"),
        ("zst", COMPRESSED_BY_ZSTD, "a zstd file: decompress it first (unzstd {})"),
        ("bz2", bz2.compress(text), "a bzip2 file: decompress it first (bunzip2 {})"),
        ("empty bz2", bz2.compress(b""), "a bzip2 file: decompress it first (bunzip2 '{}')"),
        ("16", text.decode().encode("utf-16"), "UTF-16 text: convert it to UTF-8 first (iconv -f UTF-16 -t UTF-8 {})"),
        ("16be", "\ufeffto be".encode("utf-16-be"), "UTF-16 text: convert it to UTF-8 first"),
        ("32", text.decode().encode("utf-32"), "UTF-32 text: convert it to UTF-8 first (iconv -f UTF-32 -t UTF-8 {})"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(ValueError, match="^" + re.escape(f"{path} is {message.format(path)}")):
            read_text(path)


def test_letters_with_which_other_formats_begin_are_text(tmp_path: Path) -> None:
    for beginning in ("PK is", "BZh9 is", "(zstd)"):
        (tmp_path / "text").write_text(beginning)
        assert characters(read_text(tmp_path / "text")) == sorted(set(beginning))


def test_only_a_byte_order_mark_is_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(codecs.BOM_UTF8)
    with pytest.raises(ValueError, match="text is empty: give a text file"):
        read_text(tmp_path / "text")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("ab" * 50_000,))
    writer.start()
    assert len(read_text(pipe).tokens) == 100_000
    writer.join()


def test_memory_is_three_bytes_per_byte_at_most(tmp_path: Path) -> None:
    path = tmp_path / "text"
    size = path.write_text("the quick brown fox jumps over\n" * 1_000_000)
    made = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True)
    grown, kept = map(int, made.stdout.split())
    assert size < grown <= 3 * size
    assert kept == 1
