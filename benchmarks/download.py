"""What the download costs: images a second of CPU, and memory, phase by phase, as a Markdown table.

Run:   python benchmarks/download.py

A server on this machine, in a process of its own, gives distinct PNG files of 50 kB from 16 addresses of the loopback
network; the same files lie in a WARC. Each case runs in a fresh process: one part, no delay between requests, four
requests a host at once. Seconds are the process's CPU time, memory is the greatest it held. So the table says what a
core bears, not what hosts or a network do.
"""

import asyncio
import gzip
import platform
import resource
import shutil
import socket
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import Process, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dinov2.curation.crawl.domains import REFUSED_DOMAINS, write_domains
from dinov2.curation.download.images import DownloadParams
from dinov2.params import load_section
from dinov2.records import IMAGE_RECORDS, write_table
from dinov2.store import Store, StoreParams
from tasks import download
from tasks.fan_out import named

HOSTS = [f"127.0.0.{i}" for i in range(1, 17)]
IMAGE_BYTES = 50_000
SIZES = {"HTTP": (2000, 8000), "WARC": (2000, 8000)}


def image(number: int) -> bytes:
    """A PNG file of `IMAGE_BYTES` or a little more, that no other number has."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 1, 0, 0, 0, 0))
    text = chunk(b"tEXt", b"name\0" + str(number).encode() + NOISE)
    return b"\x89PNG\r\n\x1a\n" + header + text + chunk(b"IDAT", zlib.compress(b"\0\0")) + chunk(b"IEND", b"")


NOISE = b"".join(zlib.crc32(struct.pack(">I", i)).to_bytes(4, "big") for i in range(IMAGE_BYTES // 4))


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests of one connection: `/<number>` by an image, everything else by 404."""
    try:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            name = line.split()[1][1:]
            body, status = (image(int(name)), b"200 OK") if name.isdigit() else (b"", b"404 Not Found")
            writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)) + body)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


def serve(listener: socket.socket) -> None:
    """Serve until killed."""

    async def main() -> None:
        server = await asyncio.start_server(answer, sock=listener)
        await server.serve_forever()

    asyncio.run(main())


def write_warc(path: Path, num_images: int) -> list[int]:
    """A WARC with the images; returns the offsets."""
    offsets = []
    with path.open("wb") as stream:
        for number in range(num_images):
            http = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n\r\n" + image(number)
            head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: http://h.example/{number}\r\n"
            head += f"Content-Length: {len(http)}\r\nContent-Type: application/http\r\n\r\n"
            offsets.append(stream.tell())
            stream.write(gzip.compress(head.encode() + http + b"\r\n\r\n", 6))
    return offsets


def measure(folder: Path, params: DownloadParams) -> list[tuple[str, float, float]]:
    """CPU seconds and greatest megabytes so far, by phase."""
    store = Store(StoreParams(url=str(folder / "store"), cache="", remote=None))
    values: dict[str, Any] = {"params": params, "crawl_records": folder, "crawl": folder, "work": folder / "work"}
    rows = []
    for phase in download.PHASES:
        started = time.process_time()
        for part in range(phase.count(**named(phase.count, values))):
            phase.do(part=part, **named(phase.do, {**values, "store": store}))
        megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        rows.append((phase.name, time.process_time() - started, megabytes))
    return rows


def make_records(source: str, num_images: int, folder: Path, port: int) -> None:
    """The records of one case, and what they need."""
    about = {"page_url": "http://h.example/", "alt": "", "warc": None, "warc_offset": None}
    if source == "HTTP":
        urls = [f"http://{HOSTS[i % len(HOSTS)]}:{port}/{i}" for i in range(num_images)]
        rows = [{**about, "url": url} for url in urls]
    else:
        offsets = write_warc(folder / "a.warc.gz", num_images)
        urls = [f"http://h.example/{i}" for i in range(num_images)]
        rows = [
            {**about, "url": url, "warc": "a.warc.gz", "warc_offset": offset}
            for url, offset in zip(urls, offsets, strict=True)
        ]
    write_table(folder / "records.parquet", IMAGE_RECORDS, rows)
    write_domains(folder / REFUSED_DOMAINS, frozenset())


def lone(work: Callable[..., Any], *arguments: Any) -> Any:
    """The result of `work`, done in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


def main() -> None:
    """Print the table."""
    values = load_section(Path("params.yaml"), "download", DownloadParams).model_dump()
    values |= {"num_parts": 1}
    values["http"]["allow_private_addresses"] = True
    values["politeness"] |= {"max_hosts": len(HOSTS), "max_per_host": 4, "delay_s": 0.0}
    params = DownloadParams.model_validate(values)
    listener = socket.create_server(("0.0.0.0", 0))
    server = Process(target=serve, args=(listener,), daemon=True)
    server.start()
    print(f"Printed by `python benchmarks/download.py`. Python {platform.python_version()}.\n")
    print("| source | images | phase | CPU seconds | images a CPU second | greatest MB so far |")
    print("|---|---|---|---|---|---|")
    for source, sizes in SIZES.items():
        for num_images in sizes:
            with TemporaryDirectory() as name:
                folder = Path(name)
                make_records(source, num_images, folder, listener.getsockname()[1])
                for phase, seconds, megabytes in lone(measure, folder, params):
                    if seconds > 0.05:
                        rate = num_images / seconds
                        print(f"| {source} | {num_images} | {phase} | {seconds:.2f} | {rate:.0f} | {megabytes:.0f} |")
                shutil.rmtree(folder / "store")
    server.terminate()


if __name__ == "__main__":
    main()
