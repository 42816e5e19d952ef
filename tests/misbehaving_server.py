"""A web server that answers by path: good images and every kind of trouble that the open web has."""

import gzip
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from urllib.parse import unquote

NONE: Mapping[str, str] = {}
SCRIPT = b"<script>alert(1)</script>"
GIF = b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0\1\0\1\0\0\2\2D\1\0;"


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(name: str, width: int = 1, height: int = 1, *, num_bytes: int = 0) -> bytes:
    """A PNG file of 1 bit a pixel that carries its name, so that no two are equal; padded by `num_bytes`."""
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((1 + (width + 7) // 8) * height))
    text = chunk(b"tEXt", b"name\0" + name.encode() + bytes(num_bytes))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


class Handler(BaseHTTPRequestHandler):
    """Answers one request; what was asked, and when, is kept by the server."""

    protocol_version = "HTTP/1.1"

    @property
    def site(self) -> "MisbehavingServer":
        assert isinstance(self.server, MisbehavingServer)
        return self.server

    def do_GET(self) -> None:
        server = self.site
        with server.lock:
            server.asked[self.path] += 1
            server.times.append(time.monotonic())
            server.num_open += 1
            server.most_open = max(server.most_open, server.num_open)
        try:
            self.answer(self.path.strip("/").split("/"))
        except OSError:
            self.close_connection = True  # the client left, as it should
        finally:
            with server.lock:
                server.num_open -= 1

    def answer(self, path: list[str]) -> None:
        num_asked = self.site.asked[self.path]
        match path:
            case ["robots.txt"]:
                status = 200 if isinstance(self.site.robots, bytes) else self.site.robots
                body = self.site.robots if isinstance(self.site.robots, bytes) else b""
                self.send(status, body, headers=self.site.site_headers)
            case [".well-known", "tdmrep.json"]:
                self.send(200 if self.site.tdmrep else 404, self.site.tdmrep, headers=self.site.site_headers)
            case ["good", *name]:
                time.sleep(self.site.good_s)
                self.send(200, png("/".join(name)))
            case ["headed", name, value]:
                self.send(200, png("headed"), headers={name: unquote(value)})
            case ["size", width, height]:
                self.send(200, png("size", int(width), int(height)))
            case ["status", code, *_]:
                self.send(int(code), b"no")
            case ["flaky", num, name]:
                self.send(503, b"") if num_asked <= int(num) else self.send(200, png(name))
            case ["busy", retry_after, name] if num_asked == 1:
                self.send(429, b"", headers={"Retry-After": retry_after})
            case ["busy", _, name]:
                self.send(200, png(name))
            case _:
                self.redirect(path)

    def redirect(self, path: list[str]) -> None:
        match path:
            case ["loop"]:
                self.send(302, b"", headers={"Location": "/loop"})
            case ["hop", count]:
                self.send(301, b"", headers={"Location": f"/hop/{int(count) - 1}" if int(count) else "/good/hopped"})
            case ["away", *rest]:
                self.send(302, b"", headers={"Location": "/".join(rest)})
            case ["bytes"]:
                self.wfile.write(b"HTTP/1.1 302 Found\r\nLocation: /good/\xff\xfe\r\nContent-Length: 0\r\n\r\n")
            case _:
                self.misbehave(path)

    def misbehave(self, path: list[str]) -> None:
        match path:
            case ["html"]:
                self.send(200, b"<html>no image at all</html>")
            case ["html-gif"]:
                self.send(200, b"GIF89a/*<html>" + SCRIPT * 5 + b"*/</html>")
            case ["gif-script"]:
                self.send(200, GIF + SCRIPT)
            case ["jpeg-junk"]:
                self.send(200, b"\xff\xd8\xff\xe0\x00\x10JFIF\0" + b"junk" * 100)
            case ["large"]:
                self.send(200, png("large", num_bytes=300_000))
            case ["cut"]:
                self.send(200, png("cut"), cut_bytes=100)
            case ["short"]:
                self.send(200, png("short"), cut_bytes=-30)
            case ["gzip-bomb"]:
                self.send(200, gzip.compress(bytes(10_000_000), 1), headers={"Content-Encoding": "gzip"})
            case ["quiet-gzip"]:
                self.send(200, gzip.compress(png("quiet")))
            case _:
                self.drag_on(path)

    def drag_on(self, path: list[str]) -> None:
        self.close_connection = True
        match path:
            case ["endless"]:
                self.stream(b"HTTP/1.1 200 OK\r\n\r\n" + png("endless"), bytes(1000), pause_s=0.0)
            case ["slow"]:
                self.stream(b"HTTP/1.1 200 OK\r\n\r\n" + png("slow"), b"x", pause_s=0.05)
            case ["steady"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
                for byte in png("steady"):
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.01)
            case ["silent"]:
                self.stream(b"", b"", pause_s=0.05)
            case ["flood"]:
                self.stream(b"HTTP/1.1 200 OK\r\n", b"X-Flood: " + bytes(b"y" * 1000) + b"\r\n", pause_s=0.0)
            case ["continue"]:
                self.stream(b"", b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.001)
            case ["reset"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + png("reset"))
                self.wfile.flush()
                now = struct.pack("ii", 1, 0)
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, now)  # closing it sends a reset
                self.connection.close()
            case _:
                self.send(200, b"")

    def send(self, status: int, body: bytes, *, cut_bytes: int = 0, headers: Mapping[str, str] = NONE) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) + cut_bytes))
        self.send_header("Content-Type", "image/png")  # never to be trusted
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = cut_bytes > 0  # what is left over after a short length meets the next answer

    def stream(self, head: bytes, again: bytes, *, pause_s: float) -> None:
        self.wfile.write(head)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            self.wfile.write(again)
            time.sleep(pause_s)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        del code, size


class MisbehavingServer(ThreadingHTTPServer):
    """The server, with what it was asked."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, address: str) -> None:
        super().__init__((address, 0), Handler)
        self.url = f"http://{address}:{self.server_address[1]}"
        self.asked: Counter[str] = Counter()
        self.times: list[float] = []
        self.num_open = self.most_open = 0
        self.lock = Lock()
        self.robots: bytes | int = 404  # the file, or the status in its place
        self.tdmrep = b""
        self.site_headers: dict[str, str] = {}  # of both files
        self.good_s = 0.0

    def handle_error(self, request: object, client_address: object) -> None:
        """The client left, or was shown out."""


@contextmanager
def serving(address: str = "127.0.0.1") -> Iterator[MisbehavingServer]:
    """A server at an address of this machine; each of 127.0.0.x is a host of its own."""
    with MisbehavingServer(address) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
