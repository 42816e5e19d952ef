"""Folders whose files are unpickled, which runs what is in them: of this user alone, and looked at first."""

import os
import stat
from pathlib import Path

from dinov2.params import InputError

PRIVATE = 0o700


def make_private(folder: Path) -> None:
    """Make the folder, for this user alone; one that is there must be private already. Raises InputError if not."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=PRIVATE)
    except FileExistsError:
        check_private(folder)
    folder.chmod(PRIVATE)  # the umask may have taken more, and an earlier version of this code less


def check_private(folder: Path) -> None:
    """Raise InputError unless the folder is this user's and nobody else may put files there.

    It is the folder that counts: who can't write to it can't have put a file into it. Those above it are taken for as
    trustworthy as the code, which lies there as well.
    """
    about = folder.stat()
    who = os.geteuid()
    why = "what is unpickled from there could run another person's code"
    if not stat.S_ISDIR(about.st_mode):
        raise InputError(f"{folder} is not a folder; remove it and run again")
    if about.st_uid != who:
        raise InputError(
            f"{folder} belongs to user {about.st_uid}, not to you ({who}), and {why}; move it away, or if you trust it "
            f"run `chown -R {who} {folder}`"
        )
    if about.st_mode & 0o022:
        mode = f"{stat.S_IMODE(about.st_mode):04o}"
        raise InputError(
            f"others than you may write to {folder} (mode {mode}), and {why}; if you trust what is there now run "
            f"`chmod 700 {folder}`"
        )
