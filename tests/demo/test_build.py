"""Builds are deterministic, skipped when done, and take folders of photographs as people have them."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import demo.build
from demo.__main__ import main
from demo.build import build_folder, build_packaged
from demo.photographs import packaged_photographs
from dinov2.params import read_yaml
from dinov2.records import CURATED, MANIFEST, REMOVED, write_table


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fill(folder: Path, *, num_images: int, seed: int, size_px: tuple[int, int] = (240, 200)) -> None:
    """Distinct images of smooth noise with fine detail."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(num_images):
        coarse = Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))
        coarse.resize(size_px).save(folder / f"{i:02d}.jpg", quality=80)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to run the commands in, with a params.yaml that has comments."""
    (tmp_path / "params.yaml").write_text(
        "# the run\ninputs:\n  crawl: inputs/demo/crawl      # WARC\n  seeds: inputs/demo/seeds\n"
        "  evaluation: inputs/demo/evaluation\n\nfilter:\n  least_px: 64   # kept\n  shares: [0.1,  0.2]\n"
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_packaged_build_twice_gives_equal_bytes(tmp_path, monkeypatch):
    few = packaged_photographs()[18:24]
    monkeypatch.setattr(demo.build, "packaged_photographs", lambda: few)
    first, second = build_packaged(tmp_path / "a"), build_packaged(tmp_path / "b")
    assert first.counts["labels"] == 6
    assert digests(first.folder) == digests(second.folder)


def test_build_is_skipped_when_there_and_redone_when_incomplete(tmp_path):
    fill(tmp_path / "photos" / "a", num_images=6, seed=0)
    fill(tmp_path / "photos" / "b", num_images=6, seed=1)
    built = build_folder(tmp_path / "inputs", tmp_path / "photos")
    before = digests(built.folder)
    assert not build_folder(tmp_path / "inputs", tmp_path / "photos").is_new
    (built.folder / "complete.json").unlink()
    shutil.rmtree(built.folder / "seeds")
    assert build_folder(tmp_path / "inputs", tmp_path / "photos").is_new
    assert digests(built.folder) == before


def test_class_folders_are_split_without_sharing_an_image(tmp_path):
    fill(tmp_path / "photos" / "a", num_images=20, seed=0)
    fill(tmp_path / "photos" / "b", num_images=20, seed=1)
    originals = set(digests(tmp_path / "photos").values())
    folder = build_folder(tmp_path / "inputs", tmp_path / "photos").folder
    seeds, evaluation = (set(digests(folder / role).values()) for role in ("seeds", "evaluation"))
    assert (len(seeds), len(evaluation)) == (6, 8)
    assert seeds < originals and evaluation < originals and not seeds & evaluation
    assert sorted(path.name for path in (folder / "seeds").iterdir()) == ["a", "b"]
    kinds = json.loads((folder / "planted.json").read_text())["kinds"]
    assert sum(kind == "photograph" for kind in kinds.values()) == 40 - 6 - 8


def test_split_does_not_depend_on_file_names(tmp_path):
    for label, seed in (("a", 0), ("b", 1)):
        fill(tmp_path / "x" / label, num_images=8, seed=seed)
        (tmp_path / "y" / label).mkdir(parents=True)
        for path in (tmp_path / "x" / label).iterdir():
            shutil.copy(path, tmp_path / "y" / label / f"{99 - int(path.stem)}.jpg")
    x, y = (build_folder(tmp_path / "inputs", tmp_path / name).folder for name in ("x", "y"))
    assert set(digests(x / "evaluation").values()) == set(digests(y / "evaluation").values())


def test_flat_folder_is_cut_into_tiles_labelled_by_photograph(tmp_path):
    fill(tmp_path / "photos", num_images=3, seed=0, size_px=(400, 320))
    built = build_folder(tmp_path / "inputs", tmp_path / "photos")
    assert sorted(path.name for path in (built.folder / "evaluation").iterdir()) == ["00", "01", "02"]
    assert built.counts["seeds"] > 6


def test_junk_files_are_skipped_and_counted_in_one_line(workspace, capsys):
    for label, seed in (("a", 0), ("b", 1)):
        fill(workspace / "photos" / label, num_images=6, seed=seed)
    (workspace / "photos" / "a" / "notes.txt").write_text("no image")
    (workspace / "photos" / "b" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    shutil.copy(workspace / "photos" / "a" / "00.jpg", workspace / "photos" / "b" / "again.jpg")
    assert main(["build", "--images", "photos"]) == 0
    assert "skipped 3 files: 1 not decodable, 1 not images, 1 the same bytes as another" in capsys.readouterr().out


def test_params_point_at_the_folder_and_nothing_else_changes(workspace, capsys):
    for label, seed in (("a", 0), ("b", 1)):
        fill(workspace / "my photos" / label, num_images=6, seed=seed)
    before = (workspace / "params.yaml").read_text()
    assert main(["build", "--images", "my photos"]) == 0
    said = capsys.readouterr().out
    inputs = read_yaml(workspace / "params.yaml")["inputs"]
    assert isinstance(inputs, dict)
    folder = Path(inputs["crawl"]).parent
    assert folder.name.startswith("my-photos-") and str(folder) in said and "inputs.crawl" in said
    assert Path(inputs["seeds"]).is_dir() and Path(inputs["evaluation"]).is_dir()
    assert (workspace / "params.yaml").read_text().replace(str(folder), "inputs/demo") == before


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("absent", "does not exist"),
        ("empty", "is empty"),
        ("junk", "holds no image (2 files: 1 not decodable, 1 not images)"),
        ("params.yaml", "is a file"),
        ("lonely", "fewer than 2 classes"),
        ("one", "give at least 2 such photographs"),
    ],
)
def test_useless_images_folder_is_one_sentence_and_exit_code_2(workspace, capsys, name, sentence):
    (workspace / "empty").mkdir()
    (workspace / "junk").mkdir()
    (workspace / "junk" / "a.txt").write_text("x")
    (workspace / "junk" / "a.png").write_bytes(b"x")
    fill(workspace / "lonely" / "a", num_images=1, seed=0)
    fill(workspace / "lonely" / "b", num_images=1, seed=1)
    fill(workspace / "one", num_images=1, seed=0)
    assert main(["build", "--images", name]) == 2
    error = capsys.readouterr().err
    assert name in error and sentence in error and error.count("\n") == 1
    assert not (workspace / "inputs").exists()


def manifest_row(url: str) -> dict[str, object]:
    """A manifest row in which only the URL matters."""
    return {
        "id": url,
        "shard": "s",
        "offset": 0,
        "length": 1,
        "width": 1,
        "height": 1,
        "mime": "image/jpeg",
        "url": url,
    }


def test_check_counts_a_copy_as_left_only_beside_its_original_or_another_copy(workspace, capsys):
    planted = {
        "kinds": {
            "a": "photograph",
            "a2": "copy_resized",  # beside its original: left
            "b": "photograph",
            "b2": "copy_resized",  # instead of its original: fine
            "c2": "copy_cropped",
            "c3": "copy_cropped",  # two copies without their original: one is left
            "e": "evaluation_copy",  # must go in any case
            "x": "blank",
        },
        "originals": {"a2": "a", "b2": "b", "c2": "c", "c3": "c", "e": "evaluation/l/0.jpg"},
    }
    (workspace / "inputs" / "demo").mkdir(parents=True)
    (workspace / "inputs" / "demo" / "planted.json").write_text(json.dumps(planted))
    unique = [manifest_row(url) for url in ("a", "a2", "b2", "c2", "c3", "e")]
    write_table(workspace / "data" / "dedup" / "manifest.parquet", MANIFEST, unique)
    write_table(workspace / "data" / "retrieve" / "manifest.parquet", CURATED, [{**unique[0], "origin": "sample"}])
    write_table(workspace / "data" / "filter" / "removed.parquet", REMOVED, [{"url": "x", "reason": "near_constant"}])
    assert main(["check"]) == 0
    found = json.loads((workspace / "work" / "demo-check.json").read_text())
    left = {kind: row["left"] for kind, row in found.items() if row["planted"]}
    assert left == {"photograph": 1, "copy_resized": 1, "copy_cropped": 1, "evaluation_copy": 1, "blank": 0}
    assert found["blank"]["removed_by"] == {"filter: near_constant": 1}
    assert found["photograph"]["curated"] == 1
    assert "2 of 5 planted copies are gone" in capsys.readouterr().out
