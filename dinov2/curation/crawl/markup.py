"""The tags of a page that tell of images, read as browsers read them, in time linear in the page.

The HTML standard's tokenizer (section 13.2.5) as regular expressions that never go back, and no tree: a tree of 200,000
nested elements, one megabyte of them, costs a browser's parser more than a minute, and nothing here asks who contains
whom but `<picture>`. Text that is no markup (comments, scripts, ...) and the contents of `<template>` are passed over;
`<noscript>` is markup. Against the standard: a `</script>` ends a script within `<!--` too.
"""

import html
import re
from collections.abc import Iterator
from html.entities import html5
from typing import NamedTuple

_NAME_END = r"(?=[\t\n\f\r />])"
_NAME = r"(?:=[^\t\n\f\r />=]*+|[^\t\n\f\r />=]++)"
_EQUALS = r"[\t\n\f\r ]*+=[\t\n\f\r ]*+"
_ATTRIBUTE = re.compile(
    rf"({_NAME})(?:{_EQUALS}" r"""(?:"([^"]*+)"|'([^']*+)'|([^\t\n\f\r >]*+)))?+[\t\n\f\r /]*+"""
)
# What follows a tag's name. A quote that is never closed takes all the rest, and then the `>` is missing.
_REST = (
    rf"(?:[\t\n\f\r /]++|{_NAME}(?:{_EQUALS}"
    r"""(?:"[^"]*+(?:"|\Z)|'[^']*+(?:'|\Z)|[^\t\n\f\r >]*+))?+)*+>"""
)
_TEXT_ONLY = ("script", "style", "title", "textarea", "xmp", "iframe", "noembed", "noframes")
_READ = rf"(?:img|source|base|meta|/?picture|/?template|plaintext|{'|'.join(_TEXT_ONLY)})"
# Everything up to the next tag that is read. (No capture in here: CPython 3.11 loses those of possessive groups.)
_PASSED_OVER = re.compile(
    rf"(?:[^<]++"
    rf"|<(?![a-z/!?])"
    rf"|<!--(?:-?>|.*?(?:--!?>|\Z))"
    rf"|<(?!!--)(?:[!?]|/(?![a-z]))[^>]*+(?:>|\Z)"
    rf"|<(?!{_READ}{_NAME_END})/?[a-z][^\t\n\f\r />]*+{_REST}"
    rf")*+",
    re.IGNORECASE | re.DOTALL | re.ASCII,
)
_TAG = re.compile(rf"<(/?[a-z]++)({_REST})", re.IGNORECASE | re.ASCII)
_END_OF = {name: re.compile(rf"(?=</{name}{_NAME_END})", re.IGNORECASE | re.ASCII) for name in _TEXT_ONLY}
_REFERENCE = re.compile(r"&(?:#[xX]?[0-9a-fA-F]++;?|([a-zA-Z][a-zA-Z0-9]*+(?:;|(?!=))))")


class Tag(NamedTuple):
    """`img`, `source`, `base`, `meta`, `picture` or `/picture`, with its attributes: names in lower case."""

    name: str
    attributes: dict[str, str]


def read_tags(text: str) -> Iterator[Tag]:
    """The tags of a page that tell of images, in order; `<template>` is empty."""
    position, in_templates = 0, 0
    while True:
        passed_over = _PASSED_OVER.match(text, position)
        assert passed_over is not None  # it matches the empty string
        tag = _TAG.match(text, passed_over.end())
        if tag is None or tag.group(1).lower() == "plaintext":
            return  # the end, perhaps within a tag
        position, name = tag.end(), tag.group(1).lower()
        if name in _END_OF:
            end = _END_OF[name].search(text, position)
            if end is None:
                return
            position = end.start()
        elif name.endswith("template"):
            in_templates = in_templates + 1 if name == "template" else max(0, in_templates - 1)
        elif not in_templates:
            yield Tag(name, _attributes(tag.group(2)))


def _attributes(rest: str) -> dict[str, str]:
    """Attributes from what follows a tag's name; of several of one name the first."""
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(rest, 0, len(rest) - 1):  # the last character is the `>`
        if match.group(1):
            value = next((group for group in match.groups()[1:] if group is not None), "")
            name = match.group(1)
            found.setdefault(name.lower() if name.isascii() else name, decode_references(value))
    return found


def decode_references(text: str) -> str:
    """An attribute's value with its character references decoded: `&amp;` and `&copy`, but not `&copy=`."""
    return _REFERENCE.sub(_decode, text) if "&" in text else text


def _decode(reference: re.Match[str]) -> str:
    if reference.group(1) is not None:
        return html5.get(reference.group(1), reference.group())
    try:
        return html.unescape(reference.group())
    except ValueError:  # thousands of digits
        return "\ufffd"
