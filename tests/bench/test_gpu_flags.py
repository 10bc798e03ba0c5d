"""`python -m bench.gpu`: its flags, and what makes it begin again."""

from bench.gpu.journal import fingerprint
from tests.bench.gpu_steps import ROOT, done, partial, result


def test_other_versions_start_anew(day, step, log, capsys):
    steps = [step("check.a"), step("check.b", seconds=1000.0)]
    assert day(steps) == 2
    assert day(steps, describe="newer_machine") == 2
    assert done(log)[0] == ["check.a"] * 2
    assert "started anew, because of another torch\n" in capsys.readouterr().out


def test_other_sources_start_anew(day, step, log, capsys, monkeypatch):
    steps = [step("check.a"), step("check.b", seconds=1000.0)]
    assert day(steps) == 2
    monkeypatch.setattr("bench.gpu.__main__.fingerprint", lambda: "other")
    assert day(steps) == 2
    assert done(log)[0] == ["check.a"] * 2
    assert "started anew, because of another sources\n" in capsys.readouterr().out


def test_fingerprint(tmp_path):
    source, kernel = tmp_path / "zo_kernels" / "ops" / "a.py", tmp_path / "csrc" / "b.cu"
    for path in (source, kernel):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    seen = [fingerprint(tmp_path)]
    (source.parent / "__pycache__").mkdir()
    (source.parent / "__pycache__" / "a.pyc").write_text("1")
    assert fingerprint(tmp_path) == seen[0]
    for change in (
        lambda: source.write_text("2"),
        lambda: kernel.write_text("2"),
        lambda: (tmp_path / "zo_kernels" / "_C.so").write_bytes(b"\x00"),
        lambda: kernel.rename(kernel.with_name("c.cu")),
    ):
        change()
        seen.append(fingerprint(tmp_path))
    assert len(set(seen)) == len(seen)
    assert fingerprint() == fingerprint(ROOT)


def test_only_takes_the_checks_along(day, step, log, tmp_path, capsys):
    steps = [step("check.a"), step("check.b"), step("measure.b", needs=("check.b",)), step("measure.c")]
    assert day(steps, "--only", "measure.b") == 0
    assert done(log)[0] == ["check.b", "measure.b"]
    assert "2 of 4 steps are left" in capsys.readouterr().out
    assert day(steps, "--only", "c*.b", "--anew") == 0  # forgets this step alone
    assert done(log)[0] == ["check.b", "measure.b", "check.b"]
    assert list(partial(tmp_path)) == ["measure.b", "check.b"]
    assert day(steps) == 0
    assert done(log)[0] == ["check.b", "measure.b", "check.b", "check.a", "measure.c"]
    assert list(result(tmp_path)["steps"]) == ["check.a", "check.b", "measure.b", "measure.c"]


def test_anew(day, step, log):
    steps = [step("check.a"), step("check.b", seconds=1000.0)]
    day(steps)
    day(steps, "--anew")
    assert done(log)[0] == ["check.a"] * 2


def test_nothing_of_that_name(day, step, capsys):
    assert day([step("check.a")], "--only", "b") == 2
    assert capsys.readouterr().err == "bench.gpu: no step's name has 'b' in it: --list shows them\n"


def test_list_does_nothing(day, step, log, tmp_path, capsys):
    assert day([step("check.a"), step("measure.b", needs=("check.a",), seconds=20)], "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["check.a", "1", "s"],
        ["measure.b", "20", "s", "needs", "check.a"],
    ]
    assert list(tmp_path.iterdir()) == [log]


def test_no_machine(day, step, log, capsys):
    assert day([step("check.a")], describe="no_machine") == 2
    assert capsys.readouterr().err == "bench.gpu: there is no such device\n"
    assert done(log)[0] == []


def test_a_damaged_journal(day, step, tmp_path, capsys):
    path = tmp_path / "nvidia-h200.partial.json"
    for content in ("{", "{}", "[1]", '{"key": {}, "records": {"check.a": {"colour": "red"}}}'):
        path.write_text(content)
        assert day([step("check.a")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"bench.gpu: {path} is no journal of bench.gpu (")
        assert error.endswith("): delete it or pass --anew\n")
        assert path.read_text() == content
    assert day([step("check.a")], "--anew") == 0
