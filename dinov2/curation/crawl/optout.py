"""Opt-outs: what a page, its server or its site says against use of its images, and by which rule.

Three ways are read: robots directives (`X-Robots-Tag` headers and `<meta name="robots">`: `noai`, `noimageai`,
`noindex`, ...), the TDM Reservation Protocol (header, `<meta>`, and the site's `/.well-known/tdmrep.json`), and
robots.txt (`robots.py`). A reservation anywhere counts, whatever another place says: in doubt an image is left out.
Pure functions of text, so that pages read from archives and answers of servers are judged alike.
"""

import json
from collections.abc import Iterable
from typing import Literal, NamedTuple

from dinov2.curation.crawl.robots import product_token
from dinov2.curation.crawl.urls import path_and_query
from dinov2.params import Params

TDMREP_PATH = "/.well-known/tdmrep.json"
MAX_TDMREP_BYTES = 1 << 19  # what stands behind is not read
MAX_DIRECTIVES_CHARS = 1 << 16  # of one header or <meta>
# Directives whose value follows a colon: in X-Robots-Tag any other `name:` addresses the agent of that name.
_WITH_VALUE = {"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"}


class OptOutParams(Params):
    """Which opt-outs are honoured."""

    robots_txt: bool
    """Images and pages that their hosts' robots.txt disallows."""
    directives: list[Literal["noai", "noimageai", "noindex", "noimageindex", "none"]]
    """Robots directives, in X-Robots-Tag or `<meta>`, that mean no."""
    tdm_reservation: bool
    """Reservations of text and data mining: header, `<meta>` and /.well-known/tdmrep.json."""


class TdmRule(NamedTuple):
    """One entry of a tdmrep.json."""

    location: str
    """Pattern of paths: `*` stands for anything, a final `$` for the end."""
    is_reserved: bool


def is_opt_out(reason: str) -> bool:
    """Whether a drop reason of crawl or download is an opt-out, of the image or of its page."""
    return reason.removeprefix("page_").startswith(("robots_txt", "tdm_", "x_robots_tag_", "meta_robots_"))


def headers_opt_out(headers: Iterable[tuple[str, str]], params: OptOutParams, user_agent: str) -> str | None:
    """The rule by which the headers of an answer, as (name, value), say no: a drop reason; None if they don't."""
    for name, value in headers:
        kind = name.strip().lower()
        if kind == "x-robots-tag":
            rule = _first(header_directives(value, user_agent), params)
            if rule:
                return f"x_robots_tag_{rule}"
        if kind == "tdm-reservation" and params.tdm_reservation and value.strip() == "1":
            return "tdm_header"
    return None


def meta_opt_out(metas: Iterable[tuple[str, str]], params: OptOutParams, user_agent: str) -> str | None:
    """The rule by which the `<meta>` elements of a page, as (name, content), say no; None if they don't."""
    for name, content in metas:
        kind = name.strip().lower()
        if kind in ("robots", product_token(user_agent)):
            words = {word.strip() for word in content[:MAX_DIRECTIVES_CHARS].lower().split(",")}
            rule = _first(words, params)
            if rule:
                return f"meta_robots_{rule}"
        if kind == "tdm-reservation" and params.tdm_reservation and content.strip() == "1":
            return "tdm_meta"
    return None


def tdmrep_opt_out(rules: list[TdmRule], params: OptOutParams, url: str) -> str | None:
    """The rule by which a site's tdmrep.json reserves the canonical `url`; None if no entry does."""
    if not params.tdm_reservation:
        return None
    path = path_and_query(url)
    return "tdm_file" if any(rule.is_reserved and matches(rule.location, path) for rule in rules) else None


def header_directives(value: str, user_agent: str) -> set[str]:
    """Lower-case directives of an X-Robots-Tag that are for everyone or for `user_agent`.

    `noai, otherbot: noindex, none` addresses the last two to otherbot: a name holds until the next one.
    """
    found: set[str] = set()
    is_for_us = True
    for item in value[:MAX_DIRECTIVES_CHARS].lower().split(","):
        name, colon, directive = item.partition(":")
        if not colon or name.strip() in _WITH_VALUE:
            directive = item
        else:
            is_for_us = name.strip() in ("*", product_token(user_agent))
        if is_for_us:
            found.add(directive.strip())
    return found


def parse_tdmrep(data: bytes) -> list[TdmRule]:
    """Entries of a tdmrep.json; what is no entry, or no JSON at all, says nothing and is passed over."""
    try:
        entries = json.loads(data[:MAX_TDMREP_BYTES].decode("utf-8-sig", errors="replace"))
    except (ValueError, RecursionError):
        return []
    return [
        TdmRule(entry["location"], str(entry.get("tdm-reservation")) == "1")
        for entry in (entries if isinstance(entries, list) else [entries])
        if isinstance(entry, dict) and isinstance(entry.get("location"), str)
    ]


def matches(pattern: str, path: str) -> bool:
    """Whether a path begins as `pattern` says, in time linear in both; `*` and a final `$` as in robots.txt."""
    is_anchored = pattern.endswith("$")
    first, *others = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    last = others.pop() if is_anchored and others else None
    for part in others:
        found = path.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    if last is not None:
        return len(path) - len(last) >= position and path.endswith(last)
    return not is_anchored or position == len(path)


def _first(directives: set[str], params: OptOutParams) -> str | None:
    return next((directive for directive in params.directives if directive in directives), None)
