"""`python -m bench.streamed_forward`: the streamed forward without a GPU: machine code, memory, precision; 10 minutes.

For the paper's sizes: registers and tensor core instructions of a time step, read from its machine code; the bytes of a
chunk of probes; bytes and operations of a step of 96 probes, which give its time if a GPU reaches the rates below. And
how L+ - L- of its arithmetic, emulated in float32, correlates with that in float64.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bench.report import RESULTS, machine, shown, write
from tests.backends.ahead_of_time import Compiler
from tests.backends.recurrent.streamed_code import streamed_forward
from tests.recurrent import Shape, make_batch, make_model, make_seeds
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.base import RecurrentWeights
from zo_kernels.backends.recurrent import batched, reference
from zo_kernels.backends.recurrent.streamed_plan import ROWS, Sizes, tiles_for
from zo_kernels.models import PRESETS

PROBES, BATCH, STEPS, VOCAB = 96, 1024, 10, 100
TENSOR_RATE, SHARED_RATE, MEMORY_RATE = 790e12, 7e12, 4.3e12
"""Of an H200: bfloat16 FLOP/s, bytes/s from the L2 cache to the multiprocessors, and bytes/s from memory.

The second is assumed: products of Triton in tiles of 128 x 256, which read a byte for 85 FLOP, reach 600 TFLOP/s on an
H100.
"""

INSTRUCTIONS = {80: "HMMA", 90: "HGMMA", 100: "UTCHMMA", 120: "HMMA"}


def paper_sizes(capability: tuple[int, int]) -> dict[str, Sizes]:
    found = {}
    for name in ("paper-lstm-10m", "paper-lstm-100m", "paper-lstm-1.1b"):
        preset = PRESETS[name]
        dim = preset.hidden_size // preset.num_heads
        tiles = tiles_for(dim, capability)
        found[name] = Sizes("lstm", VOCAB, preset.embed_dim, preset.num_heads, dim, tiles)
    return found


def predicted(name: str, sizes: Sizes) -> dict[str, Any]:
    """Seconds of a step on an H200 by what bounds them, and bytes of one probe."""
    padded, units = sizes.tiles.padded, sizes.tiles.units
    cells = 2.0 * PROBES * sizes.heads * BATCH * padded * STEPS
    products = cells * (STEPS - 1) / STEPS
    flop = products * 8 * padded + cells * 2 * sizes.words
    shared = products * (2 * padded / units + 8 * padded / ROWS) + cells * (
        8 + 8 + 2 + 2
    )  # table, c, h, h of the output
    memory = cells * (8 + 2 + 2 + 2)
    written = 2.0 * PROBES * 2 * sizes.heads * padded * (sizes.columns + sizes.words)
    return {
        "size": name,
        "D": sizes.dim,
        "padded": padded,
        "tensor cores, s": round(flop / TENSOR_RATE, 3),
        "L2 to multiprocessors, s": round(shared / SHARED_RATE, 3),
        "memory, s": round((memory + written) / MEMORY_RATE, 3),
        "GB a probe": round(sizes.probe_bytes(BATCH, VOCAB) / 1e9, 2),
    }


def machine_code() -> list[dict[str, Any]]:
    rows = []
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory() as folder:
        compiler = Compiler(Path(folder), monkeypatch)
        for capability, instruction in INSTRUCTIONS.items():
            for dim in (150, 300, 850):
                kernels = streamed_forward(compiler, capability, "lstm", dim, monkeypatch)
                kernel = [found for found in kernels if found.name == "time_step"][-1]
                tiles = tiles_for(dim, divmod(capability, 10))
                rows.append(
                    {
                        "architecture": kernel.arch,
                        "D": dim,
                        "tile": f"{ROWS} x {4 * tiles.units} x {tiles.depth}",
                        "registers": kernel.registers,
                        "spilled bytes": kernel.stack + kernel.local,
                        instruction: kernel.count(instruction + ".*"),
                        "MUFU": kernel.count("MUFU.*"),
                        "instructions": len(kernel.instructions),
                    }
                )
                print(rows[-1], flush=True)
    return rows


def emulated(
    weights: RecurrentWeights, batch: tuple[Tensor, Tensor], seeds: Tensor, eps: float, dtype: torch.dtype
) -> Tensor:
    """Nats [n, 2] of an LSTM: weights and hidden states on bfloat16's grid, tables in `dtype`, all else in float32."""
    (tokens, targets), parts = batch, []
    exact = RecurrentWeights.of(
        weights.cell,
        weights.offsets,
        [on_grid(w, name, eps) for name, w in zip(weights.names, weights.tensors, strict=True)],
    )
    for seed in seeds.tolist():
        probe = reference.probe_of(exact, seed)
        for alpha in (eps, -eps):
            member = reference.perturb(exact, alpha, probe)
            w = {name: x.float() for name, x in zip(member.names, member.tensors, strict=True)}
            table_VGND = (
                (torch.einsum("ve,gnde->vgnd", w["embedding"], w["input_weight"]) + w["bias"]).to(dtype).float()
            )
            h_NBD = c = torch.zeros(1)
            nats = 0.0
            for t in range(tokens.shape[1]):
                x_GNBD = table_VGND[tokens[:, t]].permute(1, 2, 0, 3)
                if t > 0:
                    x_GNBD = x_GNBD + torch.einsum("nbk,gndk->gnbd", h_NBD, w["recurrent_weight"])
                i, f, z, o = x_GNBD.unbind()
                c = f.sigmoid() * c + i.sigmoid() * z.tanh()
                h_NBD = (o.sigmoid() * c.tanh()).bfloat16().float()
                logits = F.linear(h_NBD.transpose(0, 1).flatten(1), w["output_weight"], w["output_bias"])
                nats += float(F.cross_entropy(logits, targets[:, t], reduction="none").double().sum())
            parts.append(nats)
    return torch.tensor(parts, dtype=torch.float64).view(-1, 2)


def on_grid(w: Tensor, name: str, eps: float) -> Tensor:
    if name not in ("recurrent_weight", "output_weight"):
        return w.detach()
    spacing = torch.exp2(torch.frexp(w.detach().abs() + eps).exponent.float() - 8)
    return torch.round(w.detach() / spacing) * spacing


@torch.no_grad()
def precision() -> list[dict[str, Any]]:
    rows = []
    for shape in (Shape(100, 100, 2, 64, 64, 10), Shape(100, 100, 2, 150, 64, 10), Shape(100, 100, 2, 300, 64, 10)):
        model, batch, seeds = make_model("lstm", shape), make_batch(shape, ignored=0), make_seeds(24)
        model.reset_parameters(torch.Generator().manual_seed(0))
        exact = make_model("lstm", shape, torch.float64)
        exact.load_state_dict(model.state_dict())
        for eps in (2.0**-7, 2.0**-10):
            nats = batched.recurrent_nats(BACKENDS["cpu"], exact._weights(), *batch, seeds, eps, ())
            row = {"D": shape.head_dim, "eps": eps}
            for dtype in (torch.float32, torch.float16, torch.bfloat16):
                other = emulated(model._weights(), batch, seeds, eps, dtype)
                pair = torch.stack([x.diff(dim=1).flatten() for x in (nats, other)])
                row[f"1 - correlation, table {str(dtype)[6:]}"] = float(1 - torch.corrcoef(pair)[0, 1])
            rows.append(row)
            print(row, flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    plans = [predicted(name, sizes) for name, sizes in paper_sizes((9, 0)).items()]
    print(*plans, sep="\n")
    results = {"predicted": plans, "precision": precision(), "machine code": machine_code()}
    path = RESULTS / "streamed_forward.json"
    write(path, {"machine": machine(), "command": "python -m bench.streamed_forward", **results})
    print(f"written to {shown(path)}")


if __name__ == "__main__":
    main()
