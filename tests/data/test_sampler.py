"""The endless order and the sources."""

from collections import Counter
from pathlib import Path

import pytest

from dinov2.data.sampler import FolderSource, permute, sample_index
from dinov2.params import InputError


@pytest.mark.parametrize("length", [1, 2, 3, 7, 64, 65, 1000])
def test_permute_is_a_permutation(length: int) -> None:
    assert sorted(permute(place, length, 42) for place in range(length)) == list(range(length))


def test_permute_of_many_reaches_far() -> None:
    assert 0 <= permute(123_456_789_012, 10**12, 7) < 10**12


def test_permute_mixes_well() -> None:
    firsts = Counter(permute(0, 10, key) for key in range(5000))
    assert min(firsts.values()) > 400
    steps = Counter((permute(place + 1, 1000, 9) - permute(place, 1000, 9)) % 1000 for place in range(999))
    assert max(steps.values()) < 12


def test_sample_index_visits_all_in_every_pass_in_another_order() -> None:
    passes = [[sample_index(5, number * 50 + place, 50) for place in range(50)] for number in range(3)]
    assert all(sorted(order) == list(range(50)) for order in passes)
    assert passes[0] != passes[1] != passes[2]
    assert passes[0] != [sample_index(6, place, 50) for place in range(50)]


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
