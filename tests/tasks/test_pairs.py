"""The pairs task: what is read and scored, the split, and files that cannot be used."""

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from zo_kernels.tasks import Pairs

ROWS = [("".join(letters), "".join(letters[::-1]).upper()) for n in (1, 2, 3) for letters in product("abé", repeat=n)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "words.csv"
    path.write_text("".join(f"{word},x,{answer}\n" for word, answer in [("in", "out"), *ROWS]), encoding="utf-8")
    return path


def make(file: Path, **options: Any) -> Pairs:
    defaults = {"input": "in", "target": "out", "batch_size": 5, "seed": 0, "max_length": 9}
    return Pairs(**{"data": file, **defaults, **options})


def pairs_of(task: Pairs, batches) -> list[tuple[str, str]]:
    """The pairs of all rows. Checks that exactly the target and its end are scored, and that separators pad."""
    found = []
    for batch in batches:
        assert batch.tokens.dtype == batch.targets.dtype == torch.int64
        for tokens, targets in zip(batch.tokens.tolist(), batch.targets.tolist(), strict=True):
            read = "".join(task.symbols[token] for token in tokens)
            word, _, rest = read.partition("\t")
            answer = "".join(task.symbols[token] for token in targets if token != -100)
            assert answer.endswith("\n")
            scored = [i for i, token in enumerate(targets) if token != -100]
            assert scored == list(range(len(word), len(word) + len(answer)))
            assert rest == answer[:-1] + "\t" * (len(tokens) - len(word) - len(answer))
            found.append((word, answer[:-1]))
    return found


def test_rows_are_split_by_the_seed(file: Path) -> None:
    task = make(file)
    assert task.symbols == (*"ABabÉé", "\t", "\n")
    held_out = {name: pairs_of(task, b) for name, b in {**task.validation_batches(), **task.test_batches()}.items()}
    assert {name: len(rows) for name, rows in held_out.items()} == {"validation": 1, "test": 1}
    seen = set(pairs_of(task, map(task.batch, range(100))))
    assert len(seen) == len(ROWS) - 2  # every other row
    assert seen.union(*held_out.values()) == set(ROWS)
    splits = {(*pairs_of(make(file, seed=seed), make(file, seed=seed).test_batches()["test"]),) for seed in range(5)}
    assert len(splits) > 1


def test_all_batches_of_a_set_have_one_shape(file: Path) -> None:
    task = make(file)
    assert {task.batch(step).tokens.shape for step in range(20)} == {(5, 7)}  # abé, a tab, ÉBA


def test_held_out_sets_are_limited(tmp_path: Path) -> None:
    file = tmp_path / "many.csv"
    file.write_text("in,out\n" + "ab,c\n" * 400)
    for eval_tokens, rows in ((None, 20), (40, 10), (1, 1)):
        batches = make(file, eval_tokens=eval_tokens).validation_batches()["validation"]
        assert sum(len(batch.tokens) for batch in batches) == rows


def test_reference_losses(tmp_path: Path) -> None:
    file = tmp_path / "same.csv"
    file.write_text("in,out\n" + "ab,c\n" * 20)
    assert make(file).reference_losses == {"chance": math.log(2), "unigram entropy": pytest.approx(math.log(2))}


def test_csv_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    file = tmp_path / "quoted.CSV"
    file.write_bytes(b'\xef\xbb\xbfout,in\r\n"a,""b""",c\r\n\r\n' + b",d\r\n" * 19)
    task = make(file)
    assert set(pairs_of(task, map(task.batch, range(20)))) <= {("c", 'a,"b"'), ("d", "")}
    assert task.symbols == (*'",abcd', "\t", "\n")


def test_json_lines(tmp_path: Path, file: Path) -> None:
    lines = tmp_path / "words.jsonl"
    lines.write_text(
        "".join(f'{{"out": "{answer}", "more": [1], "in": "{word}"}}\n' for word, answer in ROWS), encoding="utf-8"
    )
    assert torch.equal(make(lines).batch(3).tokens, make(file).batch(3).tokens)
    lines.write_text('{"in": 1.50, "out": -2}\n\n' * 20)
    assert pairs_of(make(lines), [make(lines).batch(0)]) == [("1.50", "-2")] * 5


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "a.txt must be a .csv file or a .jsonl file"),
        ("a.csv", b"", "a.csv is empty: give a file with pairs"),
        ("a.csv", b"in,out\n", "a.csv is empty: give a file with pairs"),
        ("a.csv", b"\nin,to\n", "a.csv, line 2 has no column 'out', only in, to"),
        ("a.csv", b"in,out,in\n", "a.csv, line 1 has two columns 'in'"),
        ("a.csv", b'in,out\n"a",b\nc\n', "a.csv, line 3 has 1 values, but the header has 2"),
        ("a.csv", b'in,out\na,b\n"c"d,e\n', "a.csv, line 3 is not CSV \\("),
        ("a.csv", b"in,out\na,b\xe9\n", "a.csv, line 2 is not UTF-8 text: convert"),
        ("a.csv", b'in,out\n"a\nb",c\n', "a.csv, line 2 has a newline in 'in'"),
        ("a.csv", b"in,out\na,b\tc\n", "a.csv, line 2 has a tab in 'out'"),
        ("a.csv", b"in,out\n12345,67890\n", "a.csv, line 2 has a pair of 10 characters, more than max_length 9"),
        ("a.csv", b"in,out\n" + b"a,b\n" * 19, "a.csv has 19 pairs, but 20 are needed"),
        ("a.csv", b"\x1f\x8b", "a.csv is a gzip file"),
        ("a.jsonl", b"\n\n", "a.jsonl is empty: give a file with pairs"),
        ("a.jsonl", b'{"in": "a", "out": "b"}\n{"in"', "a.jsonl, line 2 is not JSON \\("),
        ("a.jsonl", b"[" * 100_000, "a.jsonl, line 1 is not JSON \\("),
        ("a.jsonl", b'["a", "b"]', "a.jsonl, line 1 is not a JSON object"),
        ("a.jsonl", b'{"in": "a"}', "a.jsonl, line 1 has no 'out', only in"),
        ("a.jsonl", b'{"in": {}, "out": "b"}', "a.jsonl, line 1 has no text in 'in'"),
        ("a.jsonl", b'{"in": "a", "out": null}', "a.jsonl, line 1 has no text in 'out'"),
        ("a.jsonl", b'{"in": "a", "out": "\\ud800"}', "a.jsonl, line 1 has half a character"),
    ],
)
def test_unusable_files_are_named_with_the_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make(tmp_path / name)


def test_bad_options_are_refused(file: Path) -> None:
    for option in ("batch_size", "max_length", "eval_tokens"):
        with pytest.raises(ValueError, match=f"^{option} must be at least 1, not -1$"):
            make(file, **{option: -1})
    with pytest.raises(ValueError, match="input and target must be two columns, not 'in' twice"):
        make(file, target="in")
