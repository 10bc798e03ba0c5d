"""Ranks that were started otherwise end before anything is made, and another process can end a run but not use it."""

import pickle
import threading
import time
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from tests.train.crashes import launch
from tests.train.runs import SMALL
from zo_kernels.distributed.agreement import describe_differences
from zo_kernels.durable.share import _form, _read_forms
from zo_kernels.errors import UsageError
from zo_kernels.models import build_model
from zo_kernels.train.api import _terms_of
from zo_kernels.train.config import TrainConfig, as_json, from_json
from zo_kernels.train.defaults import default_config

CHANGES: dict[str, Any] = {
    **{"seed": 1, "lr": 0.1, "probes": 7, "balance": True, "check_every": 3, "split": "batch", "out": "elsewhere"},
    **{"timeout": 3.0, "micro_batch_size": 2, "precision": "bfloat16", "transforms": "clip-norm:1", "lr_search": True},
    **{"log": ("tensorboard",), "repair": True, "allow_other_arithmetic": True},
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_flag_that_differs_is_named(name: str) -> None:
    config = default_config("copy", device="cpu")
    other = replace(config, **{name: CHANGES[name]})
    said = describe_differences([_terms_of(config), _terms_of(other)])
    flag = "--lr" if name == "lr_search" else "--" + name.replace("_", "-")
    value = "0.3" if name == "lr_search" else getattr(config, name)
    was = "not given" if value in (None, "", ()) else value
    assert f"but {flag} is {was} on rank 0 and " in said
    assert said.count(" is ") == 1


def test_threads_may_differ() -> None:
    config = default_config("copy", device="cpu")
    assert len(_terms_of(config)) == len(fields(TrainConfig)) - 2 + 4  # without threads and lr_search
    assert not describe_differences([_terms_of(config), _terms_of(replace(config, threads=1))])


@pytest.mark.parametrize("name", ["backend", "isa", "forward", "zo_kernels"])
def test_arithmetic_that_differs_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config, allowed = (default_config("copy", device="cpu", allow_other_arithmetic=allow) for allow in (False, True))
    terms, allowed_terms = _terms_of(config), _terms_of(allowed)
    from zo_kernels.train import arithmetic

    original = arithmetic.arithmetic_of
    monkeypatch.setattr(arithmetic, "arithmetic_of", lambda c: {**original(c), name: "another"})
    said = describe_differences([terms, _terms_of(config)])
    assert said.startswith("the processes must be started alike, but the ")
    assert said.endswith("on rank 0 and another on rank 1")
    assert not describe_differences([allowed_terms, _terms_of(allowed)])


def test_a_rank_with_other_flags_ends_all(tmp_path: Path) -> None:
    arguments = [*SMALL, "--out", str(tmp_path / "run")]
    ends = launch(arguments, 3, own={1: ["--balance", "--check-every", "3"]}).finish()
    for rank, (code, said) in enumerate(ends):
        assert code == 2
        assert said == (
            f"rank {rank}: error: the processes must be started alike, but --balance is False on ranks 0, 2 and True "
            "on rank 1; --check-every is 100 on ranks 0, 2 and 3 on rank 1\n"
        )
    assert not (tmp_path / "run").exists()


class Command:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def attack(store: TCPStore, content: bytes, is_over: Callable[[], bool]) -> None:
    """Replaces what rank 0 announces, as soon as there is a round, until it is over."""
    while not store.check(["zo_kernels/round"]):
        time.sleep(0.001)
    name = store.get("zo_kernels/round")[32:].decode()
    while not is_over():
        for number in range(1, 4):
            store.set(f"{name}/part/0/{number}", content)  # type: ignore[arg-type]
        time.sleep(0.002)


def test_another_process_with_the_address_of_the_store_runs_nothing(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=12))
    is_over = threading.Event()
    thread = threading.Thread(target=attack, args=(store, pickle.dumps([Command(mark)]), is_over.is_set))
    thread.start()
    ends = launch([*SMALL, "--out", str(tmp_path / "run")], 2, port=store.port).finish()
    is_over.set()
    thread.join()
    assert [code for code, _ in ends] == [2, 2]
    assert "was not written with this rank's secret" in ends[1][1]
    assert all(said.startswith(f"rank {rank}: error: ") for rank, (_, said) in enumerate(ends))
    assert not mark.exists()


def test_forms_of_other_sizes_are_refused() -> None:
    model = build_model("lstm", 7, embed_dim=4, hidden_size=8, num_heads=2, seed=0).state_dict()
    own = [[name, *_form(x)] for name, x in model.items()]
    packed, found = _read_forms([{"items": []}, [*own, ["solver.0", "float64", [3, 5]]]], own)
    assert packed == {"items": []}
    assert found[-1] == ("solver.0", torch.float64, [3, 5])
    for forms in (
        own[1:],
        [*own, ["solver.0", "float32", [1 << 60]]],
        [*own, ["solver.0", "float32", [-1, -1]]],
        [*own, ["solver.0", "float32", [1.0]]],
        [*own, ["solver.0", "object", [1]]],
        [*own, ["solver.0", "float32"]],
        [*own, *[["solver.0", "float32", [1 << 24]]] * 5],
    ):
        with pytest.raises(ValueError, match=r"other parameters|no known form|would have \d+ bytes"):
            _read_forms([{"items": []}, forms], own)
    for value in (None, {}, [1], [1, 2], "state"):
        with pytest.raises(ValueError, match="other parameters"):
            _read_forms(value, own)


def test_a_config_is_read_as_config_json_is() -> None:
    config = default_config("copy", device="cpu", out="runs/copy", log=["tensorboard"])
    assert from_json(as_json(config), "it") == config
    with pytest.raises(UsageError, match="it is not the config of a run"):
        from_json(as_json(config).replace("800", '"many"'), "it")
