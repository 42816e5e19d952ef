"""Files below a folder: their order, links, and folders that can't be read."""

import os
from pathlib import Path

import pytest

from dinov2.files import files_below, is_utf8
from dinov2.params import InputError


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_files_come_in_the_order_of_paths(tmp_path: Path) -> None:
    make(tmp_path, "b", "a/2", "a-b/1", "a/10", "a.b/c/d", "a/c/e", "B")
    found = list(files_below(tmp_path))
    assert found == ["B", "a/10", "a/2", "a/c/e", "a-b/1", "a.b/c/d", "b"]
    assert found == [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*")) if path.is_file()]


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    make(tmp_path, "elsewhere/x/1", "tree/own")
    (tmp_path / "tree/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree/again").symlink_to(tmp_path / "elsewhere/x")
    (tmp_path / "tree/file").symlink_to(tmp_path / "elsewhere/x/1")
    (tmp_path / "tree/gone").symlink_to(tmp_path / "nothing")
    (tmp_path / "tree/self").symlink_to(tmp_path / "tree")
    (tmp_path / "elsewhere/x/up").symlink_to(tmp_path / "elsewhere")
    found = list(files_below(tmp_path / "tree"))
    assert found == ["again/1", "file", "folder/x/1", "gone", "own"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_a_mistake(tmp_path: Path) -> None:
    make(tmp_path, "closed/1")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(InputError, match="closed can't be read"):
        list(files_below(tmp_path))


def test_a_folder_that_is_gone_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none can't be read"):
        list(files_below(tmp_path / "none"))


def test_names_that_are_no_text_are_known() -> None:
    assert is_utf8("ä b.jpg")
    assert not is_utf8(os.fsdecode(b"\xff.jpg"))
