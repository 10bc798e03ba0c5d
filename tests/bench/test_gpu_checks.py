"""The checks of the ops find what they look for: each passes here on the CPU, and fails with a bug planted."""

import contextlib

import pytest
import torch

from bench.gpu import check_launch, check_ops
from tests.cases import DTYPES
from zo_kernels.backends import BACKENDS
from zo_kernels.backends.cpu import CpuBackend

OPS = {
    "probe": "probe",
    "apply_probe_": "apply_probe",
    "apply_probe": "apply_probe",
    "apply_probes": "apply_probes",
    "swap_probe_": "swap_probe",
    "accumulate_probes_": "accumulate_probes",
}
"""Method of a backend by op."""


@pytest.fixture
def broken(monkeypatch):
    """Plants a bug: a backend "broken" whose method is followed by `spoil(what it wrote, arguments)`."""

    def plant(method, spoil):
        class Broken(CpuBackend):
            name = "broken"

        right = getattr(CpuBackend, method)

        def wrong(self, *args):
            result = right(self, *args)
            written = args[1] if method in ("apply_probe", "apply_probes") else args[0]
            if written.numel():
                spoil(written, args)
            return result

        setattr(Broken, method, wrong)
        monkeypatch.setitem(BACKENDS, "broken", Broken())
        return "broken"

    return plant


def last_bit(x, args):
    """Of the last element, where it is a number."""
    last = x.view(-1)[-1:]
    if not last.isnan():
        integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}
        bits = last.view(integers[x.element_size()])
        bits ^= 1


def no_negative_zero(x, args):
    x[x == 0] = 0.0


def past_the_end(x, args):
    x.view(-1).as_strided((1,), (1,), x.storage_offset() + x.numel()).zero_()


def unaligned_alone(x, args):
    if x.data_ptr() % 16:
        last_bit(x, args)


class TestOps:
    @pytest.mark.parametrize("op", OPS)
    def test_passes(self, op):
        assert check_ops.parity("cpu", "cpu", op)["compared"] >= len(check_ops._CASES["cpu"])

    @pytest.mark.parametrize("op", OPS)
    def test_one_bit(self, op, broken):
        with pytest.raises(AssertionError, match=rf"^{op} on .*differ; element \d+ is"):
            check_ops.parity("cpu", broken(OPS[op], last_bit), op)

    @pytest.mark.parametrize("op", [op for op in OPS if op != "probe"])
    @pytest.mark.parametrize("spoil", [past_the_end, unaligned_alone])
    def test_where_is_written(self, op, spoil, broken):
        with pytest.raises(AssertionError, match=r"wrote outside" if spoil is past_the_end else r"differ"):
            check_ops.parity("cpu", broken(OPS[op], spoil), op)

    @pytest.mark.parametrize("op", ["apply_probe_", "apply_probe", "apply_probes"])
    def test_the_sign_of_zero(self, op, broken):
        with pytest.raises(AssertionError, match=r"is 0.0, not -0.0"):
            check_ops.parity("cpu", broken(OPS[op], no_negative_zero), op)

    def test_signs_of_members(self, broken):
        def swapped(out, args):
            out.copy_(out.flip(1))

        with pytest.raises(AssertionError, match=r"^apply_probes on"):
            check_ops.parity("cpu", broken("apply_probes", swapped), "apply_probes")

    def test_a_source_that_is_written(self, broken):
        def spoil(out, args):
            args[0].view(-1)[0] = 7.0

        with pytest.raises(AssertionError, match=r"^apply_probe on"):
            check_ops.parity("cpu", broken("apply_probe", spoil), "apply_probe")

    def test_on_a_gpu_all_cases_run_in_all_dtypes(self):
        assert {case.dtype for case in check_ops._CASES["cuda"]} == set(DTYPES)
        assert len(check_ops._CASES["cuda"]) > 150


class TestLaunch:
    @pytest.mark.parametrize("check", [check_launch.large, check_launch.large_members])
    def test_passes(self, check):
        assert check("cpu", "cpu")["elements"] >= 60_000

    @pytest.mark.parametrize("method", ["apply_probe", "swap_probe", "accumulate_probes"])
    def test_a_piece_too_many(self, method, broken):
        """Far from what is looked at bit by bit."""

        def twice(x, args):
            if x.dtype == torch.bfloat16:
                x.view(-1)[12_000:12_100] *= 1.5

        with pytest.raises(AssertionError, match=r"^\d+ elements from 0 were not written exactly once"):
            check_launch.large("cpu", broken(method, twice))

    def test_an_end_that_was_forgotten(self, broken):
        def forgotten(x, args):
            x.view(-1)[-100:] = 0

        with pytest.raises(AssertionError, match=r"^(in place )?from"):
            check_launch.large("cpu", broken("accumulate_probes", forgotten))
        with pytest.raises(AssertionError, match=r"^apply_probes from"):
            check_launch.large_members("cpu", broken("apply_probes", forgotten))

    def test_probes_beyond_a_number(self, broken):
        def forgotten(out, args):
            out[90:] = 0

        with pytest.raises(AssertionError, match=r"^100 probes"):
            check_launch.large_members("cpu", broken("apply_probes", forgotten))

    def test_stream(self, monkeypatch):
        """Its arithmetic; that the ops wait for the stream shows on a GPU alone."""
        pretend_streams(monkeypatch)
        assert check_launch.stream("cpu", "cpu") == {}
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "copy_", lambda self, source: self)
            with pytest.raises(AssertionError, match=r"^on a side stream"):
                check_launch.stream("cpu", "cpu")

    def test_graph(self, monkeypatch):
        monkeypatch.setattr(check_launch, "_recorded", lambda call: call)
        assert check_launch.graph("cpu", "cpu") == {"replays": 4}
        monkeypatch.setattr(check_launch, "_recorded", lambda call: call() or (lambda: None))
        with pytest.raises(AssertionError, match=r"^replay 0"):
            check_launch.graph("cpu", "cpu")


def pretend_streams(monkeypatch):
    class Stream:
        def synchronize(self):
            pass

        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: None)
