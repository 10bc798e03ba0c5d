"""Transforms by the names of the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from ..extensions import call, entry_names, find_function, is_import
from .adaptive import fzoo, meazo
from .base import Transform, chain
from .momentum import momentum
from .scaling import clip_coeffs, clip_norm, scale, scale_by_lr
from .shaping import centred_rank, sign, z_score


class Kind(NamedTuple):
    """The function that builds a transform, and the names and types of its arguments in order."""

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
    "fzoo": Kind(fzoo, {}),
    "meazo": Kind(meazo, {"beta": float}),
    "momentum": Kind(momentum, {"beta": float, "window": int}),
}
"""Every transform by the name that `--transforms` takes."""

_GROUP = "zo_kernels.transforms"


def get_transform(transforms: str | Transform | Iterable[str | Transform]) -> Transform:
    """Chains what is given: a transform, a text as `parse_transforms` takes it, or a list of either.

    One that is not in a list is treated as a list of one, so that the names in the chain's state are the same.

    Raises ValueError for a text that `parse_transforms` refuses, and TypeError for anything else.
    """
    if isinstance(transforms, (str, Transform)):  # a Transform is a tuple, but not a list of transforms
        return chain(_get_one(transforms))
    if not isinstance(transforms, Iterable):
        raise _wrong_type(transforms)
    return chain(*map(_get_one, transforms))


def parse_transforms(text: str) -> Transform:
    """Chains the transforms of a text such as "clip-norm:1,z-score,momentum:0.9:8". The empty text has none.

    package.module:function:1:0.5 calls a function of your own with numbers. It returns a `Transform`. NAME:1:0.5 does
    the same with the function of an entry point of the group zo_kernels.transforms.

    Raises ValueError for a name that is unknown or can't be imported, and for arguments that do not fit the transform.
    """
    return chain(*(_parse(item.strip()) for item in text.split(","))) if text.strip() else chain()


def _get_one(transform: str | Transform) -> Transform:
    if isinstance(transform, Transform):
        return transform
    if isinstance(transform, str):
        return parse_transforms(transform)
    raise _wrong_type(transform)


def _wrong_type(given: object) -> TypeError:
    if callable(given):  # most often clip_norm instead of clip_norm(1.0)
        name = getattr(given, "__name__", repr(given))
        return TypeError(f"{name} is not a transform: call the function that builds one, as in clip_norm(1.0)")
    return TypeError(f"transforms must be a Transform, a text or a list of these, not {given!r}: known are {_known()}")


def _parse(item: str) -> Transform:
    name, *values = item.split(":")
    kind = TRANSFORMS.get(name)
    if kind is None:
        own = imported_name(item) or name
        function = find_function(own, _GROUP)
        if function is None:
            known = ", ".join([_known(), *entry_names(_GROUP)])
            raise ValueError(f"unknown transform {name!r}: choose from {known}")
        return _build_own(item, own, function)
    try:
        arguments = [convert(value) for convert, value in zip(kind.arguments.values(), values, strict=True)]
    except ValueError:
        raise ValueError(f"{item!r} does not fit {_usage(name)}: give a number for each argument") from None
    return kind.build(*arguments)


def imported_name(item: str) -> str | None:
    """Returns the package.module:function that one transform of a text names, or None if it names none."""
    name = ":".join(item.strip().split(":")[:2])
    known = name.partition(":")[0]  # of scale:inf, which has the form of an import
    return name if is_import(name) and known not in TRANSFORMS and known not in entry_names(_GROUP) else None


def _build_own(item: str, name: str, function: Callable[..., Any]) -> Transform:
    try:
        numbers = [float(value) for value in item.removeprefix(name).split(":")[1:]]
    except ValueError:
        raise ValueError(f"{item!r} does not fit {name}: give a number for each argument") from None
    transform = call(name, function, *(int(number) if number.is_integer() else number for number in numbers))
    if not isinstance(transform, Transform):
        raise ValueError(f"{name} does not return a Transform, but {type(transform).__name__}: correct it")
    return transform


def _usage(name: str) -> str:
    return ":".join([name, *(argument.upper() for argument in TRANSFORMS[name].arguments)])


def _known() -> str:
    return ", ".join(map(_usage, TRANSFORMS))
