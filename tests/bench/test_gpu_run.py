"""`python -m bench.gpu` as a machine of steps: resuming, time, failures, crashes."""

import os
import re
import signal
import time

import pytest

from bench.gpu.steps import Step
from bench.gpu.worker import Worker
from tests.bench.gpu_steps import HERE, ROOT, done, gone, partial, result, started, wait_for


def test_all_is_done_and_written(day, step, log, tmp_path, capsys):
    steps = [step("check.a"), step("measure.step.100k.kernel", needs=("check.a",)), step("check.b", group="other")]
    assert day(steps) == 0
    names, processes = done(log)
    assert names == ["check.a", "measure.step.100k.kernel", "check.b"]
    assert processes[0] == processes[1] != processes[2]  # one for each group
    written = result(tmp_path)
    assert written["machine"] == {"gpu": "NVIDIA H200", "torch": "2.11"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", written["date"])
    assert [s["status"] for s in written["steps"].values()] == ["passed", "measured", "passed"]
    assert {"text", "measured", "bar", "verdict"} <= {key for bar in written["bars"] for key in bar}
    assert [path.name for path in tmp_path.glob("nvidia*")] == ["nvidia-h200.json"]
    printed = capsys.readouterr().out
    assert "| step of 96 probes, 100k parameters | 3 s | at most 0.057 | MISSED |" in printed
    assert "| peak memory of it, 100k parameters | 0.25 GB | at most 0.5 | met |" in printed
    assert printed.endswith(f"written to {tmp_path / 'nvidia-h200.json'}\n")


def test_a_killed_run_continues(step, log, tmp_path, day):
    """SIGKILL in the middle of the second step: its worker goes too, and the first is not done again."""
    steps = [step("check.a"), step("check.b", does="hangs_once"), step("check.c")]
    run = started(steps, log, tmp_path)
    run.kill()
    run.wait()
    wait_for(lambda: gone(done(log)[1][-1]))
    assert list(partial(tmp_path)) == ["check.a"]
    assert day(steps) == 0
    assert done(log)[0] == ["check.a", "check.b", "check.b", "check.c"]
    assert {s["status"] for s in result(tmp_path)["steps"].values()} == {"passed"}


def test_an_interrupted_run_says_so(step, log, tmp_path, day):
    steps = [step("check.a"), step("check.b", does="hangs_once")]
    run = started(steps, log, tmp_path)
    run.send_signal(signal.SIGINT)
    assert run.communicate()[1] == "bench.gpu: interrupted; the same command continues\n"
    assert run.returncode == 2
    wait_for(lambda: gone(done(log)[1][-1]))
    assert day(steps) == 0


def test_a_failed_check_bars_its_measures(day, step, log, tmp_path, capsys):
    steps = [
        step("check.a", does="fails"),
        step("measure.step.100k.kernel", needs=("check.a",)),
        step("measure.step.1M.batched", needs=("check.b",)),
        step("check.b"),
    ]
    steps = [steps[0], steps[1], steps[3], steps[2]]
    assert day(steps) == 1
    names, processes = done(log)
    assert names == ["check.a", "check.b", "measure.step.1M.batched"]
    assert processes[0] != processes[1] == processes[2]  # a new one after a failure
    records = result(tmp_path)["steps"]
    assert records["check.a"]["status"] == "failed"
    assert records["check.a"]["reason"] == "3 of 5 differ"
    assert any("in fails" in line for line in records["check.a"]["trace"])
    assert records["measure.step.100k.kernel"]["status"] == "barred"
    assert records["measure.step.1M.batched"]["status"] == "measured"
    printed = capsys.readouterr().out
    assert "FAILED check.a: 3 of 5 differ\n" in printed
    assert "| step of 96 probes, 100k parameters |  | at most 0.057 | not measured: check.a failed |" in printed


@pytest.mark.parametrize(
    ("does", "reason", "last"),
    [
        ("aborts", "its process was ended by SIGABRT", "last words"),
        ("exits", "its process ended with exit code 3", None),
        ("raises", "RuntimeError: CUDA error: an illegal memory access was encountered", "and advice"),
    ],
)
def test_a_crash_takes_nothing_with_it(day, step, log, tmp_path, does, reason, last):
    steps = [step("check.a"), step("measure.b", does=does), step("measure.c"), step("check.d", does=does)]
    assert day(steps[:3]) == 2  # something was not measured
    names, processes = done(log)
    assert names == ["check.a", "measure.b", "measure.c"]
    assert processes[0] == processes[1] != processes[2]
    record = result(tmp_path)["steps"]["measure.b"]
    assert (record["status"], record["reason"]) == ("crashed", reason)
    assert last is None or any(last in line for line in record["trace"])
    assert day(steps) == 1
    assert result(tmp_path)["steps"]["check.d"]["reason"] == reason


def test_what_no_longer_fits_is_left_to_the_next_run(day, step, log, tmp_path, capsys):
    steps = [
        step("check.long", seconds=1000.0),
        step("measure.step.100k.kernel", needs=("check.long",)),
        step("check.short"),
    ]
    assert day(steps) == 2
    assert done(log)[0] == ["check.short"]
    records = partial(tmp_path)
    for name in ("check.long", "measure.step.100k.kernel"):
        assert records[name] == {"status": "left out", "reason": "out of time"}
    printed = capsys.readouterr().out
    assert "2 of 3 steps are left: the same command continues from" in printed
    assert "not measured: out of time" in printed
    assert not (tmp_path / "nvidia-h200.json").exists()
    assert day(steps, "--minutes", "20") == 0
    assert done(log)[0] == ["check.short", "check.long", "measure.step.100k.kernel"]
    assert capsys.readouterr().out.startswith("continuing nvidia-h200.partial.json: 1 steps are done\n")


def test_a_step_that_hangs_ends_with_the_run(day, step, log, tmp_path):
    steps = [step("check.a", does="hangs_once", seconds=0.5), step("check.b")]
    start = time.monotonic()
    assert day(steps, "--minutes", "0.15") == 2
    assert time.monotonic() - start < 9 + 5
    assert {r["reason"] for r in partial(tmp_path).values()} == {"out of time"}
    assert day(steps) == 0


def test_a_call_has_a_limit_of_its_own(log):
    worker = Worker(ROOT)
    reply = worker.call(f"{HERE}:hangs_once", {"device": "cpu", "log": str(log), "name": "a"}, 2)
    worker.close()
    assert reply.timed_out
    assert reply.failure == "ran past 2 s"
    assert Step("check.a", "", 10.0, "").limit == 90


def test_the_tests_are_those_of_the_checkout():
    worker = Worker(ROOT)
    reply = worker.call(f"{HERE}:where_it_runs", {"device": "cpu"}, 60)
    worker.close()
    assert reply.failure == ""
    assert reply.result["cases"] == str(ROOT / "tests" / "cases.py")
    assert reply.result["pid"] != os.getpid()


def test_a_missing_package_leaves_its_steps_out(day, step, log, tmp_path):
    steps = [
        step("check.flash", package="flashrnn"),
        step("measure.flash", package="flashrnn", needs=("check.flash",)),
        step("measure.other", needs=("check.flash",)),
        step("check.triton", package="triton"),
    ]
    assert day(steps) == 2
    assert done(log)[0] == ["check.triton"]
    records = result(tmp_path)["steps"]  # it can't get any further
    for name in ("check.flash", "measure.flash", "measure.other"):
        assert records[name] == {"status": "left out", "reason": "flashrnn is not installed"}
