"""The kernels as functions on tensors.

p(seed) is the probe of a seed: a Rademacher probe (`zo_kernels.philox`), or one of another distribution
(`zo_kernels.distributions`) where an op has that argument. Element i of a tensor is element j = offset + i of the flat
parameter space, and p_j is a function of (seed, distribution, j) alone.

Tensors may have any shape. They must be contiguous and of dtype float32, float64, bfloat16 or float16. The ops compute
in float64 for float64 tensors and in float32 for all others, and round to the dtype once. Every backend returns the
same bits (payloads of NaNs apart); the recurrent forwards agree up to the rounding of their arithmetic.

Seeds are integers modulo 2^64: Python integers in [-2^63, 2^64), or int64 tensors that hold the 64 bits.

No op is differentiable. Call them under `torch.no_grad()` on tensors that require gradients; RuntimeError says so.

All ops raise TypeError for an argument of a wrong type or dtype, and ValueError for a wrong shape, device, layout,
offset or distribution and for a scalar that is not finite. No tensor has been written then.
"""

from __future__ import annotations

from .accumulate import accumulate_probes_
from .activity import recurrent_activity
from .apply import apply_probe, apply_probe_, apply_probes, probe, swap_probe_
from .dnc import dnc_nats, dnc_score
from .recurrent import recurrent_forward, recurrent_logits, recurrent_nats, recurrent_score

__all__ = [
    "accumulate_probes_",
    "apply_probe",
    "apply_probe_",
    "apply_probes",
    "dnc_nats",
    "dnc_score",
    "probe",
    "recurrent_activity",
    "recurrent_forward",
    "recurrent_logits",
    "recurrent_nats",
    "recurrent_score",
    "swap_probe_",
]
