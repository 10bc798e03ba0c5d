"""`python -m bench.paper NAME`: a table or figure of arXiv 2505.17852; 60 seconds with --quick, else hours.

NAME is table1, table2, figure1 to figure5 or long-context. Each writes NAME.json, in which a trial that is done stays
done: the same command goes on with what is left. `report` draws all pictures again and writes the tables of
docs/paper.md.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.report import IMAGES, RESULTS, ROOT, shown

from . import pages
from .options import Options
from .trials import Trials

NAMES = ("table1", "table2", "figure1", "figure2", "figure3", "figure4", "figure5", "long-context")
DATA = "PTB_DATA"
"""Environment variable with the folder of the Penn Treebank."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        "python -m bench.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=(*NAMES, "report"))
    parser.add_argument("--quick", action="store_true", help="the smallest trials, in about a minute")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get(DATA), help=f"folder of ptb.train.txt and others; default: ${DATA}"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="KEY=VALUE", help="trials with these settings alone")
    parser.add_argument("--threads", type=int, default=1, help="of a training run")
    parser.add_argument("--results", type=Path, help="folder of NAME.json; with --quick runs/paper/quick")
    parser.add_argument("--images", type=Path, help="folder of NAME.png; with --quick that of the results")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "paper", help="folder of unfinished runs")
    given = parser.parse_args(arguments)
    results = given.results or (given.runs / "quick" if given.quick else RESULTS / "paper")
    images = given.images or (results if given.quick else IMAGES / "paper")
    if given.name == "report":
        report(results, images)
        return
    if not all("=" in each for each in given.only):
        parser.error("--only takes KEY=VALUE, such as size=100k")
    for folder in (results, images, given.runs):
        folder.mkdir(parents=True, exist_ok=True)
    module = _module(given.name)
    only = dict(each.split("=", 1) for each in given.only)
    trials = Trials(results / f"{given.name}.json", f"python -m bench.paper {given.name}", only)
    data = None if given.data is None else Path(given.data).resolve()
    module.measure(trials, Options(given.quick, given.threads, given.runs, data))
    trials.write()
    picture = images / f"{given.name}.png"
    if trials.done and module.draw(trials, picture):
        print(f"drawn to {shown(picture)}")
    print(f"written to {shown(trials.path)}\n\n{module.tables(trials)}")


def report(results: Path, images: Path) -> None:
    """Draws each picture again, and writes the tables into the page."""
    for name in NAMES:
        path = results / f"{name}.json"
        if path.exists():
            _module(name).draw(Trials(path, ""), images / f"{name}.png")
    pages.write(ROOT / "docs" / "paper.md", results, images)


def _module(name: str) -> Any:
    return import_module(f"bench.paper.{name.replace('-', '_')}")


if __name__ == "__main__":
    main()
