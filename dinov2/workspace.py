"""Where the repository is, whose relative paths params name: also for a command in a temporary copy of it."""

from pathlib import Path


def workspace() -> Path:
    """The repository's root: the current folder, or the repository that it is a copy of.

    `dvc exp run --temp` and `--queue` run stages in copies of what git knows, below `.dvc/tmp/exps/`, and remove them
    afterwards. Store and tracking are those of the repository.
    """
    here = Path.cwd()
    for folder in here.parents:
        if folder.parts[-3:] == (".dvc", "tmp", "exps"):
            return folder.parents[2]
    return here


def is_copy() -> bool:
    """Whether the current folder is such a copy: what is left in it is lost."""
    return workspace() != Path.cwd()


def copies(root: Path) -> list[Path]:
    """The copies of the repository `root` that experiments run in now, or were killed in."""
    patterns = (".dvc/tmp/exps/tmp*/dvc.yaml", ".dvc/tmp/exps/*/tmp*/dvc.yaml")  # queued ones, others
    return sorted(path.parent for pattern in patterns for path in root.glob(pattern))
