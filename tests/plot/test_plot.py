"""Pictures of several runs: what they show, and what they refuse."""

import csv
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
from zo_kernels.plot.draw import running_mean
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
    plot_runs([run], tmp_path / "x.png", x=["steps"], sets=["train"], smooth=10)
    raw, smooth = figures[0].axes[0].lines
    assert list(raw.get_ydata()) == [float(i % 2) for i in range(1, 101)]
    assert raw.get_alpha() < 0.5
    assert abs(np.asarray(smooth.get_ydata())[5:-5] - 0.5).max() < 0.05
    plot_runs([run], tmp_path / "x.png", x=["steps"], sets=["train"], smooth=1)
    assert len(figures[1].axes[0].lines) == 1
    plot_runs([run], tmp_path / "x.png", x=["steps"], sets=["train"], smooth=11)  # too long for a run of 100 steps
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
    assert legend(figures[1]) == ["zo with 4 probes (one)"]  # the axis names the only set
    assert figures[1].axes[0].get_ylabel() == "validation loss (nats per token)"
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
    plot_runs([write_run(tmp_path / name) for name in names], tmp_path / "x.png", x=["steps"])
    assert legend(figures[0]) == [
        f"zo with 4 probes ({name})"
        for name in (r"\$\frac{\$", "_hidden", r"\udce4x", r"a\$b\$", r"\alpha", "\\x1b[2J\u8449")
    ]


def test_many_runs_have_colours_of_their_own(tmp_path: Path, figures: list[Figure]) -> None:
    plot_runs([write_run(tmp_path / f"run{i}", seed=i) for i in range(12)], tmp_path / "x.png", x=["steps"])
    assert len({tuple(np.atleast_1d(line.get_color())) for line in figures[0].axes[0].lines}) == 12


def test_a_run_that_goes_on(tmp_path: Path, figures: list[Figure]) -> None:
    """Half a line at the end is not there yet."""
    run = write_run(tmp_path / "one")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "validation_lo')
    plot_runs([run], tmp_path / "x.png", x=["steps"])
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
        sets = ["--set", "train", "validation", "longer"]
        assert main([*runs, "--out", str(out), *sets, "--x", "steps", "seconds"]) == 0
        assert capsys.readouterr().out == f"written to {out}\n"
    assert len(figures[0].axes) == 2
    assert [len(axes.lines) for axes in figures[0].axes] == [2 * (1 + 1 + 1) + 1] * 2  # and chance
    assert legend(figures[0]) == [
        *("lr 0.1, zo with 3 probes (slow)", "lr 0.5, zo with 3 probes (fast)"),
        *("train", "validation", "longer"),
    ]


def write_vocabulary(run: Path, size: int) -> Path:
    (run / "vocabulary.json").write_text(json.dumps(list(map(str, range(size)))))
    return run


def texts(figure: Figure) -> list[list[str]]:
    return [[text.get_text() for text in axes.texts] for axes in figure.axes]


def test_a_uniform_guess_is_drawn_near_the_data(tmp_path: Path, figures: list[Figure]) -> None:
    runs = [write_vocabulary(write_run(tmp_path / str(size)), size) for size in (5, 6, 4, 400)]
    out = tmp_path / "x.png"
    plot_runs(runs[:3], out, x=["steps", "seconds"])  # losses from 1.5 to 2, of which log 4 is a little below
    assert (
        texts(figures[0])
        == [["uniform guess (4 tokens) 1.39", "uniform guess (5 tokens) 1.61", "uniform guess (6 tokens) 1.79"]] * 2
    )
    plot_runs([runs[3]], out, x=["steps"])
    assert texts(figures[1]) == [[]]  # log 400 is far above
    assert figures[1].axes[0].get_ylim()[1] < 2.1
    plot_runs([runs[0]], out, x=["steps"], y="accuracy", log_y=True)
    assert texts(figures[2]) == [["uniform guess (5 tokens) 0.20"]]
    low, high = figures[2].axes[0].get_ylim()
    assert 0.1 < low < 0.2 < 0.5 < high < 0.6
    (runs[0] / "vocabulary.json").write_text("[]")
    refused("is not a vocabulary", [runs[0]], out)
    (runs[0] / "vocabulary.json").write_text("{")
    refused("vocabulary.json can't be read", [runs[0]], out)


def test_memory_tokens_and_whole_answers(tmp_path: Path, figures: list[Figure]) -> None:
    lines: list[dict[str, Any]] = [
        {"step": 0, "peak_rss_mb": 100.0, "v_accuracy": 0.25, "v_exact_accuracy": 0.0},
        {"step": 2, "tokens": 80, "peak_rss_mb": 120.0, "v_accuracy": 0.5, "v_exact_accuracy": 0.125},
    ]
    cpu = write_run(tmp_path / "cpu", lines)
    gpu = write_run(tmp_path / "gpu", [lines[0], {**lines[1], "peak_vram_mb": 7.0}])
    out = tmp_path / "x.png"
    plot_runs([cpu], out, x=["tokens"], y="memory")
    assert curves(figures[0]) == [[([0, 80], [100, 120])]]
    assert (figures[0].axes[0].get_xlabel(), figures[0].axes[0].get_ylabel()) == ("tokens read", "peak memory (MB)")
    assert legend(figures[0]) == ["zo with 4 probes (cpu)"]
    plot_runs([cpu, gpu], out, x=["tokens"], y="memory")
    assert curves(figures[1])[0][-1] == ([80], [7.0])
    assert legend(figures[1])[2:] == ["CPU", "GPU"]
    plot_runs([cpu], out, x=["tokens"], y="accuracy", sets=["v"])
    assert curves(figures[2]) == [[([0, 80], [0.25, 0.5]), ([0, 80], [0.0, 0.125])]]
    assert legend(figures[2])[1:] == ["v", "v, exact"]
    older = write_run(tmp_path / "older", [{"step": 0, "v_loss": 2.0}, {"step": 3, "v_loss": 1.0}])
    refused("older does not say its tokens: give another --x, or --resume it", [older], out, x=["tokens"], sets=["v"])
    refused("it has no peak_rss_mb or peak_vram_mb, but v_loss", [older], out, y="memory")


def test_the_table_has_what_is_drawn(tmp_path: Path) -> None:
    long = [{"step": i, "train_loss": float(i % 2), "seconds": i / 2} for i in range(1, 21)]
    runs = [write_run(tmp_path / "a, b"), write_run(tmp_path / "long", long)]
    out, table = tmp_path / "x.png", tmp_path / "x.csv"
    for _ in range(2):  # a table is replaced
        plot_runs(runs, out, csv=table, x=["steps", "seconds", "tokens"], sets=["validation", "train"], smooth=2)
    rows = list(csv.reader(table.read_text().splitlines()))
    assert rows[:5] == [
        ["run", "curve", "steps", "seconds", "tokens", "loss", "running_mean"],
        ["a, b", "validation", "0", "0", "", "2.0", ""],
        ["a, b", "validation", "3", "1.5", "", "1.5", ""],
        ["a, b", "train", "1", "0.5", "", "1.9", ""],
        ["a, b", "train", "3", "1.5", "", "1.3", ""],
    ]
    means = running_mean([line["train_loss"] for line in long], 2)
    assert [float(row[-1]) for row in rows[5:]] == means.tolist()
    table.write_text("mine,1\n")
    refused("exists and is not a CSV of a plot: give --csv another name", runs[:1], out, csv=table)
    assert table.read_text() == "mine,1\n"
    refused("give --csv a name that ends in .csv", runs[:1], out, csv=tmp_path / "x.txt")


def test_old_and_new_runs_differ_in_no_flag_that_is_new(tmp_path: Path, figures: list[Figure]) -> None:
    old = write_run(tmp_path / "old", gaf=None, shard="probes")
    new = write_run(
        tmp_path / "new", format=1, stateful=False, eval_tokens=None, max_cosine_distance=None, split="probes"
    )
    plot_runs([old, new], tmp_path / "x.png")
    assert legend(figures[0]) == ["zo with 4 probes (old)", "zo with 4 probes (new)"]


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
