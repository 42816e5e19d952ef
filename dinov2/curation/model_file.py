"""Files of pretrained models that params name: where they are, and that they are the right ones. Imports no torch."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dinov2.params import InputError
from dinov2.records import sha256_file

PACKAGE = "package:"


def find_model(path: str, sha256: str, *, where: str) -> Path:
    """The file `path`, which may be `package:<distribution>/<file>` for one that an installed package carries.

    Raises InputError, naming the params key `where`, if it is absent or has another sha256.
    """
    file = in_package(path, where) if path.startswith(PACKAGE) else Path(path)
    if not file.is_file():
        raise InputError(f"{where}.path: {path} does not exist; put the file there or take another kind of model")
    found = sha256_file(file)
    if found != sha256:
        raise InputError(f"{where}.sha256: {path} has sha256 {found}, not {sha256}; take the right file")
    return file


def in_package(path: str, where: str) -> Path:
    """The place of `package:<distribution>/<file>`; raises InputError if the package is not installed."""
    name, _, file = path.removeprefix(PACKAGE).partition("/")
    try:
        return Path(str(distribution(name).locate_file(file)))
    except (PackageNotFoundError, ValueError) as error:
        raise InputError(f"{where}.path: package '{name}' is not installed; pip install it or give a file") from error
