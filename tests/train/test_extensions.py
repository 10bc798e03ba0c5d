"""Tasks, models, estimators and transforms of other modules: by name, in every program, and only with consent."""

import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.train.runs import SMALL, weights_of
from zo_kernels.generate import load_run
from zo_kernels.generate.__main__ import main as generate
from zo_kernels.plot.__main__ import main as plot
from zo_kernels.replay import replay
from zo_kernels.replay.__main__ import main as replay_main
from zo_kernels.train import default_config
from zo_kernels.train.__main__ import main
from zo_kernels.train.config import imports_of

MODULE = """
import numpy as np, torch
from dataclasses import replace
from pathlib import Path
from zo_kernels.estimators import CentralDifference
from zo_kernels.models import LSTM
from zo_kernels.tasks import Batch, Task
from zo_kernels.transforms import scale

Path(__file__).with_suffix(".imported").touch()

class Parity(Task):
    defaults = {"context_length": 6, "lr": 0.25}
    symbols, vocab_size, reference_losses = ("0", "1"), 2, {"chance": 0.693}

    def __init__(self, *, batch_size, seed, context_length, unused=3):
        if context_length == 13:
            raise KeyError("thirteen")
        self.shape, self.seed = (batch_size, context_length), seed

    def batch(self, step):
        tokens = torch.from_numpy(np.random.default_rng([self.seed, step]).integers(2, size=self.shape))
        return Batch(tokens, tokens.cumsum(1) % 2)

    def validation_batches(self):
        return {"validation": [self.batch(2**40)]}

class Mine(LSTM):
    pass

class Small(LSTM):
    defaults = {"embed_dim": 3, "hidden_size": 6, "lr": 0.125, "steps": 2}

class Wrong(LSTM):
    defaults = {"embed_dim": "three"}

class WithModel(Parity):
    defaults = {"context_length": 6, "model": __name__ + ":Small", "lr": 0.5}

class Halved(CentralDifference):
    def slopes(self, losses, *arguments, **keywords):
        return super().slopes(losses, *arguments, **keywords) / 2

class Needy(Parity):
    def __init__(self, *, batch_size, seed, colour):
        pass

class Misnamed(Parity):
    defaults = {"colour": 3}

class Unfinished(Task):
    defaults = {}

def halve(factor=0.5):
    return scale(factor)

def nothing():
    return None

three = 3
"""

_numbers = itertools.count()


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a module of one's own, which is not imported yet."""
    name = f"mine_{next(_numbers)}"
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    yield name
    sys.modules.pop(name, None)


@pytest.fixture
def forget(module: str, tmp_path: Path) -> Callable[[], None]:
    """Makes it as if the module had never been imported."""

    def forgotten() -> None:
        sys.modules.pop(module, None)
        (tmp_path / "modules" / f"{module}.imported").unlink(missing_ok=True)

    return forgotten


def names(module: str) -> list[str]:
    return [
        *("--task", f"{module}:Parity", "--model", f"{module}:Mine", "--estimator", f"{module}:Halved"),
        *("--transforms", f"{module}:halve:0.5,clip-norm:9,{module}:halve", *SMALL),
    ]


def test_names_are_kept_in_all_programs(
    module: str, tmp_path: Path, forget: Callable[[], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run, marker = tmp_path / "run", tmp_path / "modules" / f"{module}.imported"
    assert main([*names(module), "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    assert (config["task"], config["context_length"], config["lr"]) == (f"{module}:Parity", 6, 0.25)
    commands: dict[str, Callable[[list[str]], int]] = {"resume": main, "fork": main, "gen": generate, "re": replay_main}
    arguments = {
        "resume": ["--resume", str(run)],
        "fork": ["--fork", str(run), "--steps", "7", "--out", str(tmp_path / "fork")],
        "gen": ["--run", str(run), "--prompt", "01", "--tokens", "2"],
        "re": [str(run), "--out", str(tmp_path / "weights")],
    }
    for name, command in commands.items():
        forget()
        capsys.readouterr()
        assert command(arguments[name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {run} names code outside zo_kernels ({module}:")
        assert "--allow-import or set ZO_KERNELS_ALLOW_IMPORT=1" in error
        assert error.count("\n") == 1
        assert not marker.exists()
        assert command([*arguments[name], "--allow-import"]) == 0
        assert marker.exists()
    for name, weight in weights_of(run).items():
        assert torch.equal(replay(run, allow_import=True).weights[name], weight)
    forget()
    assert plot([str(run), "--out", str(tmp_path / "plot.png")]) == 0
    assert not marker.exists()


def test_the_environment_allows_imports(module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main([*names(module), "--out", str(tmp_path / "run")]) == 0
    monkeypatch.setenv("ZO_KERNELS_ALLOW_IMPORT", "1")
    assert main(["--resume", str(tmp_path / "run")]) == 0
    assert load_run(tmp_path / "run").symbols == ("0", "1")


def test_a_config_does_not_allow_its_own_imports(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main([*names(module), "--allow-import", "--out", str(run)]) == 0
    assert json.loads((run / "config.json").read_text())["allow_import"]
    capsys.readouterr()
    assert main(["--resume", str(run)]) == 2
    assert "names code outside zo_kernels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"task": "evil:Task"}, ["evil:Task"]),
        ({"model": "evil.inner:Model"}, ["evil.inner:Model"]),
        ({"estimator": "evil:E"}, ["evil:E"]),
        ({"transforms": "sign, evil:f:1,other.module:g"}, ["evil:f", "other.module:g"]),
        ({"transforms": "scale:inf,momentum:0.9:8"}, []),
    ],
)
def test_each_name_alone_needs_consent(changes: dict[str, str], found: list[str]) -> None:
    assert imports_of(replace(default_config(), **changes)) == found


def test_each_of_them_is_used(module: str, tmp_path: Path) -> None:
    def weights(*flags: str) -> torch.Tensor:
        out = tmp_path / "-".join(flags).replace(":", "_")
        assert main([*SMALL, "--steps", "1", *flags, "--out", str(out)]) == 0
        return weights_of(out)["output_weight"]

    plain, halved = weights("--lr", "0.1"), weights("--transforms", "scale:0.5")
    assert not torch.equal(plain, halved)
    assert torch.equal(weights("--lr", "0.3", "--transforms", f"{module}:halve"), halved)
    assert torch.equal(weights("--estimator", f"{module}:Halved"), halved)
    assert torch.equal(weights("--model", f"{module}:Mine", "--transforms", "scale:0.5"), halved)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--task", "{m}:Nothing"], "the module {m} has no Nothing, which {m}:Nothing needs"),
        (["--task", "{m}:Mine"], "{m}:Mine is not a subclass of Task: name a class that is"),
        (["--task", "{m}:three"], "{m}:three is not a subclass of Task: name a class that is"),
        (["--task", "no_module.at_all:Task"], "there is no module no_module, which no_module.at_all:Task needs: start"),
        (["--task", "{m}.inner:Task"], "there is no module {m}.inner, which {m}.inner:Task needs: start"),
        (["--task", "{m}:Needy"], "the task {m}:Needy needs colour, which is no flag: give it a default value"),
        (["--task", "{m}:Misnamed"], "the defaults of {m}:Misnamed must be a dict with the names of flags, not colour"),
        (["--task", "{m}:Unfinished"], "{m}:Unfinished can't be built, for it raised TypeError (Can't instantiate"),
        (
            ["--task", "{m}:Parity", "--context-length", "13"],
            "{m}:Parity can't be built, for it raised KeyError ('thirteen'): ZO_KERNELS_TRACEBACK=1 shows where",
        ),
        (["--task", "{m}:Parity", "--max-length", "3"], "--max-length does not apply to the task {m}:Parity"),
        (["--model", "{m}:Parity"], "{m}:Parity is not a subclass of LanguageModel: name a class that is"),
        (["--model", "{m}:Wrong"], "in the defaults of {m}:Wrong, embed_dim must be of type int, not 'three'"),
        (["--model", "{m}:Mine", "--memory-slots", "3"], "the model {m}:Mine has no memory: leave memory_slots out"),
        (["--estimator", "{m}:halve"], "{m}:halve is not a subclass of Estimator: name a class that is"),
        (["--transforms", "{m}:three"], "{m}:three is not a function: name one that is"),
        (["--transforms", "{m}:nothing"], "{m}:nothing does not return a Transform, but NoneType: correct it"),
        (["--transforms", "{m}:halve:x"], "'{m}:halve:x' does not fit {m}:halve: give a number for each argument"),
        (["--transforms", "{m}:halve:1:2"], "{m}:halve can't be built, for it raised TypeError (halve() takes"),
    ],
)
def test_bad_names_are_one_sentence(
    flags: list[str], sentence: str, module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *(flag.format(m=module) for flag in flags), "--out", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: " + sentence.format(m=module))
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("code", ["1 / 0", "import no_such_module", "x = ", "raise SystemExit(3)"])
def test_a_module_that_raises_is_one_sentence(
    code: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "modules" / f"{module}.py"
    file.write_text(code + "\n")
    assert main(["--task", f"{module}:Parity"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {module}:Parity can't be imported, for it raised ")
    assert error.endswith("ZO_KERNELS_TRACEBACK=1 shows where\n")
    assert error.count("\n") == 1
    monkeypatch.setenv("ZO_KERNELS_TRACEBACK", "1")
    assert main(["--task", f"{module}:Parity"]) == 2
    assert f'File "{file}", line 1' in capsys.readouterr().err


def test_a_model_has_defaults_of_its_own(module: str, tmp_path: Path, forget: Callable[[], None]) -> None:
    name, run, fork = f"{module}:Small", tmp_path / "run", tmp_path / "fork"
    assert main(["--model", name, "--probes", "2", "--lr", "0.25", "--out", str(run)]) == 0
    forget()
    assert main(["--resume", str(run), "--allow-import"]) == 0
    forget()
    assert main(["--fork", str(run), "--steps", "3", "--allow-import", "--out", str(fork)]) == 0
    for folder, steps in ((run, 2), (fork, 3)):
        config = json.loads((folder / "config.json").read_text())
        found = [config[key] for key in ("model", "embed_dim", "hidden_size", "lr", "steps", "max_length")]
        assert found == [name, 3, 6, 0.25, steps, 5]  # lr was given, and the task has max_length
        forget()
        assert load_run(folder, allow_import=True).model.hidden_size == 6
        assert replay(folder, allow_import=True).weights["embedding"].shape == (5, 3)
    both = default_config(f"{module}:WithModel")
    assert (both.model, both.hidden_size, both.lr) == (name, 6, 0.5)  # those of the task that names it come first
    asked = default_config(f"{module}:WithModel", model=name)
    assert (asked.hidden_size, asked.lr, asked.context_length) == (6, 0.125, 6)
    assert default_config(model=name, preset="paper-lstm-100k").hidden_size > 6


def test_installed_packages_name_tasks_and_models(
    module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    installed = tmp_path / "modules" / "mine-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text(
        f"[zo_kernels.tasks]\nparity = {module}:Parity\nbroken = {module}:none\n"
        f"[zo_kernels.models]\nmine-lstm = {module}:Mine\n"
        f"[zo_kernels.estimators]\nhalved = {module}:Halved\nbad = {module}:halve\n"
        f"[zo_kernels.transforms]\nhalve = {module}:halve\nlost = {module}:none\nthree = {module}:three\n"
    )
    run = tmp_path / "run"
    own = ["--model", "mine-lstm", "--estimator", "halved", "--transforms", "halve:0.5,scale:4"]
    assert main(["--task", "parity", *own, *SMALL, "--out", str(run)]) == 0
    assert main(["--task", "parity", *SMALL, "--out", str(tmp_path / "plain")]) == 0
    assert torch.equal(weights_of(run)["output_weight"], weights_of(tmp_path / "plain")["output_weight"])
    assert main(["--resume", str(run)]) == 0  # the package was installed by the user, not named by the folder
    assert generate(["--run", str(run), "--prompt", "01", "--tokens", "2"]) == 0
    assert default_config("parity").lr == 0.25
    capsys.readouterr()
    assert imports_of(default_config(transforms="halve:inf,halve:nan")) == []
    for flag, name, sentence, known in (
        ("task", "broken", f"the module {module} has no none, which broken ({module}:none) needs", ""),
        ("task", "other", "unknown task 'other': choose one of copy, ", "pairs, series, broken, parity"),
        ("model", "other", "unknown model 'other': choose one of lstm, ", "paper-dnc, mine-lstm"),
        ("estimator", "other", "unknown estimator 'other': choose one of cd, ", "2-spsa, bad, halved"),
        ("estimator", "bad", "bad is not a subclass of Estimator: name a class that is", ""),
        ("transforms", "other:1", "unknown transform 'other': choose from scale:FACTOR, ", "halve, lost, three"),
        ("transforms", "lost", f"the module {module} has no none, which lost ({module}:none) needs", ""),
        ("transforms", "three", "three is not a function: name one that is", ""),
        ("transforms", "halve:x", "'halve:x' does not fit halve: give a number for each argument", ""),
        ("transforms", "halve:", "'halve:' does not fit halve: give a number for each argument", ""),
    ):
        assert main([f"--{flag}", name]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: {sentence}")
        assert known in error
        assert error.count("\n") == 1
