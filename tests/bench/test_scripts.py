"""`python -m bench` lists every script."""

import re
import subprocess
import sys

from bench.report import ROOT


def test_each_script_is_listed_with_what_it_takes():
    run = subprocess.run([sys.executable, "-m", "bench"], cwd=ROOT, capture_output=True, text=True, check=True)
    listed = dict(re.findall(r"^  python -m bench\.(\w+) +(\S.*)$", run.stdout, re.MULTILINE))
    scripts = {path.stem for path in (ROOT / "bench").glob("*.py") if "__main__" in path.read_text()} - {"__main__"}
    assert set(listed) == scripts | {"gpu", "paper"}
    assert all(re.search(r"\d+ (seconds|minutes)", line) for line in listed.values())
