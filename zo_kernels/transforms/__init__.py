"""Transforms rewrite a seed-space gradient: they take the estimator's table and give the one the optimizer applies.

transform = chain(clip_norm(1.0), momentum(0.9, window=8))  # or get_transform("clip-norm:1,momentum:0.9:8")
state = transform.init()
gradient, state = transform.update(gradient, state, Context(step=0, lr=2**-6, numel=d, eps=2**-7))
"""

from .adaptive import fzoo, meazo
from .agreement import agree
from .base import Context, State, Transform, chain
from .momentum import momentum
from .registry import TRANSFORMS, get_transform, parse_transforms
from .scaling import clip_coeffs, clip_norm, scale, scale_by_lr
from .shaping import centred_rank, sign, z_score

__all__ = [
    "TRANSFORMS",
    "Context",
    "State",
    "Transform",
    "agree",
    "centred_rank",
    "chain",
    "clip_coeffs",
    "clip_norm",
    "fzoo",
    "get_transform",
    "meazo",
    "momentum",
    "parse_transforms",
    "scale",
    "scale_by_lr",
    "sign",
    "z_score",
]
