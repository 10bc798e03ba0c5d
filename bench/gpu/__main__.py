"""`python -m bench.gpu`: checks, then measures; see docs/gpu.md."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import report
from .bars import BARS
from .journal import ROOT, Journal, fingerprint, write_json
from .plan import all_steps
from .run import Workers, run
from .steps import OUT_OF_TIME, Step

_START = 120.0
"""Seconds in which a worker must have imported torch and found the device."""


def main(
    argv: Sequence[str] | None = None,
    *,
    steps: Sequence[Step] | None = None,
    describe: str = "bench.gpu.facts:describe",
) -> int:
    """Returns 0 if every step was done and every check passed, 1 if a check failed, 2 if something is left to do.

    steps, describe: others than the plan's and the machine's, for tests.
    """
    began = time.monotonic()
    options = _parser().parse_args(argv)
    plan = list(all_steps(options.device) if steps is None else steps)
    chosen = _with_needs(plan, [step for step in plan if fnmatch(step.name, f"*{options.only}*")])
    if not chosen:
        return _refuse(f"no step's name has {options.only!r} in it: --list shows them")
    if options.list:
        for step in plan:
            needs = f"  needs {', '.join(step.needs)}" if step.needs else ""
            print(f"{step.name:<40} {step.seconds:4.0f} s{needs}")
        return 0

    workers = Workers()
    try:
        reply = workers.call(None, describe, {"device": options.device}, _START)
        facts: dict[str, Any] = {"error": reply.failure} if reply.failure else reply.result
        if "error" in facts:
            return _refuse(facts["error"])
        machine = facts["machine"]
        name = re.sub(r"[^a-z0-9]+", "-", machine["gpu"].lower()).strip("-")
        folder = options.out or (ROOT / "bench" / "results" if options.device == "cuda" else None)
        key = {**machine, "sources": fingerprint()}
        try:
            journal = Journal(folder, name, key, anew=options.anew and len(chosen) == len(plan))
        except ValueError as error:
            return _refuse(str(error))
        if options.anew:
            journal.forget(chosen)
        if journal.news:
            print(journal.news)
        deadline = began + 60 * options.minutes
        run(chosen, options.device, journal, facts["missing"], workers, deadline, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        return _refuse("interrupted; the same command continues")
    finally:
        workers.close()

    records = {step.name: journal.records[step.name] for step in plan if step.name in journal.records}
    judged = report.judge(BARS, records, options.device)
    print("\n".join(["", *report.failures(records), report.table(judged)]))
    pending = [step for step in plan if step.name not in records or records[step.name].reason == OUT_OF_TIME]
    if folder is not None and pending:
        print(f"\n{len(pending)} of {len(plan)} steps are left: the same command continues from {journal.path}")
    elif folder is not None:
        result = folder / f"{name}.json"
        write_json(result, report.content(machine, judged, records))
        journal.remove()
        print(f"\nwritten to {result}")
    return report.exit_code(chosen, records)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Checks every op and model on the GPU against the CPU, then measures. Builds nothing.",
        epilog="Exit code: 0 all done and all checks passed, 1 a check failed, 2 something is left to do or missing.",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="that it may take; the next run does the rest")
    parser.add_argument("--only", default="", metavar="PATTERN", help="steps with it in their name, and their checks")
    parser.add_argument("--list", action="store_true", help="show the steps, and do none")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for the results; default bench/results")
    parser.add_argument("--anew", action="store_true", help="repeat what an unfinished run has done")
    parser.add_argument(
        "--device",
        choices=("cuda", "cpu"),
        default="cuda",
        help="cpu: a rehearsal with small sizes, which writes nothing without --out and judges nothing",
    )
    return parser


def _with_needs(plan: Sequence[Step], chosen: Sequence[Step]) -> list[Step]:
    """The chosen steps and the checks they need, in the plan's order."""
    names = {step.name for step in chosen} | {need for step in chosen for need in step.needs}
    return [step for step in plan if step.name in names]


def _refuse(sentence: str) -> int:
    print(f"bench.gpu: {sentence}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
