"""The steps of a GPU day in their order: what is worth most comes first.

Seconds are bold estimates for an H200: what was begun and runs past the end is left to the next run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from .sizes import REHEARSAL, SIZES
from .steps import Step

_OPS = ("probe", "apply_probe_", "apply_probe", "apply_probes", "swap_probe_", "accumulate_probes_")

_CELLS = ("lstm", "gru", "elman")

_NEEDS = {
    "kernel": "check.population.kernel",
    "batched": "check.population.lstm",
    "flash": "check.flash.lstm.float32",
    "flash-bfloat16": "check.flash.lstm.bfloat16",
}
"""The check of each way to evaluate a population."""

_SECONDS = {"100k": 6.0, "1M": 8.0, "10M": 15.0, "100M": 12.0, "1.1B": 40.0}
"""Of the steps of a model of Table 1."""

_COMPILED = 45.0
"""Of what flashrnn compiles at a call with another cell, precision or number of heads."""


def all_steps(device: str) -> list[Step]:
    """Those for "cuda", or their rehearsal on the "cpu", which has no population kernel, streams and graphs."""
    if device == "cpu":
        steps = [
            *_check_ops("cpu", 1, gpu=False),
            *_measure_ops("cpu", 1),
            *_check_models(gpu=False),
            *_steps_of("batched", *REHEARSAL),
            *_flash_of_the_bars(("batched", "flash")),
            *_rest_of_flash(REHEARSAL),
        ]
        return [replace(step, group="rehearsal") for step in steps]  # to start a worker takes longer than most steps
    return [
        *_check_ops("cuda", 2, gpu=True),
        *_measure_ops("cuda", 6),
        *_check_models(gpu=True),
        *_steps_of("kernel", "100k"),
        *_steps_of("batched", "1M", "10M", "1.1B", "100M", "100k"),
        *_flash_of_the_bars(("kernel", "batched", "flash")),
        *_check_ops("triton", 8, gpu=True),
        *_measure_ops("triton", 8),
        *_rest_of_flash(SIZES),
        *_check_ops("reference", 3, gpu=True, launches=False),
    ]


def _check_ops(backend: str, seconds: float, *, gpu: bool, launches: bool = True) -> list[Step]:
    package = "triton" if backend == "triton" else None
    arguments = {"backend": backend}

    def check(what: str, function: str, **more: str) -> Step:
        return Step(
            f"check.ops.{backend}.{what}",
            f"bench.gpu.{function}",
            seconds,
            f"ops.{backend}",
            {**arguments, **more},
            package=package,
        )

    steps = [check(op, "check_ops:parity", op=op) for op in _OPS]
    if launches:
        steps += [check("large", "check_launch:large"), check("large_members", "check_launch:large_members")]
    if gpu and launches:
        steps += [check("stream", "check_launch:stream"), check("graph", "check_launch:graph")]
    return steps


def _measure_ops(backend: str, seconds: float) -> list[Step]:
    package = "triton" if backend == "triton" else None
    checks = {op: f"check.ops.{backend}.{op}" for op in (*_OPS, "large")}
    applied = tuple(checks[op] for op in ("apply_probe_", "apply_probe", "swap_probe_", "probe", "large"))
    summed = (checks["accumulate_probes_"], checks["large"])
    needs = {
        "apply": applied,
        "accumulate": summed,
        "usual": (checks["apply_probe_"], *summed),
        "members": (checks["apply_probes"],),
    }
    functions = {"apply": "apply", "accumulate": "accumulate", "usual": "over_usual", "members": "members"}
    return [
        Step(
            f"measure.ops.{backend}.{what}",
            f"bench.gpu.measure_ops:{functions[what]}",
            seconds,
            f"ops.{backend}",
            {"backend": backend},
            needs=checked,
            package=package,
        )
        for what, checked in needs.items()
    ]


def _check_models(gpu: bool) -> list[Step]:
    steps = [
        Step("check.optimizer", "bench.gpu.check_training:optimizer", 5, "models"),
        _check_cell("lstm"),
        Step("check.training", "bench.gpu.check_training:training", 5, "models"),
    ]
    if gpu:
        steps += [Step(_NEEDS["kernel"], "bench.gpu.check_population:kernel", 5, "models"), _correlation("kernel")]
    rest = [_check_cell("gru"), _check_cell("elman"), *(_check_cell(cell, "forward") for cell in _CELLS)]
    return [*steps, _correlation("batched"), *rest, *_check_kinds()]


def _check_kinds() -> list[Step]:
    steps = [
        Step(f"check.{what}", f"bench.gpu.check_kinds:{what}", 4, "models") for what in ("distributions", "replays")
    ]
    for name in ("dnc", "paper-dnc"):
        steps.append(Step(f"check.memory.{name}", "bench.gpu.check_kinds:memory", 4, "models", {"name": name}))
    steps.append(Step("check.bptt", "bench.gpu.check_kinds:bptt", 10, "models"))
    return steps + [
        Step(f"check.{what}", f"bench.gpu.check_processes:{what}", 5, "models") for what in ("exchange", "sharded")
    ]


def _check_cell(cell: str, what: str = "population") -> Step:
    function = {"population": "recurrent", "forward": "forward"}[what]
    return Step(f"check.{what}.{cell}", f"bench.gpu.check_population:{function}", 4, "models", {"cell": cell})


def _correlation(way: str) -> Step:
    target = "bench.gpu.measure_population:correlation"
    return Step(f"measure.correlation.{way}", target, 10, **_of_way(way, "models"), needs=(_NEEDS[way],))


def _steps_of(way: str, *names: str) -> list[Step]:
    """Optimizer steps of the models of Table 1."""
    needs = (_NEEDS[way], "check.optimizer", *(() if _is_flash(way) else ("check.training",)))
    return [
        Step(
            f"measure.step.{name}.{way}",
            "bench.gpu.measure_steps:step",
            _SECONDS[name] + (_COMPILED if _is_flash(way) else 0),
            **_of_way(way, "steps", name=name),
            needs=needs,
        )
        for name in names
    ]


def _flash_of_the_bars(ways: Sequence[str]) -> list[Step]:
    over_one_by_one = [
        Step(
            f"measure.population.{way}",
            "bench.gpu.measure_population:over_one_by_one",
            20,
            "flash",
            {"way": way},
            needs=tuple(dict.fromkeys((_NEEDS[way], _NEEDS["flash"]))),
            package="flashrnn",
        )
        for way in ways
    ]
    bfloat16 = [_check_flash("lstm", "bfloat16"), *_steps_of("flash-bfloat16", "1.1B")]
    return [_check_flash("lstm", "float32"), *over_one_by_one, *bfloat16]


def _rest_of_flash(names: Iterable[str]) -> list[Step]:
    cells = [_check_flash(cell, "float32") for cell in ("gru", "elman", "slstm")]
    steps = _steps_of("flash-bfloat16", *(name for name in reversed(list(names)) if name != "1.1B"))
    return [_correlation("flash-bfloat16"), *cells, *steps]


def _check_flash(cell: str, precision: str) -> Step:
    return Step(
        f"check.flash.{cell}.{precision}",
        "bench.gpu.check_flash:flash",
        _COMPILED,
        "flash",
        {"cell": cell, "precision": precision},
        package="flashrnn",
    )


def _is_flash(way: str) -> bool:
    return way.startswith("flash")


def _of_way(way: str, group: str, **arguments: str) -> dict[str, Any]:
    """What a step that measures this way has: flashrnn's have a worker of their own."""
    more = {"group": "flash", "package": "flashrnn"} if _is_flash(way) else {"group": group}
    return {**more, "arguments": {**arguments, "way": way}}
