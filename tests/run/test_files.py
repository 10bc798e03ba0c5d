"""Files that are written whole or not at all, and read only if they are files."""

import errno
import os
import stat
from pathlib import Path

import pytest

from zo_kernels.run.files import make_folders, read_json, read_regular, remove_folders, write_atomically, write_text


def test_a_text_comes_back(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    write_text(tmp_path / "file", "naïve")
    write_text(tmp_path / "file", "naïve, again")
    assert read_regular(tmp_path / "file", 100).decode() == "naïve, again"
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert sorted(os.listdir(tmp_path)) == ["file", "usual"]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_what_was_there(failure: BaseException, tmp_path: Path) -> None:
    write_text(tmp_path / "file", "before")

    def fail(unfinished: Path) -> None:
        unfinished.write_text("half")
        raise failure

    with pytest.raises(type(failure)):
        write_atomically(tmp_path / "file", fail)
    assert (tmp_path / "file").read_text() == "before"
    assert os.listdir(tmp_path) == ["file"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "file").symlink_to(tmp_path / "victim")
    write_text(tmp_path / "file", "mine")
    assert (tmp_path / "victim").read_text() == "precious"
    assert stat.S_ISREG((tmp_path / "file").lstat().st_mode)


def test_the_limit_is_the_longest_that_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    assert read_regular(tmp_path / "file", 5) == b"12345"
    with pytest.raises(OSError, match="it is longer than the 4 bytes"):
        read_regular(tmp_path / "file", 4)


def test_links_are_followed_where_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("[1]")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(OSError, match="it is a symbolic link"):
        read_json(tmp_path / "link", 9)
    assert read_regular(tmp_path / "link", 9, follow=True) == b"[1]"


def test_folders_are_made_and_removed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    made = make_folders(tmp_path / "a" / "b" / "c")
    assert made == [tmp_path / "a" / "b", tmp_path / "a" / "b" / "c"]
    assert make_folders(tmp_path / "a" / "b" / "c") == []
    remove_folders(made)
    assert os.listdir(tmp_path / "a") == []
    (tmp_path / "a" / "file").touch()
    with pytest.raises(OSError, match="Not a directory"):
        make_folders(tmp_path / "a" / "file" / "x")


def test_folders_that_can_not_all_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Path.mkdir

    def failing(self: Path) -> None:
        if self.name == "c":
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        make(self)

    monkeypatch.setattr(Path, "mkdir", failing)
    with pytest.raises(OSError, match="quota"):
        make_folders(tmp_path / "a" / "b" / "c")
    assert os.listdir(tmp_path) == []
