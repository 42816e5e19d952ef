"""What the crawl costs: ordinary and hostile pages of a size, by this reader and by a browser's tree; and whole stages.

Run:   python -m benchmarks.crawl_pages > benchmarks/results/crawl_pages.md
Every reading runs in a process of its own, which is ended after LIMIT_S; seconds are of the processor.
"""

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from demo.crawl import make_pages
from demo.planted import Resource
from dinov2.curation.crawl.candidates import CrawlParams, file_groups, read_part
from dinov2.curation.crawl.markup import read_tags
from dinov2.curation.crawl.unique import keep_once
from dinov2.params import load_section

LIMIT_S = 120.0
LARGE_BYTES = 10_000_000
PAGES = {
    "unclosed `<div>`": "<div>",
    "unclosed `<a><b>`": "<a><b>",
    "`<img src=a>`": "<img src=a>",
    "quotes never closed": '<a b="',
    "one tag, distinct attributes": None,
}


def main() -> None:
    """Print both tables."""
    print("Seconds for one page of 1 and of 10 MB; `-`: ended after 120 s.\n")
    print("| page | tags, 1 MB | tree, 1 MB | tags, 10 MB | tree, 10 MB |\n|---|---:|---:|---:|---:|")
    for name, piece in PAGES.items():
        cells = []
        for size in (LARGE_BYTES // 10, LARGE_BYTES):
            attributes = " ".join(f"a{i}=1" for i in range(size // 10))
            text = piece * (size // len(piece)) if piece else f"<p {attributes}>"
            cells += [_seconds(_read_tags, text), _seconds(_read_tree, text)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    print("\nWhole crawl stage on one core, HTML files:\n")
    print("| crawl | files | MB | references | s | a second | peak MB |\n|---|---:|---:|---:|---:|---:|---:|")
    ordinary = {f"{number}.html": page for number, page in enumerate(_ordinary_pages(4000))}
    million = "<img srcset='" + ",".join(f"{i:x} {i}w" for i in range(1_000_000)) + "'>"
    for name, files in {"the demo's pages": ordinary, "a million candidates": {"a.html": million.encode()}}.items():
        receive, send = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_crawl, args=(files, send))
        process.start()
        seconds, references, peak_mb = receive.recv()
        process.join()
        size = sum(map(len, files.values())) / 1e6
        rate = f"{len(files) / seconds:,.0f} pages" if len(files) > 1 else f"{references / seconds:,.0f} candidates"
        print(f"| {name} | {len(files):,} | {size:.1f} | {references:,} | {seconds:.1f} | {rate} | {peak_mb:.0f} |")


def _read_tags(text: str) -> int:
    return sum(1 for _ in read_tags(text))


def _read_tree(text: str) -> int:
    from selectolax.lexbor import LexborHTMLParser

    return len(LexborHTMLParser(text).css("img, source, base, meta"))


def _seconds(read: Callable[[str], int], text: str) -> str:
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_time, args=(read, text, send))
    process.start()
    seconds = f"{receive.recv():.2f}" if receive.poll(LIMIT_S) else "-"
    process.terminate()
    process.join()
    return seconds


def _time(read: Callable[[str], int], text: str, send: Connection) -> None:
    started = time.process_time()
    read(text)
    send.send(time.process_time() - started)


def _ordinary_pages(num: int) -> list[bytes]:
    sites = ("news.example", "photos.example", "garden.example")
    urls = [f"https://{sites[i % 3]}/media/{i:06d}.jpg" for i in range(round(num * 7.5))]
    resources = [Resource(url, "photograph", "image/jpeg", b"", "a photo") for url in urls]
    return [page.content for page in make_pages(resources)]


def _crawl(files: dict[str, bytes], send: Connection) -> None:
    params = load_section(Path("params.yaml"), "crawl", CrawlParams).model_copy(update={"max_page_mb": 100.0})
    with tempfile.TemporaryDirectory() as folder:
        crawl, work = Path(folder, "crawl"), Path(folder, "work")
        crawl.mkdir()
        for name, data in files.items():
            (crawl / name).write_bytes(data)
        started = time.process_time()
        parts = []
        for number, group in enumerate(file_groups(crawl, part_mb=params.part_mb)):
            parts.append(work / str(number))
            read_part(group, params, crawl=crawl, out=parts[-1])
        counts = keep_once(parts, params, out=work / "out", work=work)
        seconds = time.process_time() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    send.send((seconds, counts.num_kept + sum(counts.dropped.values()), peak_mb))


if __name__ == "__main__":
    main()
