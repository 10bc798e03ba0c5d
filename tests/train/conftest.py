"""What the tests of the trainer share."""

from pathlib import Path

import pytest


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("to be or not to be, that is the question\n" * 20)
    return path
