"""Saved decoding states: what is in them, and which are refused."""

import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from zo_kernels.generate import DecodingState, LoadedRun, UsageError, load_run, load_state, read_prompt, save_state


@pytest.fixture
def state(run: LoadedRun) -> DecodingState:
    return read_prompt(run.model, run.encode("abc|"))


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata())


def test_file_holds_what_the_documentation_says(run: LoadedRun, state: DecodingState, tmp_path: Path) -> None:
    save_state(tmp_path / "state", state, run)
    tensors = load_file(tmp_path / "state")
    states = dict(zip(run.model.state_names, state.states, strict=True))
    assert tensors.keys() == states.keys() | {"logits"}
    assert torch.equal(tensors["logits"], state.logits)
    assert all(torch.equal(tensors[name], tensor) for name, tensor in states.items())
    metadata = metadata_of(tmp_path / "state")
    assert re.fullmatch("[0-9a-f]{32}", metadata.pop("digest"))
    assert metadata == {
        "format": "zo_kernels decoding state",
        "version": "1",
        "model": run.path.name,
        "weights_sha256": run.weights_sha256,
    }
    (tmp_path / "usual").touch()
    assert (tmp_path / "state").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert {path.name for path in tmp_path.iterdir()} == {"state", "usual"}


def test_views_of_one_tensor_can_be_saved(folders: dict[str, Path], tmp_path: Path) -> None:
    run = load_run(folders["lstm"])
    h, c = torch.randn(1, 4, 2, 2).permute(3, 2, 0, 1)
    save_state(tmp_path / "state", DecodingState((h, c), torch.zeros(1, 5)), run)
    loaded = load_state(tmp_path / "state", run)
    assert all(torch.equal(a, b) for a, b in zip(loaded.states, (h, c), strict=True))


def test_a_state_may_be_replaced_and_nothing_else(run: LoadedRun, state: DecodingState, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, state, run)
    save_state(path, read_prompt(run.model, run.encode("b"), load_state(path, run)), run)
    assert not torch.equal(load_state(path, run).logits, state.logits)

    weights = run.path / "weights.safetensors"
    (tmp_path / "notes").write_text("precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for taken in (weights, tmp_path / "notes", tmp_path, tmp_path / "dangling"):
        with pytest.raises(UsageError, match=f"{taken} exists and is not a saved state"):
            save_state(taken, state, run)
    assert load_run(run.path).weights_sha256 == run.weights_sha256
    assert (tmp_path / "notes").read_text() == "precious"
    assert {path.name for path in tmp_path.iterdir()} == {"state", "notes", "dangling"}


def test_a_failed_save_leaves_the_earlier_state(
    run: LoadedRun, state: DecodingState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    save_state(path, state, run)
    before = path.read_bytes()
    for failure in (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt()):

        def failing(*_: object, failure: BaseException = failure) -> None:
            raise failure

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises((UsageError, KeyboardInterrupt)) as raised:
            save_state(path, state, run)
        if isinstance(failure, OSError):
            assert str(raised.value) == f"can't write {path}: No space left on device"
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_a_state_of_other_weights_is_refused(folders: dict[str, Path], tmp_path: Path, folder: Path) -> None:
    lstm = load_run(folders["lstm"])
    save_state(tmp_path / "state", read_prompt(lstm.model, lstm.encode("a")), lstm)
    load_state(tmp_path / "state", load_run(folder))  # the same weights in another folder
    weights = load_file(folder / "weights.safetensors")
    weights["bias"] += 1
    save_file(weights, folder / "weights.safetensors")
    for other in (folders["gru"], folder):
        with pytest.raises(UsageError, match=f"is a state of other weights than those of {other}: save it again"):
            load_state(tmp_path / "state", load_run(other))


def test_what_is_not_a_state_is_refused(run: LoadedRun, state: DecodingState, tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_state(path, state, run)
    metadata, tensors = metadata_of(path), load_file(path)

    def refusal() -> str:
        with pytest.raises(UsageError) as error:
            load_state(path, run)
        return str(error.value)

    save_file(tensors, path, metadata | {"version": "2"})
    assert refusal() == f"{path} is a state of format version 2, but this one reads 1"
    save_file(tensors, path, {"format": metadata["format"]})
    assert refusal() == f"{path} is not a saved state: it was not written by --save-state"
    save_file(tensors, path)
    assert refusal() == f"{path} is not a saved state: it was not written by --save-state"
    save_file({**tensors, "logits": tensors["logits"] + 1}, path, metadata)
    assert refusal() == f"{path} is damaged: its content is not what was written, save it again"
    del metadata["digest"]  # as in files of earlier versions
    save_file(tensors, path, metadata)
    assert torch.equal(load_state(path, run).logits, state.logits)
    save_file({**tensors, "h": tensors["h"][..., :1].clone()}, path, metadata)
    assert refusal() == f"{path} is damaged: its tensors don't fit its weights, save it again"
    save_file({"logits": tensors["logits"]}, path, metadata)
    assert refusal() == f"{path} is damaged: its tensors don't fit its weights, save it again"
    path.write_bytes(b"")
    assert refusal().startswith(f"{path} is not a saved state (")
    path.unlink()
    assert refusal() == f"can't read {path}: No such file or directory"
