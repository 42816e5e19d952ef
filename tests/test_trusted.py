"""Folders whose files are unpickled: one's own and closed to others, or refused."""

import os
from pathlib import Path

import pytest
from torch import nn

from dinov2.params import InputError
from dinov2.train.checkpoint import Checkpoints
from dinov2.trusted import check_private, make_private

ABORT = b"cos\nabort\n(tR."
"""A pickle that ends the process which reads it."""


def test_a_folder_is_made_for_this_user_alone_whatever_the_umask(tmp_path: Path) -> None:
    for umask in (0o000, 0o077, 0o277):
        before = os.umask(umask)
        try:
            make_private(tmp_path / str(umask))
        finally:
            os.umask(before)
        assert (tmp_path / str(umask)).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    for check in (check_private, make_private):
        with pytest.raises(InputError, match=rf"others than you may write to .* \(mode {mode:04o}\).*`chmod 700 "):
            check(tmp_path)


def test_a_folder_that_others_may_only_read_is_closed_when_it_is_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    check_private(tmp_path)
    make_private(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_another_user_s_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InputError, match=rf"belongs to user {owner}, not to you \({owner + 1}\)"):
        check_private(tmp_path)


def test_what_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a folder"):
        check_private(tmp_path / "file")


@pytest.mark.parametrize("place", ["", "step-000000001"])
def test_a_checkpoint_that_others_could_have_written_is_not_unpickled(tmp_path: Path, place: str) -> None:
    folder, model = tmp_path / "checkpoints", nn.Linear(1, 1)
    with Checkpoints(folder, fingerprint="a", num_kept=2) as checkpoints:
        checkpoints.save(1, model, {}, {})
    for path in (folder, folder / "step-000000001"):
        assert path.stat().st_mode & 0o777 == 0o700
    pickled = folder / "step-000000001/.metadata"
    pickled.write_bytes(ABORT.ljust(pickled.stat().st_size, b"."))
    (folder / place).chmod(0o770)
    with pytest.raises(InputError, match="others than you may write to"):
        Checkpoints(folder, fingerprint="a", num_kept=2).load_newest(model, {})
