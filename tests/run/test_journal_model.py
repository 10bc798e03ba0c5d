"""Whatever is done to a journal, in whatever order: it holds what a list and a dictionary would, after a cut too."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.run.test_journal import row, same
from zo_kernels.run.journal import Journal

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None  # where a sync costs nothing


class JournalMachine(RuleBasedStateMachine):
    """rows: steps that have rows. scores: by step. synced: both as of the last sync."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.path = self.folder / "journal.sqlite"
        self.journal = Journal.create(self.path, digest=b"config")
        self.rows: list[int] = []
        self.scores: dict[int, dict[str, tuple[float, float]]] = {}
        self.next_step = 0
        self.mark()

    def mark(self) -> None:
        """Everything so far survives a power cut."""
        self.synced = (list(self.rows), {step: dict(found) for step, found in self.scores.items()}, self.next_step)

    @rule(probes=st.integers(0, 1500))
    def append(self, probes: int) -> None:
        self.journal.append(row(self.next_step, probes=probes)._replace(seed=probes))
        self.rows.append(self.next_step)
        self.next_step += 1

    @rule(name=st.sampled_from(["validation", "longer", "test"]), loss=st.floats(0, 9), later=st.integers(0, 3))
    def add_scores(self, name: str, loss: float, later: int) -> None:
        step = max([0, self.next_step - later, *self.scores])
        self.journal.add_scores(step, {name: (loss, loss / 2)})
        self.scores.setdefault(step, {})[name] = (loss, loss / 2)

    @rule(missing=st.integers(1, 4))
    def leave_gap(self, missing: int) -> None:
        self.next_step += missing
        self.journal.leave_gap(self.next_step, b"%d" % self.next_step)

    @rule(back=st.integers(0, 6))
    def truncate(self, back: int) -> None:
        step = max(0, self.next_step - back)
        self.journal.truncate(step)
        if step < self.next_step:
            self.rows = [r for r in self.rows if r < step]
            self.scores = {s: found for s, found in self.scores.items() if s <= step}
            self.next_step = self.journal.next_step
            assert self.next_step <= step

    @rule()
    def sync(self) -> None:
        self.journal.sync()
        self.mark()

    @rule()
    def close_and_open(self) -> None:
        self.journal.close()
        self.mark()
        self.journal = Journal.open(self.path)

    @rule()
    def kill(self) -> None:
        """Goes on with the files as they are."""
        self.copy("", "-wal")
        self.mark()

    @rule()
    def cut_power(self) -> None:
        """Goes on with what was synced."""
        self.copy("")
        rows, scores, self.next_step = self.synced
        self.rows, self.scores = list(rows), {step: dict(found) for step, found in scores.items()}

    def copy(self, *ends: str) -> None:
        other = Path(tempfile.mkdtemp(dir=self.folder)) / "journal.sqlite"
        for end in ends:
            shutil.copy(f"{self.path}{end}", f"{other}{end}")
        self.journal.close()
        self.path, self.journal = other, Journal.open(other)

    def check(self, journal: Journal) -> None:
        found = [r for start, stop in journal.stretches() for r in journal.rows(start, stop)]
        assert [r.step for r in found] == self.rows
        assert all(same(r, row(r.step, probes=len(r.coeffs))._replace(seed=len(r.coeffs))) for r in found)
        assert journal.next_step == self.next_step
        assert {s: scores for s in range(200) if (scores := journal.scores(s))} == self.scores
        assert not journal.warnings
        last = journal.last_row()
        assert (None if last is None else last.step) == (self.rows[-1] if self.rows else None)

    @invariant()
    def holds_what_was_written(self) -> None:
        self.check(self.journal)

    @precondition(lambda self: len(self.rows) % 3 == 0)
    @invariant()
    def a_reader_sees_it_too(self) -> None:
        with Journal.open(self.path, writable=False) as reader:
            self.check(reader)

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.folder)


TestJournal = JournalMachine.TestCase
TestJournal.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
