"""Transforms by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .base import Transform, chain
from .momentum import momentum
from .scaling import clip_coeffs, clip_norm, scale, scale_by_lr
from .shaping import centred_rank, sign, z_score


class Kind(NamedTuple):
    """How a transform is built: its function, and its arguments in order with their types."""

    build: Callable[..., Transform]
    arguments: dict[str, Callable[[str], float]]


TRANSFORMS: dict[str, Kind] = {
    "scale": Kind(scale, {"factor": float}),
    "scale-by-lr": Kind(scale_by_lr, {}),
    "clip-coeffs": Kind(clip_coeffs, {"limit": float}),
    "clip-norm": Kind(clip_norm, {"limit": float}),
    "centred-rank": Kind(centred_rank, {}),
    "z-score": Kind(z_score, {}),
    "sign": Kind(sign, {}),
    "momentum": Kind(momentum, {"beta": float, "window": int}),
}
"""Every transform by the name that `--transforms` takes."""


def parse_transforms(text: str) -> Transform:
    """The chain of a text such as "clip-norm:1,z-score,momentum:0.9:8"; the empty text is the chain of none.

    Raises ValueError for an unknown name and for arguments that the transform does not take.
    """
    return chain(*(_parse(item.strip()) for item in text.split(","))) if text.strip() else chain()


def _parse(item: str) -> Transform:
    name, *values = item.split(":")
    kind = TRANSFORMS.get(name)
    if kind is None:
        raise ValueError(f"unknown transform {name!r}: choose from {', '.join(_usage(each) for each in TRANSFORMS)}")
    try:
        arguments = [convert(value) for convert, value in zip(kind.arguments.values(), values, strict=True)]
    except ValueError:
        raise ValueError(f"{item!r} does not fit {_usage(name)}: give numbers for what follows the name") from None
    return kind.build(*arguments)


def _usage(name: str) -> str:
    return ":".join([name, *(argument.upper() for argument in TRANSFORMS[name].arguments)])
