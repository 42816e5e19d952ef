"""Folders and file lists: what they list, what they say of themselves, and what bad ones say."""

from pathlib import Path

import pytest

from dinov2.data.sources import FolderSource, ListSource
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
