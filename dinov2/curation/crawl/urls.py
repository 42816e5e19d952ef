"""URLs of images: made absolute, brought to one spelling, and refused where they must not be followed.

One image has one spelling here: lower-case scheme and host, no default port, no fragment, no dot segments, everything
outside ASCII percent-encoded, in capitals, and nothing else that need not be. So "kept once" means what it says. A
`file` URL is rooted at the crawl folder (`file:///pages/a.html` is `<crawl>/pages/a.html`): the records then do not
depend on where that folder lies, and no page can point outside it.
"""

import base64
import binascii
import hashlib
import ipaddress
import re
from pathlib import Path
from urllib.parse import quote, unquote, unquote_to_bytes, urljoin, urlsplit

MAX_URL_CHARS = 8192  # longer ones are refused: most servers stop there (RFC 9110 asks for at least 8000)
SHOWN_CHARS = 200  # what of a refused URL is kept in the tables: a data: URI can be megabytes
DEFAULT_PORTS = {"http": 80, "https": 443}
_ESCAPE = re.compile(r"%([0-9a-fA-F]{2})")
_LONE_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?")
_MIME = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")
_SRCSET_ITEM = re.compile(r"[\s,]*+(\S++)")
_DESCRIPTOR = re.compile(r"(\d++(?:\.\d++)?+)([wx])")
_DESCRIPTORS = re.compile(r"(?:[^,(]++|\([^)]*+\)?+)*+")


class UrlRefusedError(ValueError):
    """A URL that is not followed; `reason` is the drop reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def resolve(reference: str, base: str) -> str:
    """The one spelling of the image that `reference`, found at the canonical URL `base`, stands for.

    Raises UrlRefusedError with `refused_scheme` (anything but http and https, and file from a file page) or
    `malformed_url` (no parse, no host, user and password in it, undecodable characters, too long, outside the crawl).
    """
    reference = re.sub(r"[\t\n\r]", "", reference.strip("".join(map(chr, range(33)))))
    scheme = re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*(?=:)", reference)
    allowed = {"http", "https", "file"} if base.startswith("file:") else {"http", "https"}
    if scheme and scheme.group().lower() not in allowed:
        raise UrlRefusedError("refused_scheme")
    if not reference or len(reference) > MAX_URL_CHARS or "\ufffd" in reference:
        raise UrlRefusedError("malformed_url")
    path, question_mark, query = reference.partition("?")
    return canonical(urljoin_checked(base, path.replace("\\", "/") + question_mark + query))


def urljoin_checked(base: str, reference: str) -> str:
    """`urllib.parse.urljoin`, with what it can't join refused as `malformed_url`."""
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise UrlRefusedError("malformed_url") from error


def canonical(url: str) -> str:
    """The one spelling of the absolute `url`; raises UrlRefusedError as `resolve` does."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise UrlRefusedError("malformed_url") from error
    if parts.scheme not in ("http", "https", "file"):
        raise UrlRefusedError("refused_scheme")
    path = _without_dots(_unescaped(quote(parts.path, safe="/%:@!$&'()*+,;=~", errors="replace"))) or "/"
    query = _unescaped(quote(parts.query, safe="/%:@!$&'()*+,;=~?[]", errors="replace"))
    query = f"?{query}" if query else ""
    if parts.scheme == "file":
        if host or port or ".." in unquote(path).split("/"):
            raise UrlRefusedError("malformed_url")
        return "file:///" + path.lstrip("/")  # a query means nothing to a file, nor do empty folder names first
    if parts.username is not None or parts.password is not None:
        raise UrlRefusedError("malformed_url")
    netloc = canonical_host(host)
    if port is not None and port != DEFAULT_PORTS[parts.scheme]:
        netloc += f":{port}"
    return f"{parts.scheme}://{netloc}{path}{query}"


def _unescaped(text: str) -> str:
    """`text` with capitals in its escapes and without those that mean the same as their character (RFC 3986 6.2.2).

    One in which a lone `%` stands is left as it is: what its escapes are is not certain.
    """
    return text if _LONE_PERCENT.search(text) else _ESCAPE.sub(_spelled, text)


def _spelled(escape: re.Match[str]) -> str:
    character = chr(int(escape.group(1), 16))
    return character if character.isascii() and (character.isalnum() or character in "-._~") else escape.group().upper()


def _without_dots(path: str) -> str:
    """`path` without `.` and `..` segments, which urljoin leaves in references that are absolute already."""
    return urljoin("http://host/", "." + path)[len("http://host") :] if "/." in path else path


def canonical_host(host: str) -> str:
    """Lower-case ASCII spelling of a host name or address; raises UrlRefusedError if it can't be one."""
    if ":" in host:
        try:
            return f"[{ipaddress.IPv6Address(host)}]"
        except ValueError as error:
            raise UrlRefusedError("malformed_url") from error
    try:
        name = host.rstrip(".").encode("idna").decode().lower()
    except UnicodeError as error:
        raise UrlRefusedError("malformed_url") from error
    if len(name) > 253 or not _HOST.fullmatch(name) or ".." in name:
        raise UrlRefusedError("malformed_url")
    return name


def path_and_query(url: str) -> str:
    """What follows the host in a canonical URL."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}" if parts.query else parts.path


def decode_data_uri(url: str) -> tuple[str, bytes]:
    """Type, in lower case and without its parameters, and content of a `data:` URI (RFC 2397, read as browsers do).

    Raises UrlRefusedError with `malformed_data_uri`.
    """
    head, comma, body = url.partition(",")
    if head[:5].lower() != "data:" or not comma:
        raise UrlRefusedError("malformed_data_uri")
    mime, *parameters = (part.strip().lower() for part in head[5:].split(";"))
    try:
        data = unquote_to_bytes(body.partition("#")[0])
        if parameters and parameters[-1] == "base64":
            letters = data.translate(None, b" \t\n\r\f").rstrip(b"=")
            data = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
    except (UnicodeError, binascii.Error) as error:
        raise UrlRefusedError("malformed_data_uri") from error
    return mime or "text/plain", data


def canonical_data_uri(url: str) -> str:
    """The one spelling of a `data:` URI: in base64, without parameters; raises as `decode_data_uri` does."""
    mime, data = decode_data_uri(url)
    if not _MIME.fullmatch(mime):
        raise UrlRefusedError("malformed_data_uri")
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def data_uri_name(mime: str, data: bytes) -> str:
    """What a `data:` image is called once its bytes are stored: `data:image/png;sha256,<hex>`."""
    return f"data:{mime};sha256,{hashlib.sha256(data).hexdigest()}"


def shown(url: str) -> str:
    """How a canonical URL that is not taken is listed: a `data:` URI, which can be long, by its name."""
    return data_uri_name(*decode_data_uri(url)) if url.startswith("data:") else url


def site_of(url: str) -> str:
    """Scheme, host and port of the canonical `url`, without a final slash."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.partition('/')[0]}"


def is_refused_domain(url: str, domains: frozenset[str]) -> bool:
    """Whether the host of the canonical `url` is one of `domains` or stands below one."""
    labels = (urlsplit(url).hostname or "").split(".")
    return any(".".join(labels[start:]) in domains for start in range(len(labels)))


def local_path(url: str, crawl: Path) -> Path:
    """The file below the folder `crawl` that a canonical `file` URL names."""
    path = unquote_to_bytes(urlsplit(url).path).decode("utf-8", "surrogateescape")
    return crawl / path.lstrip("/").replace("\0", "\ufffd")


def file_url(path: Path, crawl: Path) -> str:
    """The `file` URL, rooted at `crawl`, of a file below it."""
    return "file:///" + quote(path.relative_to(crawl).as_posix().encode("utf-8", "surrogateescape"), safe="/")


def srcset_candidates(srcset: str) -> list[tuple[float, float, str]]:
    """Width in pixels (0: none given), density and URL of the candidates of an `srcset` (HTML standard 4.8.4.3)."""
    found: list[tuple[float, float, str]] = []
    position = 0
    while match := _SRCSET_ITEM.match(srcset, position):
        url, position = match.group(1), match.end()
        width, density = 0.0, 1.0
        if url.endswith(","):
            url = url.rstrip(",")
        else:
            descriptors = _DESCRIPTORS.match(srcset, position)
            assert descriptors is not None  # it matches the empty string
            position = descriptors.end()
            width, density = _descriptors(descriptors.group())
        if url:
            found.append((width, density, url))
    return found


def _descriptors(text: str) -> tuple[float, float]:
    """Width in pixels (0: none given) and density of a candidate; a descriptor that is no number counts as none."""
    width, density = 0.0, 1.0
    for token in text.split():
        number = _DESCRIPTOR.fullmatch(token)
        if number and number.group(2) == "w":
            width = float(number.group(1))
        elif number:
            density = float(number.group(1))
    return width, density
