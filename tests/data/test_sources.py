"""Folders and file lists: what they list, what they say of themselves, and what bad ones say."""

import os
from pathlib import Path

import pytest
from PIL import Image

from dinov2.data.decode import FORMATS
from dinov2.data.sources import SUFFIXES, FolderSource, ListSource
from dinov2.params import InputError


def test_folder_source_is_sorted_and_labelled(tmp_path: Path) -> None:
    for name in ("b/2.jpg", "a/9.PNG", "a/1.jpeg", "loose.webp", "a/notes.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name.encode())
    source = FolderSource(tmp_path)
    assert [source.id(i) for i in range(len(source))] == ["a/1.jpeg", "a/9.PNG", "b/2.jpg", "loose.webp"]
    assert [source.label(i) for i in range(len(source))] == ["a", "a", "b", None]
    assert source.read(2) == b"b/2.jpg"


def test_folder_source_without_images_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        FolderSource(tmp_path)


def test_folder_source_fingerprint_is_of_names_and_sizes(tmp_path: Path) -> None:
    (tmp_path / "1.jpg").write_bytes(b"one")
    first = FolderSource(tmp_path).fingerprint()
    assert FolderSource(tmp_path).fingerprint() == first
    (tmp_path / "1.jpg").write_bytes(b"three")
    larger = FolderSource(tmp_path).fingerprint()
    (tmp_path / "2.jpg").write_bytes(b"two")
    assert len({first, larger, FolderSource(tmp_path).fingerprint()}) == 3


def test_folder_source_follows_links_and_counts_what_it_does_not_take(tmp_path: Path) -> None:
    for name in ("tree/a/1.avif", "tree/a/2.JFIF", "tree/a/3.heic", "tree/README", "elsewhere/4.ppm"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "tree/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree/c.png").symlink_to(tmp_path / "nothing")
    source = FolderSource(tmp_path / "tree")
    assert [(source.id(i), source.label(i)) for i in range(len(source))] == [
        ("a/1.avif", "a"), ("a/2.JFIF", "a"), ("b/4.ppm", "b"), ("c.png", None),
    ]  # fmt: skip
    assert source.others == {".heic": 1, "": 1}
    with pytest.raises(OSError, match=r"c\.png"):
        source.read(3)
    source.fingerprint()


def test_folder_source_takes_every_format_that_is_decoded(tmp_path: Path) -> None:
    Image.init()
    known = {suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS}
    assert known - {".pfm"} == SUFFIXES  # floats of unknown range


def test_folder_source_that_may_be_empty(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    source = FolderSource(tmp_path, may_be_empty=True)
    assert len(source) == 0
    assert source.others == {".txt": 1}


def test_folder_source_with_a_name_that_is_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.jpg")).touch()
    with pytest.raises(InputError, match="is not named in UTF-8"):
        FolderSource(tmp_path)


def listed(tmp_path: Path, text: str) -> ListSource:
    path = tmp_path / "images.txt"
    path.write_bytes(text.encode())
    return ListSource(path)


def test_list_source_reads_relative_to_the_list(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/ä b.jpg").write_bytes(b"data")
    source = listed(tmp_path, f"sub/ä b.jpg\tcat\r\n\n\r\n{tmp_path}/sub/ä b.jpg\n  c.png\t\nlast.png")
    assert len(source) == 4
    assert [source.id(i) for i in (0, 2, 3)] == ["sub/ä b.jpg", "  c.png", "last.png"]
    assert [source.label(i) for i in range(4)] == ["cat", None, None, None]
    assert source.read(0) == source.read(1) == b"data"


def test_list_source_of_long_and_many_lines(tmp_path: Path) -> None:
    names = [f"{'folder/' * (number % 150)}{number}.jpg" for number in range(1000)]
    source = listed(tmp_path, "\n".join(names) + "\n")
    assert [source.id(i) for i in range(len(source))] == names


def test_list_source_names_a_missing_file_only_when_it_is_read(tmp_path: Path) -> None:
    source = listed(tmp_path, "none.jpg\n")
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        source.read(0)


@pytest.mark.parametrize("text", ["", "\n", "\r\n\n"])
def test_list_source_without_a_line_says_so(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="has no line"):
        listed(tmp_path, text)


def test_list_source_that_is_absent_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be read"):
        ListSource(tmp_path / "none.txt")


def test_list_source_fingerprint_is_of_the_text(tmp_path: Path) -> None:
    assert listed(tmp_path, "a.jpg\n").fingerprint() != listed(tmp_path, "b.jpg\n").fingerprint()
