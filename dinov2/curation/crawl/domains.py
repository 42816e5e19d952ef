"""Refused domains: a list in the params, and files of one domain a line, or hosts files as many publish them."""

import hashlib
import ipaddress
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from dinov2.curation.crawl.urls import UrlRefusedError, canonical_host
from dinov2.params import InputError, Params

REFUSED_DOMAINS = "refused_domains.txt"  # beside the records of a crawl


class DomainFile(Params):
    """A file of domains, pinned by its content: another list is another run."""

    path: str
    """The file, relative to where the pipeline runs; `#` begins a comment, an address before the domains is skipped."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the file, in hexadecimal (sha256sum prints it)."""


def refused_domains(listed: list[str], files: list[DomainFile]) -> frozenset[str]:
    """All domains that are listed or stand in a file, in their one spelling.

    Raises InputError if one is none, or a file is absent or another one than the params say.
    """
    return _refused_domains(tuple(listed), tuple(files))


@lru_cache(maxsize=2)  # a worker reads many parts, and a list has millions of lines
def _refused_domains(listed: tuple[str, ...], files: tuple[DomainFile, ...]) -> frozenset[str]:
    found = {_domain(domain, "crawl.refused_domains") for domain in listed}
    for file in files:
        path = Path(file.path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} can't be read ({error.strerror}); mend crawl.refused_domain_files") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != file.sha256:
            do = "check the file and mend crawl.refused_domain_files"
            raise InputError(f"{path} has sha256 {digest}, not {file.sha256}; {do}")
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            words = line.partition("#")[0].split()
            if len(words) > 1 and _is_address(words[0]):
                del words[0]
            found |= {_domain(word, f"line {number} of {path}") for word in words}
    return frozenset(found)


def write_domains(path: Path, domains: frozenset[str]) -> None:
    """Write refused domains, a line each, for the download, which is led to others by redirects."""
    path.write_text("".join(f"{domain}\n" for domain in sorted(domains)))


@lru_cache(maxsize=1)
def read_domains(path: Path) -> frozenset[str]:
    """What `write_domains` wrote; raises InputError if it is not there."""
    try:
        return frozenset(path.read_text().splitlines())
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); run crawl again") from error


def _domain(text: str, where: str) -> str:
    try:
        return canonical_host(text.strip(".").removeprefix("*."))
    except UrlRefusedError as error:
        raise InputError(f"{where} has {text!r}, which is no domain; mend or remove it") from error


def _is_address(word: str) -> bool:
    try:
        ipaddress.ip_address(word.partition("%")[0])
    except ValueError:
        return False
    return True
