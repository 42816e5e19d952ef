"""Hashes of inputs: what changes them, what does not, and what is not read again."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dinov2.params import InputError
from tasks.hashing import FILES_AT_ONCE, hash_inputs, hash_tree

LONG_AGO = 1_000_000_000


def make(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
        os.utime(folder / name, (LONG_AGO, LONG_AGO))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    make(tmp_path / "tree", "a/1 x.jpg", "a-b/2\n.jpg", "a/ä.jpg", "z", "a.b/c")
    return tmp_path / "tree"


def rewritten(path: Path) -> None:
    """Other bytes, of which size, time and inode say nothing."""
    data = path.read_bytes()
    with path.open("r+b") as stream:
        stream.write(bytes(byte ^ 1 for byte in data))
    os.utime(path, (LONG_AGO, LONG_AGO))


def test_hash_is_of_names_and_contents_in_order(tree: Path) -> None:
    names = ["a/1 x.jpg", "a/ä.jpg", "a-b/2\n.jpg", "a.b/c", "z"]
    text = "".join(f"{name}\0{hashlib.sha256(name.encode()).hexdigest()}\n" for name in names)
    assert hash_tree(tree) == hashlib.sha256(text.encode()).hexdigest()


def test_a_lone_file_is_hashed_with_its_name(tree: Path) -> None:
    assert hash_tree(tree / "z") == hashlib.sha256(f"z\0{hashlib.sha256(b'z').hexdigest()}\n".encode()).hexdigest()


def test_remembered_hashes_are_those_of_the_first_time(tree: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    first = hash_tree(tree, memory)
    rewritten(tree / "a-b/2\n.jpg")
    assert hash_tree(tree, memory) == first == hash_tree(tree, memory)
    assert hash_tree(tree) != first


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: (tree / "z").write_bytes(b"?"),
        lambda tree: (tree / "a/1 x.jpg").write_bytes(b"longer than before"),
        lambda tree: (tree / "z").unlink(),
        lambda tree: (tree / "a/1 x.jpg").rename(tree / "a/2 x.jpg"),
        lambda tree: make(tree, "a/00", "a-/1"),
        lambda tree: (tree / "a.b/c").replace(tree / "z"),
    ],
)
def test_changes_are_seen_beside_what_is_remembered(
    tree: Path, tmp_path: Path, change: Callable[[Path], object]
) -> None:
    memory = tmp_path / "memory"
    before = hash_tree(tree, memory)
    change(tree)
    assert before != hash_tree(tree) == hash_tree(tree, memory) == hash_tree(tree, memory)


def test_a_file_that_just_changed_is_read_again(tree: Path, tmp_path: Path) -> None:
    memory, now = tmp_path / "memory", time.time()
    os.utime(tree / "z", (now, now))
    first = hash_tree(tree, memory)
    (tree / "z").write_bytes(b"Z")
    os.utime(tree / "z", (now, now))
    assert hash_tree(tree, memory) == hash_tree(tree) != first


def test_a_damaged_memory_is_no_harm(tree: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory"
    first = hash_tree(tree, memory)
    (file,) = memory.iterdir()
    file.write_bytes(b"\0\xff no\n" + file.read_bytes()[40:-10])
    assert hash_tree(tree, memory) == first


def test_more_files_than_are_taken_at_once(tmp_path: Path) -> None:
    make(tmp_path / "tree", *(f"{number % 7}/{number}" for number in range(FILES_AT_ONCE + 5)))
    first = hash_tree(tmp_path / "tree", tmp_path / "memory")
    assert first == hash_tree(tmp_path / "tree", tmp_path / "memory") == hash_tree(tmp_path / "tree")
    rewritten(tmp_path / "tree/6/6")
    assert first == hash_tree(tmp_path / "tree", tmp_path / "memory") != hash_tree(tmp_path / "tree")


def test_what_lies_behind_links_counts(tree: Path, tmp_path: Path) -> None:
    make(tmp_path / "elsewhere", "file")
    before = hash_tree(tree)
    (tree / "link").symlink_to(tmp_path / "elsewhere")
    linked = hash_tree(tree)
    (tmp_path / "elsewhere/file").write_bytes(b"changed")
    changed = hash_tree(tree)
    (tree / "nowhere").symlink_to(tmp_path / "nothing")
    assert len({before, linked, changed, hash_tree(tree)}) == 4


def test_an_input_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--seeds .*none does not exist; run the stage that makes it"):
        hash_inputs({"seeds": str(tmp_path / "none")}, tmp_path / "memory")
