"""Runs with a tokenizer: the run folder has it, and resume, fork, replay and generate use that one."""

import json
import shutil
from pathlib import Path

import pytest

from tests.tasks.make import LetterTokenizer, stub_hugging_face
from tests.train.runs import FILES, SMALL, files_of, weights_of
from zo_kernels.generate import load_run
from zo_kernels.generate.__main__ import main as generate
from zo_kernels.replay import replay
from zo_kernels.tasks.codecs import get_codec
from zo_kernels.train.__main__ import main

SENTENCE = "to be or not to be, thát is the question\n"


@pytest.fixture
def book(tmp_path: Path) -> list[str]:
    (tmp_path / "book.txt").write_text(SENTENCE * 40, encoding="utf-8")
    return ["--task", "text", "--data", str(tmp_path / "book.txt"), *SMALL, "--context-length", "5"]


def test_a_run_keeps_its_tokenizer(book: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    run, again = tmp_path / "run", tmp_path / "fork"
    file = tmp_path / "mine.json"
    file.write_text(get_codec("bpe:290", [SENTENCE]).stored or "")
    stored = file.read_text()
    assert main([*book, "--tokenizer", str(file), "--out", str(run)]) == 0
    assert f"different tokens ({file}); losses in nats per token" in capsys.readouterr().out
    assert files_of(run) == {*FILES, "tokenizer.json"}
    assert (run / "tokenizer.json").read_text() == stored
    file.unlink()
    (tmp_path / "book.txt").write_text("something else\n" * 100)
    assert main(["--resume", str(run)]) == 0
    assert main(["--fork", str(run), "--steps", "7", "--out", str(again)]) == 0
    assert (again / "tokenizer.json").read_text() == stored
    shutil.copytree(run, tmp_path / "copy")
    shutil.rmtree(run)
    assert main(["--resume", str(again)]) == 0  # a fork goes on without the run it comes from
    run = tmp_path / "copy"
    assert replay(run, 5).weights.keys() == weights_of(run).keys()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe:260"])
def test_generate_encodes_and_decodes(
    tokenizer: str, book: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    run = tmp_path / "run"
    assert main([*book, "--tokenizer", tokenizer, "--out", str(run)]) == 0
    capsys.readouterr()
    assert generate(["--run", str(run), "--prompt", "thát €", "--tokens", "30", "--raw"]) == 0
    assert capsys.readouterr().out.startswith("thát €")
    loaded = load_run(run)
    assert loaded.decode(loaded.encode("thát €")[0].tolist()) == "thát €"


def test_a_run_of_bpe_pairs_is_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tokenizers")
    (tmp_path / "pairs.csv").write_text("in,out\n" + "añ,bb\n" * 20, encoding="utf-8")
    data = ["--task", "pairs", "--data", str(tmp_path / "pairs.csv"), "--input", "in", "--target", "out"]
    assert main([*data, *SMALL, "--tokenizer", "bpe:260", "--out", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    tokens = run.encode("añ\tb")[0].tolist()
    assert run.symbols[tokens[-2]] == "\t"
    assert run.decode([*tokens, run.end or 0]) == "añ\tb\n"
    capsys.readouterr()
    assert generate(["--run", str(tmp_path / "run"), "--prompt", "añ", "--tokens", "0"]) == 0
    assert capsys.readouterr().out == "añ\t\n"


def test_owt_stores_the_tokenizer_with_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tokenizers")
    codec = get_codec("bpe:260", [SENTENCE])

    class Fast(LetterTokenizer):
        backend_tokenizer = type("Backend", (), {"to_str": staticmethod(lambda: codec.stored)})

        def get_vocab(self) -> dict[str, int]:
            return {symbol: token for token, symbol in enumerate(codec.symbols)}

        def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
            return [int(token) for token in codec.encode(text)]

    stub_hugging_face(monkeypatch, [SENTENCE] * 40, Fast(eos_token_id=None))
    command = ["--task", "owt", "--data", str(tmp_path / "tokens"), "--max-tokens", "900", *SMALL]
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    run = load_run(tmp_path / "run")
    assert run.encode("to be").tolist() == [codec.encode("to be").tolist()]
    assert run.decode(run.encode("thát")[0].tolist()) == "thát"


def test_spoilt_tokenizers_are_one_sentence(
    book: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tokenizers")
    run = tmp_path / "run"
    assert main([*book, "--tokenizer", "bpe:260", "--out", str(run)]) == 0
    for name, text, message in (
        ("vocabulary.json", json.dumps(["a"]), "vocabulary.json does not have the tokens of the run's tokenizer"),
        ("tokenizer.json", "{", "tokenizer.json is not the tokenizer.json of a tokenizer"),
    ):
        (run / name).write_text(text)
        capsys.readouterr()
        assert generate(["--run", str(run), "--prompt", "a"]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert main(["--resume", str(run)]) == 2
    assert "tokenizer.json is not the tokenizer.json of a tokenizer" in capsys.readouterr().err
