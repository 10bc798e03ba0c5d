"""--forward: which forward a run computes its losses with, from the first step to generated text."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.train.runs import SMALL, metrics_of, weights_of
from zo_kernels.backends import BACKENDS
from zo_kernels.errors import UsageError
from zo_kernels.generate import load_run
from zo_kernels.models import LSTM, FlashLM
from zo_kernels.replay import replay
from zo_kernels.run.config import read_values
from zo_kernels.train.__main__ import main

FLAGS = [*SMALL, "--num-heads", "2", "--checkpoint-every", "2"]
WORDS = {
    "auto": "forward the fused kernel; float32 products\n",
    "kernel": "forward the fused kernel; float32 products\n",
    "batched": "forward torch, the members of many probes as a batch; float32 products\n",
    "flashrnn": "forward flashrnn (vanilla), with its own numbering of the parameters; float32 products\n",
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of five steps with each forward."""
    root = tmp_path_factory.mktemp("forwards")
    for forward in WORDS:
        assert main([*FLAGS, "--forward", forward, "--out", str(root / forward)]) == 0
    return {forward: root / forward for forward in WORDS}


def losses_of(run: Path) -> list[float]:
    return [line["train_loss"] for line in metrics_of(run)[1:]]


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main([*arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


@pytest.mark.parametrize("forward", WORDS)
def test_the_header_says_which(forward: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FLAGS, "--steps", "1", "--forward", forward, "--out", str(tmp_path / "run")]) == 0
    assert WORDS[forward] in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "slstm"], "forward flashrnn (vanilla), with its own numbering of the parameters; float32"),
        (["--model", "dnc", "--memory-slots", "4", "--memory-width", "3"], "forward the fused kernel; float32"),
        (["--distribution", "normal"], "forward torch, one loss at a time\n"),
        (["--backend", "reference"], "forward torch, one loss at a time\n"),
        (["--solver", "bptt", "--lr", "0.01"], "forward torch, and back-propagation through it\n"),
        (["--solver", "activity", "--lr", "0.01"], "forward the kernel of activity perturbation\n"),
        (
            ["--solver", "activity", "--lr", "0.01", "--local-gradient"],
            "forward the kernel of activity perturbation\n",
        ),
        (["--solver", "activity", "--lr", "0.01", "--backend", "reference"], "forward torch\n"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_the_header_of_other_runs(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FLAGS, *flags, "--steps", "1", "--out", str(tmp_path / "run")]) == 0
    assert words in capsys.readouterr().out


def test_what_they_compute(runs: dict[str, Path]) -> None:
    """Kernel and batch see the same probes. A seed is another probe with FlashRNN, from the same parameters."""
    assert weights_of(runs["kernel"]).keys() == weights_of(runs["auto"]).keys()
    assert (runs["kernel"] / "weights.safetensors").read_bytes() == (runs["auto"] / "weights.safetensors").read_bytes()
    torch.testing.assert_close(losses_of(runs["batched"]), losses_of(runs["kernel"]), rtol=0, atol=1e-5)
    flash, kernel = metrics_of(runs["flashrnn"]), metrics_of(runs["kernel"])
    assert flash[0]["validation_loss"] == pytest.approx(kernel[0]["validation_loss"], abs=1e-5)
    assert abs(flash[1]["train_loss"] - kernel[1]["train_loss"]) > 1e-4
    assert json.loads((runs["flashrnn"] / "config.json").read_text())["forward"] == "flashrnn"


@pytest.mark.parametrize("forward", ["batched", "flashrnn"])
def test_replay(forward: str, runs: dict[str, Path]) -> None:
    """Any step can be rebuilt; test_resume.py goes on after a kill."""
    again, whole = replay(runs[forward], 5).weights, weights_of(runs[forward])
    assert all(torch.equal(again[name], x) for name, x in whole.items())
    assert replay(runs[forward], 3).replayed == 1


def test_generate_knows_the_layout(runs: dict[str, Path]) -> None:
    flash, plain = (load_run(runs[forward]).model for forward in ("flashrnn", "batched"))
    assert isinstance(flash, FlashLM)
    assert isinstance(plain, LSTM)
    tokens = torch.tensor([[1, 2, 0]])
    torch.testing.assert_close(flash.next_logits(tokens)[0], flash.to_recurrent().next_logits(tokens)[0])


def test_fork(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With the same layout a fork may have another forward. With another one it is refused."""
    for source, forward in (("auto", "batched"), ("flashrnn", "flashrnn")):
        out = tmp_path / forward
        fork = ["--fork", str(runs[source]), "--fork-step", "3", "--out", str(out)]
        assert main([*fork, "--forward", forward]) == 0
        assert len(metrics_of(out)) == 2 + 1
    for source, forward in (("auto", "flashrnn"), ("flashrnn", "auto"), ("flashrnn", "batched")):
        fork = ["--fork", str(runs[source]), "--fork-step", "3", "--out", str(tmp_path / "refused")]
        said = refusal(capsys, *fork, "--forward", forward)
        assert f"has --forward {source}, and FlashRNN numbers the same parameters in another order" in said
    assert not (tmp_path / "refused").exists()


def test_resume_keeps_it(runs: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "--resume", str(runs["flashrnn"]), "--forward", "batched")
    assert "--forward is flashrnn in " in said
    said = refusal(capsys, *FLAGS, "--resume", str(runs["auto"]), "--forward", "kernel")
    assert "--forward is auto in " in said


def test_an_edited_config_is_noticed(runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parameters of one layout are not taken for those of the other."""
    run = shutil.copytree(runs["flashrnn"], tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**config, "forward": "auto"}))
    with pytest.raises(UsageError, match=r"does not fit config\.json"):
        load_run(run)
    refusal(capsys, "--resume", str(run))


def test_older_runs_have_none() -> None:
    assert read_values("{}", "config.json")["forward"] == "auto"


MEMORY = ["--memory-slots", "4", "--memory-width", "3"]
SENTENCES = {
    "unknown forward 'magic': choose one of auto, kernel, batched, flashrnn": ["--forward", "magic"],
    "--forward does not apply to --solver bptt": ["--forward", "flashrnn", "--solver", "bptt"],
    "--forward flashrnn is for texts and the models lstm, gru, elman, slstm, not for the model dnc": [
        *("--forward", "flashrnn", "--model", "dnc", *MEMORY)
    ],
    "--forward kernel is for texts and the models lstm, gru, elman, slstm, not for the model paper-dnc": [
        *("--forward", "kernel", "--model", "paper-dnc", *MEMORY)
    ],
    "--forward batched does not have the model slstm: give --forward flashrnn": [
        *("--forward", "batched", "--model", "slstm")
    ],
    "--forward kernel has rademacher probes alone: leave --distribution normal or --forward out": [
        *("--forward", "kernel", "--distribution", "normal")
    ],
    "--forward batched has no bfloat16 products: leave --precision out": [
        *("--forward", "batched", "--precision", "bfloat16", "--eps", "0.03125")
    ],
    "backend 'reference' has no kernel for float32 weights with float32 products: use the forward 'batched'": [
        *("--forward", "kernel", "--backend", "reference")
    ],
}


@pytest.mark.parametrize("sentence", SENTENCES)
def test_refusals(sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sentence in refusal(capsys, *FLAGS, *SENTENCES[sentence], "--out", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_missing_kernel_is_noticed_when_the_run_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> str:
        raise RuntimeError("no kernel computes this model")

    monkeypatch.setattr(type(BACKENDS["cpu"]), "recurrent_forward", refuse)
    assert refusal(capsys, *FLAGS, "--out", str(tmp_path / "run")) == "error: no kernel computes this model\n"
    assert not (tmp_path / "run").exists()


def test_several_layers(tmp_path: Path) -> None:
    """FlashRNN has them too, from the same parameters, to the text that is generated."""
    scores = []
    for forward in ("batched", "flashrnn"):
        flags = ["--num-layers", "2", "--layer-norm", "--residual", "--forward", forward, "--steps", "1"]
        assert main([*FLAGS, *flags, "--out", str(tmp_path / forward)]) == 0
        scores.append(metrics_of(tmp_path / forward)[0]["validation_loss"])
        assert load_run(tmp_path / forward).model.num_layers == 2
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("model", ["gru", "elman", "slstm"])
def test_bfloat16_and_states_on_flashrnn(model: str, book: Path, tmp_path: Path) -> None:
    """It needs no processor with such products, and carries its own states."""
    flags = ["--task", "text", "--data", str(book), "--stateful", "--segment-length", "4"]
    flags += ["--forward", "flashrnn", "--model", model, "--precision", "bfloat16", "--eps", "0.0625"]
    assert main([*FLAGS, *flags, "--steps", "2", "--out", str(tmp_path / "run")]) == 0
    ((_, arithmetic),) = json.loads((tmp_path / "run" / "arithmetic.json").read_text())
    assert arithmetic["forward"] == f"flashrnn (vanilla), torch {torch.__version__}"
    assert arithmetic["precision"] == "bfloat16"
