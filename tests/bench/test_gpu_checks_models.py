"""The checks of models and optimizer pass here on the CPU, and fail with a bug planted."""

import copy
import math

import pytest
import torch

import zo_kernels as zo
from bench.gpu import check_flash, check_population, check_training
from tests.bench.test_gpu_checks import last_bit
from zo_kernels.backends.cpu import CpuBackend
from zo_kernels.models import MODELS, RecurrentLM
from zo_kernels.perturb import InPlace, Shadow


@pytest.fixture
def nats_off(monkeypatch):
    """Plants a bug in the CPU's population forward, which in a rehearsal is what is checked."""
    right = CpuBackend.recurrent_nats

    def plant(spoil):
        def wrong(self, weights, tokens, targets, seeds, eps, states, precision):
            nats = right(self, weights, tokens, targets, seeds, eps, states, precision)
            return spoil(nats, states)

        monkeypatch.setattr(CpuBackend, "recurrent_nats", wrong)

    return plant


class TestPopulation:
    @pytest.mark.parametrize("cell", ["lstm", "gru", "elman"])
    def test_passes(self, cell):
        result = check_population.recurrent("cpu", cell)
        assert 0 < result["nats a position off, at most"] < result["allowed"]

    def test_forward(self, monkeypatch):
        for cell in MODELS:
            assert check_population.forward("cpu", cell)
        for method in ("forward", "loss", "next_logits"):
            calls = iter(range(1000))
            right = getattr(RecurrentLM, method)

            def wrong(self, *args, right=right, calls=calls):
                found = right(self, *args)
                off = 1e-3 * (next(calls) == 0)
                return (found[0] + off, *found[1:]) if isinstance(found, tuple) else found + off

            with monkeypatch.context() as patch:
                patch.setattr(RecurrentLM, method, wrong)
                with pytest.raises(AssertionError, match=rf"^{method} of gru .* in torch.float32: off by 0.001"):
                    check_population.forward("cpu", "gru")

    def test_losses(self, nats_off):
        nats_off(lambda nats, states: nats * (1 + 1e-4))
        with pytest.raises(AssertionError, match=r"^lstm V11-E5-N2-D6-B3-T4 in torch.float32 is off by"):
            check_population.recurrent("cpu", "lstm")

    def test_signs(self, nats_off):
        nats_off(lambda nats, states: nats.flip(1))
        with pytest.raises(AssertionError, match=r"is off by"):
            check_population.recurrent("cpu", "gru")

    def test_states(self, nats_off):
        def spoil(nats, states):
            for state in states:
                state[-1, -1, -1, -1, -1] += 1e-4
            return nats

        nats_off(spoil)
        with pytest.raises(AssertionError, match=r"^states of elman .*: off by 0.0001, allowed"):
            check_population.recurrent("cpu", "elman")

    def test_near(self):
        check_population.assert_near(torch.tensor([100.0]), torch.tensor([100.0001]), 1e-5, "x")
        for wrong in (100.01, math.nan, math.inf):
            with pytest.raises(AssertionError, match=r"^x: off by"):
                check_population.assert_near(torch.tensor([wrong]), torch.tensor([100.0]), 1e-5, "x")

    @pytest.mark.skipif(not zo._C.has_bfloat16(), reason="this processor lacks AVX512_BF16")
    def test_kernel(self, monkeypatch):
        """The CPU's bfloat16 products are what the kernel's are: the emulation is right."""
        result = check_population.kernel("cpu")
        assert result["nats a position off, median"] < 1e-6
        right = zo.models.LSTM.population_nats
        for precision, seeds_of in (("float32", lambda seeds: seeds), ("bfloat16", lambda seeds: seeds.flip(0))):

            def wrong(self, tokens, targets, seeds, eps, *, states, precision, use=precision, seeds_of=seeds_of):
                return right(self, tokens, targets, seeds_of(seeds), eps, states=states, precision=use)

            with monkeypatch.context() as patch:
                patch.setattr(zo.models.LSTM, "population_nats", wrong)
                with pytest.raises(AssertionError, match=r"\d+ of \d+ states are off$"):
                    check_population.kernel("cpu")
        with monkeypatch.context() as patch:
            patch.setattr(check_population, "assert_mostly_near", lambda *args: None)
            patch.setattr(zo.models.LSTM, "population_nats", lambda *args, **named: right(*args, **named) + 0.01)
            with pytest.raises(AssertionError, match=r"^half of the losses are off by"):
                check_population.kernel("cpu")


class TestFlash:
    @pytest.mark.parametrize("cell", ["lstm", "gru", "elman", "slstm"])
    def test_passes(self, cell):
        result = check_flash.flash("cpu", cell, "float32")
        assert result["by"].startswith("vanilla (")
        assert check_flash.flash("cpu", cell, "bfloat16")["correlation"] < 1

    @pytest.mark.parametrize(("precision", "factor"), [("float32", 0.99), ("bfloat16", 0.5)])
    def test_another_model(self, precision, factor, monkeypatch):
        def changed(model):
            other = copy.deepcopy(model)
            other.recurrent_weight.data[0] *= factor
            return other

        monkeypatch.setattr(check_flash, "copy", type("copy", (), {"deepcopy": staticmethod(changed)}))
        with pytest.raises(AssertionError, match=rf"^lstm in {precision} by vanilla .*(off by|correlate)"):
            check_flash.flash("cpu", "lstm", precision)


class TestTraining:
    def test_passes(self):
        assert check_training.optimizer("cpu")["modes"] == 5
        result = check_training.training("cpu")
        assert result["losses"][0] > result["losses"][1]

    def test_an_update(self, monkeypatch):
        right = CpuBackend.accumulate_probes

        def wrong(self, x, *args):
            right(self, x, *args)
            last_bit(x.view(-1)[:1], args)

        monkeypatch.setattr(CpuBackend, "accumulate_probes", wrong)
        with pytest.raises(AssertionError, match=r"after 1 updates"):
            check_training.optimizer("cpu")

    @pytest.mark.parametrize("perturbation", [InPlace, Shadow])
    def test_restoring(self, perturbation, monkeypatch):
        right = perturbation.leave

        def wrong(self):
            right(self)
            last_bit(self.arena.flat, ())

        monkeypatch.setattr(perturbation, "leave", wrong)
        with pytest.raises(AssertionError, match=r"restored after 48 moves"):
            check_training.optimizer("cpu")

    def test_moving(self, monkeypatch):
        monkeypatch.setattr(InPlace, "move", lambda self, *to: None)
        with pytest.raises(AssertionError, match=r"0 of 48 closure calls saw moved parameters"):
            check_training.optimizer("cpu")

    def test_a_run(self, nats_off):
        nats_off(lambda nats, states: nats * torch.linspace(1, 1.01, len(nats), dtype=nats.dtype)[:, None])
        with pytest.raises(AssertionError, match=r"^losses of 5 steps are apart by"):
            check_training.training("cpu")
