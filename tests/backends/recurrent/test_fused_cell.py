"""The Triton kernel of recurrent cells: in the interpreter against torch's ops, and its machine code for GPUs.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own: this file as a
program prints what it found.
"""

from __future__ import annotations

import json
import os
from unittest.mock import patch

import pytest
import torch

from tests.backends.ahead_of_time import Compiler
from tests.backends.test_triton_parity import last_line
from tests.device_code import Demands, complaints, cuobjdump
from tests.recurrent import (
    Shape,
    copies,
    each_cell,
    make_batch,
    make_model,
    make_seeds,
    make_states,
    tolerance_of,
)
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.base import CELLS
from zo_kernels.backends.recurrent import batched, cells, fused_cell

SHAPES = (
    Shape(vocab=2, embed=1, heads=1, head_dim=1, batch=1, time=1),
    Shape(vocab=11, embed=5, heads=3, head_dim=7, batch=60, time=3),  # 1260 elements: two programs
    Shape(vocab=5, embed=3, heads=2, head_dim=4, batch=4, time=3, layers=3, norm=True, residual=True),
    Shape(vocab=5, embed=3, heads=2, head_dim=3, batch=2, time=5, layers=2),
)


def errors_of(cell: str, shape: Shape) -> tuple[float, float]:
    """The largest error of a position in nats, and of a state, against torch's ops, relative to what is allowed."""
    model = make_model(cell, shape)
    model.bias.requires_grad_(False)  # the members share it
    batch, seeds = make_batch(shape), make_seeds(2)
    states, results = make_states(model, 2, shape.batch), []
    for kernel in (None, fused_cell.advance):
        with patch.object(cells, "fused_cell", lambda device, dtype, kernel=kernel: kernel):
            carried = copies(states)
            nats = batched.recurrent_nats(BACKENDS["cpu"], model._weights(), *batch, seeds, 0.1, carried)
            fresh = batched.recurrent_nats(BACKENDS["cpu"], model._weights(), *batch, seeds, 0.1, ())
            results.append((torch.cat([nats, fresh]), torch.cat([state.flatten() for state in carried])))
    (nats, last), (actual, after) = results
    scored, allowed = int((batch[1] >= 0).sum()), tolerance_of(model)
    return float((actual - nats).abs().max()) / scored / allowed, float((after - last).abs().max()) / allowed


def noise_of(cell: str) -> float:
    """How far L+ - L- is off float64's, relative to its size, in units of that of torch's ops: about 1."""
    shape = Shape(vocab=20, embed=8, heads=2, head_dim=16, batch=8, time=6)
    model, batch, seeds = make_model(cell, shape), make_batch(shape), make_seeds(8)
    exact = batched.recurrent_nats(
        BACKENDS["cpu"], make_model(cell, shape).double()._weights(), *batch, seeds, 2**-8, ()
    )
    off = []
    for kernel in (None, fused_cell.advance):
        with patch.object(cells, "fused_cell", lambda device, dtype, kernel=kernel: kernel):
            nats = batched.recurrent_nats(BACKENDS["cpu"], model._weights(), *batch, seeds, 2**-8, ())
            off.append(float(((nats - exact) @ torch.tensor([1.0, -1.0]).double()).norm()))
    return off[1] / off[0]


def main() -> None:
    print(
        json.dumps(
            {
                cell: {
                    "step": fused_cell.deviation(cell, torch.device("cpu")),
                    "forwards": {str(shape): errors_of(cell, shape) for shape in SHAPES},
                    "noise": noise_of(cell),
                }
                for cell in CELLS
            }
        )
    )


@pytest.fixture(scope="module")
def interpreted() -> dict[str, dict[str, object]]:
    pytest.importorskip("triton")
    return json.loads(last_line(__file__))


@each_cell
def test_in_the_interpreter(cell, interpreted):
    found = interpreted[cell]
    assert found["step"] < 1e-6
    for shape, (nats, states) in found["forwards"].items():
        assert nats <= 1, shape
        assert states <= 1, shape
    assert found["noise"] < 4


class TestWhereItIsUsed:
    CUDA = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def fresh(self):
        fused_cell._is_right.cache_clear()
        yield
        fused_cell._is_right.cache_clear()

    def test_on_cuda_in_float32_alone(self, monkeypatch):
        monkeypatch.setattr(fused_cell, "deviation", lambda cell, device: 1e-7)
        monkeypatch.setattr(fused_cell.importlib.util, "find_spec", lambda name: object())
        assert fused_cell.fused_cell(self.CUDA, torch.float32) is fused_cell.advance
        assert fused_cell.fused_cell(self.CUDA, torch.float64) is None
        assert fused_cell.fused_cell(torch.device("cpu"), torch.float32) is None
        fused_cell._is_right.cache_clear()
        monkeypatch.setattr(fused_cell.importlib.util, "find_spec", lambda name: None)
        assert fused_cell.fused_cell(self.CUDA, torch.float32) is None

    @pytest.mark.parametrize(
        ("found", "words"),
        [(0.5, "is wrong by 0.5"), (float("nan"), "is wrong by nan"), (None, "can't be compiled: no gcc")],
    )
    def test_torch_steps_in_with_one_warning(self, found, words, monkeypatch, caplog):
        def deviation(cell, device):
            if found is None:
                raise RuntimeError("no gcc\nand more lines")
            return found

        monkeypatch.setattr(fused_cell, "deviation", deviation)
        monkeypatch.setattr(fused_cell.importlib.util, "find_spec", lambda name: object())
        for _ in range(2):
            assert fused_cell.fused_cell(self.CUDA, torch.float32) is None
        assert [r.message for r in caplog.records] == [
            f"the kernel of recurrent cells {words}; torch computes them, more slowly"
        ]

    def test_too_many_states(self):
        state = torch.empty(1, 2**15, 2**16, 1, device="meta")
        with pytest.raises(ValueError, match=r"^a batch of 65536 with 32768 units is too large: use a smaller mic"):
            fused_cell.advance("elman", state, None, state, state, [state], state)


@pytest.fixture(scope="module")
def compiler(tmp_path_factory):
    if cuobjdump() is None or os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("no Triton, or one without cuobjdump, or the interpreter, for which nothing is compiled")
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Compiler(tmp_path_factory.mktemp("triton"), monkeypatch)


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("gathers", [True, False])
@each_cell
def test_machine_code(cell, gathers, capability, compiler):
    """72 registers leave seven blocks of four warps on a multiprocessor. Sums of products may be contracted here."""
    shape, (members, batch, heads, dim) = CELLS[cell], (2, 4, 12, 20)
    table = torch.zeros(members, batch, shape.input_rows * heads * dim)
    products = torch.zeros(members, heads, batch, shape.recurrent_rows * dim)
    bias, out = torch.zeros(members, shape.biases, heads, dim), torch.zeros(members, batch, heads * dim)
    states = [torch.zeros(members, heads, batch, dim) for _ in range(shape.states)]
    index = torch.zeros(batch, dtype=torch.int64) if gathers else None
    kernel = compiler(capability, fused_cell.advance, cell, table, index, products, bias, states, out)
    print(f"{cell} {capability}: {kernel.registers} registers, {len(kernel.instructions)} instructions")
    assert kernel.arch.startswith(f"sm_{capability}")
    assert not complaints(kernel, Demands(72, exact=False))


if __name__ == "__main__":
    main()
