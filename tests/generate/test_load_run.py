"""load_run: what it reads, and what it says of a folder that it can't use."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from zo_kernels.generate import LoadedRun, UsageError, load_run
from zo_kernels.generate.__main__ import main

Spoil = Callable[[Path], object]


def test_a_run_is_its_model_and_its_symbols(run: LoadedRun) -> None:
    assert run.model.name == run.path.name
    assert run.symbols == ("a", "b", "c", "d", "|")
    assert run.encode("d|a").tolist() == [[3, 4, 0]]
    assert run.decode([3, 4, 0]) == "d|a"
    assert not any(parameter.requires_grad for parameter in run.model.parameters())
    saved = load_file(run.path / "weights.safetensors")
    assert {name: True for name in saved} == {
        name: torch.equal(parameter, saved[name]) for name, parameter in run.model.named_parameters()
    }


def test_loading_draws_no_random_numbers(folder: Path) -> None:
    before = torch.get_rng_state()
    load_run(str(folder))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_large_vocabulary_is_not_shown_in_full(run: LoadedRun) -> None:
    large = LoadedRun(run.path, run.model, tuple(map(chr, range(0x4E00, 0x4E00 + 121))), run.weights_sha256)
    with pytest.raises(UsageError) as error:
        large.encode("x")
    assert str(error.value).endswith(f"{run.path / 'vocabulary.json'} lists its 121 characters")


def without(name: str) -> Spoil:
    return lambda folder: (folder / name).unlink()


def as_folder(name: str) -> Spoil:
    def spoil(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return spoil


def with_text(name: str, text: str) -> Spoil:
    return lambda folder: (folder / name).write_text(text)


def with_config(**changes: object) -> Spoil:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def with_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
    def spoil(folder: Path) -> None:
        weights = load_file(folder / "weights.safetensors")
        change(weights)
        save_file(weights, folder / "weights.safetensors")

    return spoil


MISFIT = "{run}/weights.safetensors does not fit config.json and vocabulary.json: "


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (without("config.json"), "{run} has no config.json: has the run ended"),
        (without("weights.safetensors"), "{run} has no weights.safetensors: has the run ended"),
        (without("vocabulary.json"), "{run} has no vocabulary.json: older versions did not write it; train again"),
        (as_folder("weights.safetensors"), "can't read {run}/weights.safetensors: Is a directory"),
        (as_folder("config.json"), "can't read {run}/config.json: Is a directory"),
        (with_text("config.json", "{{"), "{run}/config.json is not JSON (Expecting property name"),
        (with_text("config.json", "[]"), "{run}/config.json is not what a run writes: it holds '[]' and not an object"),
        (with_config(num_heads=...), "{run}/config.json is not the config of a run: it has no num_heads"),
        (with_config(model=...), "{run}/config.json is not the config of a run: it has no model"),
        (
            with_config(model="s4"),
            "{run}/config.json has an unknown model 's4': known are lstm, gru, elman, slstm, dnc, ",
        ),
        (with_config(model=[]), "{run}/config.json has an unknown model []: known are"),
        (with_config(num_heads=3), "{run}/config.json is not the config of a run: hidden_size 8 is not divisible"),
        (with_config(hidden_size="8"), "{run}/config.json is not the config of a run: hidden_size must be"),
        (with_text("vocabulary.json", "abcd|"), "{run}/vocabulary.json is not JSON ("),
        (with_text("vocabulary.json", '"abcd|"'), "{run}/vocabulary.json is not a vocabulary of characters, "),
        (with_text("vocabulary.json", '["a", "a"]'), "{run}/vocabulary.json is not a vocabulary of characters, "),
        (with_text("vocabulary.json", '["a", "bc"]'), "{run}/vocabulary.json is not a vocabulary of characters, "),
        (with_text("vocabulary.json", "[]"), "{run}/vocabulary.json is not a vocabulary of characters, "),
        (with_text("vocabulary.json", '["a", "b"]'), MISFIT + "embedding is [5, 4], not [2, 4]"),
        (with_text("weights.safetensors", "text"), "{run}/weights.safetensors is not a safetensors file ("),
        (with_config(hidden_size=16), MISFIT + "input_weight is [4, 2, 4, 4], not [4, 2, 8, 4]"),
        (with_config(hidden_size=10**9), MISFIT + "input_weight is [4, 2, 4, 4], not"),
        (
            with_config(model="dnc"),
            "{run}/config.json is not the config of a run: the model dnc has a memory: give memory",
        ),
        (with_config(memory_slots=4), "{run}/config.json is not the config of a run: the model lstm has no memory: "),
        (with_config(model="gru"), MISFIT + "input_weight is [4, 2, 4, 4], not [3, 2, 4, 4]"),
        (with_weights(lambda weights: weights.pop("bias")), MISFIT + "it has no bias"),
        (with_weights(lambda weights: weights.update(more=torch.ones(1))), MISFIT + "the model has no more"),
        (
            with_weights(lambda weights: weights.update(bias=weights["bias"].half())),
            MISFIT + "it holds numbers of torch.float16 and ",
        ),
        (
            with_weights(lambda w: w.update({k: v.long() for k, v in w.items()})),
            MISFIT + "it holds numbers of torch.int64",
        ),
        (
            with_weights(lambda weights: weights["output_bias"].fill_(math.nan)),
            "the largest logit is nan: the model's weights are not finite",
        ),
    ],
)
def test_a_spoilt_folder_is_one_sentence(
    spoil: Spoil, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(folder)
    assert main(["--run", str(folder), "--prompt", "a"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: " + sentence.format(run=folder))
    assert printed.err.count("\n") == 1
    assert printed.out in ("", "a\n")


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_precision_are_kept(dtype: torch.dtype, folder: Path) -> None:
    with_weights(lambda w: w.update({name: weight.to(dtype) for name, weight in w.items()}))(folder)
    run = load_run(folder)
    assert {parameter.dtype for parameter in run.model.parameters()} == {dtype}
    assert main(["--run", str(folder), "--prompt", "a"]) == 0


def test_another_vocabulary_of_the_same_size_is_refused(folder: Path) -> None:
    (folder / "vocabulary.json").write_text(json.dumps(["a", "b", "c", "e", "|"]))
    with pytest.raises(UsageError, match=r"vocabulary\.json is not the vocabulary that .* was saved with: restore it"):
        load_run(folder)
    with_weights(lambda weights: None)(folder)  # as an older version saved them
    assert load_run(folder).symbols == ("a", "b", "c", "e", "|")
