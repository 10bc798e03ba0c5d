"""Pictures of several runs: what they show, and what they refuse."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from zo_kernels.plot import UsageError, plot_runs
from zo_kernels.plot.__main__ import main
from zo_kernels.plot.compare import running_mean
from zo_kernels.train.__main__ import main as train

LINES: list[dict[str, Any]] = [
    {"step": 0, "validation_loss": 2.0, "validation_accuracy": 0.25},
    {"step": 1, "train_loss": 1.9, "seconds": 0.5, "forwards": 30},
    {"step": 2, "train_loss": None, "seconds": 1.0, "forwards": 60},
    {"step": 3, "train_loss": 1.3, "seconds": 1.5, "forwards": 90, "validation_loss": 1.5, "validation_accuracy": 0.5},
]
CONFIG = {"lr": 0.3, "probes": 4, "out": "x"}


def write_run(path: Path, lines: Sequence[Mapping[str, Any]] = LINES, **config: object) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**CONFIG, "out": str(path), **config}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Figures that have been saved."""
    saved: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: (saved.append(self), save(self, *args, **kw)))
    return saved


def curves(figure: Figure) -> list[list[tuple[list[float], list[float]]]]:
    """Points of the lines of each panel."""
    return [[(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines] for axes in figure.axes]


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_a_panel_for_each_x(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([write_run(tmp_path / "one"), write_run(tmp_path / "two", lr=1.0)], tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    (figure,) = figures
    y = [2.0, 1.5]
    assert curves(figure) == [[([0, 3], y)] * 2, [([0, 90], y)] * 2, [([0, 1.5], y)] * 2]
    assert [axes.get_xlabel() for axes in figure.axes] == ["step", "forward passes", "training time (s)"]
    assert figure.axes[0].get_ylabel() == "validation loss (nats per token)"
    assert legend(figure) == ["lr 0.3, zo with 4 probes (one)", "lr 1.0, zo with 4 probes (two)"]
    assert len({line.get_color() for line in figure.axes[0].lines}) == 2
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "x.png"}


def test_training_losses_are_smoothed_over_a_faint_line(tmp_path: Path, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "one", [{"step": i, "train_loss": float(i % 2), "seconds": 1.0} for i in range(1, 101)])
    plot_runs([run], tmp_path / "x.png", x=["step"], sets=["train"], smooth=10)
    raw, smooth = figures[0].axes[0].lines
    assert list(raw.get_ydata()) == [float(i % 2) for i in range(1, 101)]
    assert raw.get_alpha() < 0.5
    assert abs(np.asarray(smooth.get_ydata())[5:-5] - 0.5).max() < 0.05
    plot_runs([run], tmp_path / "x.png", x=["step"], sets=["train"], smooth=1)
    assert len(figures[1].axes[0].lines) == 1
    plot_runs([run], tmp_path / "x.png", x=["step"], sets=["train"], smooth=11)  # too long for a run of 100 steps
    assert len(figures[2].axes[0].lines) == 1


def test_running_mean_is_centred_and_keeps_straight_lines() -> None:
    np.testing.assert_allclose(running_mean([1.0, 2.0, 6.0], 3), [1.0, 3.0, 6.0])
    np.testing.assert_allclose(running_mean(range(50), 20), range(50))
    assert len(running_mean([], 5)) == 0


def test_sets_have_their_own_lines(tmp_path: Path, figures: list[Figure]) -> None:
    run = write_run(tmp_path / "one")
    plot_runs([run], tmp_path / "x.png", x=["seconds"], sets=["validation", "train"], smooth=1)
    assert curves(figures[0]) == [[([0, 1.5], [2.0, 1.5]), ([0.5, 1.5], [1.9, 1.3])]]
    assert [line.get_linestyle() for line in figures[0].axes[0].lines] == ["-", "--"]
    assert legend(figures[0]) == ["zo with 4 probes (one)", "validation", "train"]
    plot_runs([run], tmp_path / "x.png", x=["seconds"], sets=["validation", "longer"])  # which no run has
    assert legend(figures[1]) == ["zo with 4 probes (one)", "validation"]
    low, high = figures[1].axes[0].get_ylim()
    assert 1 < low < 1.5 < 2 < high < 2.5


def test_accuracy_and_logarithm(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([write_run(tmp_path / "one")], tmp_path / "x.png", y="accuracy", log_y=True)
    axes = figures[0].axes[0]
    assert curves(figures[0])[0] == [([0, 3], [0.25, 0.5])]
    assert (axes.get_yscale(), axes.get_ylabel()) == ("log", "validation accuracy")


def test_forward_passes_of_runs_that_did_not_count_them(tmp_path: Path, figures: list[Figure]) -> None:
    older = [{key: value for key, value in line.items() if key != "forwards"} for line in LINES]
    plot_runs([write_run(tmp_path / "one", older)], tmp_path / "x.png", x=["forwards"])
    assert curves(figures[0]) == [[([0, 2 * 4 * 3], [2.0, 1.5])]]


def test_labels(tmp_path: Path, figures: list[Figure]) -> None:
    a = write_run(tmp_path / "a" / "run", seed=1, momentum=0.9)
    b = write_run(tmp_path / "b" / "run", seed=2, threads=3)
    plot_runs([a, b], tmp_path / "x.png")
    assert legend(figures[0]) == [f"seed 1, momentum 0.9, zo with 4 probes ({a})", f"seed 2, zo with 4 probes ({b})"]
    many = write_run(tmp_path / "c", **{f"flag_{i}": i for i in range(6)})
    plot_runs([a, many], tmp_path / "x.png")
    assert legend(figures[1])[1] == "flag 0 0, flag 1 1, flag 2 2, flag 3 3, ..., zo with 4 probes (c)"
    other = write_run(tmp_path / "d", solver="bptt", probes=8)
    plot_runs([many, other], tmp_path / "x.png")
    assert legend(figures[2])[1] == "bptt (d)"


def test_folders_of_any_name_are_labelled(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$\\frac{$", "_hidden", os.fsdecode(b"\xe4x"), "a$b$", "\\alpha", "\x1b[2J\u8449"]
    plot_runs([write_run(tmp_path / name) for name in names], tmp_path / "x.png", x=["step"])
    assert legend(figures[0]) == [
        f"zo with 4 probes ({name})"
        for name in (r"\$\frac{\$", "_hidden", r"\udce4x", r"a\$b\$", r"\alpha", "\\x1b[2J\u8449")
    ]


def test_many_runs_have_colours_of_their_own(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([write_run(tmp_path / f"run{i}", seed=i) for i in range(12)], tmp_path / "x.png", x=["step"])
    assert len({tuple(np.atleast_1d(line.get_color())) for line in figures[0].axes[0].lines}) == 12


def test_a_run_that_goes_on(tmp_path: Path, figures: list[Figure]) -> None:
    """Half a line at the end is not there yet."""
    run = write_run(tmp_path / "one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "validation_lo')
    plot_runs([run], tmp_path / "x.png", x=["step"])
    assert curves(figures[0]) == [[([0, 3], [2.0, 1.5])]]


def test_command_line_draws_real_runs(
    tmp_path: Path, figures: list[Figure], capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(tmp_path / name) for name in ("slow", "fast")]
    small = ["--embed-dim", "4", "--hidden-size", "8", "--batch-size", "4", "--probes", "3", "--steps", "4"]
    for run, lr in zip(runs, ("0.1", "0.5"), strict=True):
        assert train([*small, "--validate-every", "2", "--lr", lr, "--out", run]) == 0
    out = tmp_path / "x.png"
    figures.clear()  # of the runs' own pictures
    for _ in range(2):  # a PNG is replaced
        capsys.readouterr()
        assert main([*runs, "--out", str(out), "--set", "train", "validation", "longer", "--x", "step", "seconds"]) == 0
        assert capsys.readouterr().out == f"written to {out}\n"
    assert len(figures[0].axes) == 2
    assert [len(axes.lines) for axes in figures[0].axes] == [2 * (1 + 1 + 1)] * 2
    assert legend(figures[0]) == [
        *("lr 0.1, zo with 3 probes (slow)", "lr 0.5, zo with 3 probes (fast)"),
        *("train", "validation", "longer"),
    ]


def refused(match: str, *arguments: Any, **keywords: Any) -> None:
    with pytest.raises(UsageError, match=match):
        plot_runs(*arguments, **keywords)


def test_what_is_not_a_run_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "x.png"
    refused("there is no run folder", [tmp_path / "none"], out)
    (tmp_path / "empty").mkdir()
    refused("is not the folder of a run: it has no config.json", [tmp_path / "empty"], out)
    run = write_run(tmp_path / "one")
    (run / "metrics.jsonl").unlink()
    refused("it has no metrics.jsonl", [run], out)
    (run / "metrics.jsonl").write_text("{nonsense}\n")
    refused("metrics.jsonl is not JSON", [run], out)
    (run / "metrics.jsonl").write_text("[1]\n")
    refused(r"it holds '\[1\]' and not an object", [run], out)
    (run / "metrics.jsonl").write_text("{}\n")
    refused("a line has no step", [run], out)
    (run / "metrics.jsonl").write_bytes(b"\xff\n")
    refused("can't read", [run], out)
    assert not out.exists()


def test_nothing_to_plot_is_refused(tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "one"), tmp_path / "x.png"
    refused(
        "nothing to plot of .*one: it has no longer_loss, but validation_loss, validation_accuracy, train_loss",
        [run],
        out,
        sets=["longer"],
    )
    refused("train_accuracy or longer_accuracy", [run], out, y="accuracy", sets=["train", "longer"])
    refused("nothing yet", [write_run(tmp_path / "two", [])], out)
    for keywords in ({"sets": []}, {"x": []}):
        refused("name at least one run, one x and one set", [run], out, **keywords)
    refused("name at least one run", [], out)
    refused("unknown x 'hours'", [run], out, x=["hours"])
    refused("unknown y 'perplexity'", [run], out, y="perplexity")
    refused("smooth must be at least 1", [run], out, smooth=0)
    assert not out.exists()


def test_out_that_should_not_be_written_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "one")
    refused("a name that ends in .png", [run], tmp_path / "x.pdf")
    refused("there is no folder", [run], tmp_path / "none" / "x.png")
    precious = tmp_path / "precious.png"
    precious.write_text("not a picture")
    refused("exists and is not a PNG", [run], precious)
    assert precious.read_text() == "not a picture"
    (tmp_path / "folder.png").mkdir()
    refused("can't write", [run], tmp_path / "folder.png")


def test_failed_write_leaves_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, out = write_run(tmp_path / "one"), tmp_path / "x.png"
    plot_runs([run], out)
    before = out.read_bytes()

    def full(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    refused("can't write .*No space left on device", [run], out)
    assert out.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"one", "x.png"}


def test_errors_of_the_command_line_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: there is no run folder {tmp_path / 'none'}\n"
    assert main([]) == 2
    with pytest.raises(SystemExit) as exit_:
        main([str(tmp_path), "--x", "hours"])
    assert exit_.value.code == 2
