"""The crawl: every reference accounted for, each URL once, opt-outs honoured, damaged files read as far as they go."""

import gzip
import hashlib
import json
import time
from pathlib import Path

import pytest
from crawls import HTML, OPT_OUT, PARAMS, Answer, crawl, crawl_page, write_warc

from dinov2.curation.crawl.candidates import file_groups
from dinov2.curation.crawl.domains import DomainFile, refused_domains
from dinov2.params import InputError

SITE = "http://site.example"
GIF = "data:image/gif;base64,R0lGODlh"
GIF_NAME = f"data:image/gif;sha256,{hashlib.sha256(b'GIF89a').hexdigest()}"


def test_every_reference_is_kept_or_dropped_with_reason(tmp_path: Path) -> None:
    page = (
        '<base href="http://cdn.example/b/"><img src="a.jpg" alt=" A \n dog ">'
        '<img src="s.jpg" srcset="m.jpg 200w, l.jpg 400w"><img src="javascript:x"><img alt="none">'
        '<img src="http://x.bad.example/p.jpg"><img src="http://[/"><img src="/b/a.jpg">'
    )
    result = crawl_page(tmp_path, page, '<img src="http://cdn.example/b/a.jpg" alt="later">')
    assert result.urls == ["http://cdn.example/b/a.jpg", "http://cdn.example/b/l.jpg"]
    assert result.records[0]["alt"] == "A dog"
    assert result.records[0]["page_url"] == "http://site.example/dir/page0.html"
    assert result.reasons == ["smaller_candidate"] * 2 + [
        "refused_scheme",
        "no_url",
        "refused_domain",
        "malformed_url",
        "repeated",
        "repeated",
    ]
    assert [row["url"] for row in result.removed[:2]] == ["http://cdn.example/b/m.jpg", "http://cdn.example/b/s.jpg"]
    assert result.metrics["pages"] == 2


def test_the_largest_url_that_is_not_refused_is_taken(tmp_path: Path) -> None:
    result = crawl_page(tmp_path, f'<img src="b.jpg" srcset="//bad.example/a.jpg 3x, {GIF} 2x">')
    assert result.urls == ["http://site.example/dir/b.jpg"]
    assert [(row["url"], row["reason"]) for row in result.removed] == [
        ("http://bad.example/a.jpg", "refused_domain"),
        (GIF_NAME, "smaller_candidate"),
    ]


def test_data_uris_are_images_of_limited_size(tmp_path: Path) -> None:
    same = GIF.replace("data:image/gif;", "DATA:image/GIF;x=y;")
    large = "data:image/png;base64," + "A" * 1000
    result = crawl_page(tmp_path, f'<img src="{GIF}"><img src="{same}"><img src="{large}"><img src="data:image/png,%">')
    assert result.urls == [GIF, "data:image/png;base64,JQ=="]
    assert result.removed[0]["url"] == GIF_NAME
    assert result.reasons == ["repeated", "too_large"]
    assert crawl_page(tmp_path, f'<img src="{GIF}"><img src=a>', schemes=["http"]).reasons == ["refused_scheme"]


def test_schemes_are_those_of_the_params(tmp_path: Path) -> None:
    result = crawl_page(tmp_path, '<img src="a.jpg"><img src="https://a.example/b.jpg">', schemes=["https"])
    assert (result.urls, result.reasons) == (["https://a.example/b.jpg"], ["refused_scheme"])


@pytest.mark.parametrize("name", ["x/a.warc.gz", "x/a.warc"])
def test_answers_in_the_warc_are_found(tmp_path: Path, name: str) -> None:
    answers = [Answer(SITE, HTML, b'<img src="/1.png"><img src="/2.png"><img src="/3.png">')]
    answers += [Answer(f"{SITE}/{i}.png", "image/png", b"image" * i) for i in (1, 2)]
    write_warc(tmp_path / name, answers)
    result = crawl(tmp_path)
    assert [record["warc"] for record in result.records] == [name, name, None]
    data = (tmp_path / name).read_bytes()
    for record in result.records[:2]:
        at = data[record["warc_offset"] :]
        assert (gzip.decompress(at) if name.endswith("gz") else at).startswith(b"WARC/1.0")


def test_a_lasting_refusal_in_the_crawl_settles_a_url_unless_it_also_gave_the_image(tmp_path: Path) -> None:
    tags = "".join(f'<img src="/{name}.png">' for name in ("gone", "back", "moved", "busy"))
    write_warc(tmp_path / "a.warc", [Answer(SITE, HTML, tags.encode())])
    answers = {"b": ("404 Not Found", ["gone", "back"]), "c": ("302 Found", ["moved"]), "d": ("429 Slow", ["busy"])}
    for file, (status, names) in {**answers, "e": ("200 OK", ["back"])}.items():
        found = [Answer(f"{SITE}/{name}.png", "image/png", b"", status) for name in names]
        write_warc(tmp_path / f"{file}.warc", found)
    assert [record["warc"] for record in crawl(tmp_path).records] == ["b.warc", "e.warc", None, None]


def test_html_folder_gives_file_urls(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/a b.html").write_text('<img src="x y.jpg"><img src="http://site.example/z.jpg">')
    result = crawl(tmp_path)
    assert result.urls == ["file:///sub/x%20y.jpg", "http://site.example/z.jpg"]
    assert result.records[0]["page_url"] == "file:///sub/a%20b.html"


def test_a_base_leads_no_page_of_the_web_to_files(tmp_path: Path) -> None:
    result = crawl_page(tmp_path, '<base href="file:///"><img src="a">', '<base href="http://[/"><img src="b">')
    assert result.urls == ["http://site.example/dir/a", "http://site.example/dir/b"]


def test_file_names_outside_utf8(tmp_path: Path) -> None:
    (tmp_path / "\udcff.html").write_text('<img src="a.jpg">')
    assert crawl(tmp_path).records[0]["page_url"] == "file:///%FF.html"
    (tmp_path / "\udcff.warc").touch()
    with pytest.raises(InputError, match="is not named in UTF-8"):
        crawl(tmp_path)


def test_wat_sitemaps_and_lists_are_read_beside_pages(tmp_path: Path) -> None:
    links = [{"path": "IMG@/src", "url": "w.jpg", "alt": "from WAT"}, {"path": "A@/href", "url": "no"}]
    answer = {"Response-Message": {"Status": "200"}, "Headers": {}, "HTML-Metadata": {"Head": {}, "Links": links}}
    about = {"WARC-Target-URI": f"{SITE}/dir/", "WARC-Type": "response"}
    envelope = {"WARC-Header-Metadata": about, "Payload-Metadata": {"HTTP-Response-Metadata": answer}}
    wat = [json.dumps({"Envelope": envelope}).encode(), b"junk", b'{"Envelope": []}', b"[" * 100_000]
    write_warc(tmp_path / "a.warc.wat.gz", [Answer(SITE, "application/json", data, kind="metadata") for data in wat])
    sitemap = f"<urlset><url><image><loc>{SITE}/s.jpg</loc></image><loc>{SITE}/p</loc></url></urlset>".encode()
    (tmp_path / "b.xml.gz").write_bytes(gzip.compress(sitemap))
    (tmp_path / "c-urls.txt").write_text(f"# list\n{SITE}/l.jpg\n\nl2.jpg\n")
    write_warc(tmp_path / "d.warc", [Answer(f"{SITE}/map", "text/xml", sitemap.replace(b"s.jpg", b"s2.jpg"))])
    result = crawl(tmp_path)
    names = {record["url"]: record["page_url"] for record in result.records}
    assert names == {
        f"{SITE}/dir/w.jpg": f"{SITE}/dir/",
        f"{SITE}/s.jpg": f"{SITE}/p",
        f"{SITE}/l.jpg": "file:///c-urls.txt",
        "file:///l2.jpg": "file:///c-urls.txt",
        f"{SITE}/s2.jpg": f"{SITE}/p",
    }
    assert result.records[0]["alt"] == "from WAT"
    expected = {"pages": 1, "malformed_wat_records": 2, "sitemaps": 2, "pages_in_sitemaps": 2, "lists": 1}
    assert {name: result.metrics[name] for name in expected} == expected


def test_sitemaps_in_archives_have_their_own_limit_and_feeds_are_none(tmp_path: Path) -> None:
    entries = "".join(f"<url><image><loc>{SITE}/{number}.jpg</loc></image></url>" for number in range(20_000))
    page = "<!DOCTYPE html><html/>"
    xml = {"map": f"<urlset>{entries}</urlset>", "cut": "<urlset><url>", "feed": "<rss/>", "page": page}
    write_warc(tmp_path / "a.warc", [Answer(f"{SITE}/{name}", "text/xml", text.encode()) for name, text in xml.items()])
    result = crawl(tmp_path)
    assert len(xml["map"]) > 1_000_000  # max_page_mb
    assert len(result.records) == 20_000
    assert (result.metrics["sitemaps"], result.metrics["damaged_sitemaps"]) == (2, 1)


@pytest.mark.parametrize(
    ("headers", "head", "reason"),
    [
        ([("X-Robots-Tag", "noai")], "", "page_x_robots_tag_noai"),
        ([("TDM-Reservation", "1")], "", "page_tdm_header"),
        ([], '<meta name="robots" content="noimageai, nofollow">', "page_meta_robots_noimageai"),
        ([], '<meta name="tdm-reservation" content="1">', "page_tdm_meta"),
    ],
)
def test_a_page_opts_out_with_all_its_images(
    tmp_path: Path, headers: list[tuple[str, str]], head: str, reason: str
) -> None:
    body = f'{head}<img src="/a.jpg" srcset="b.jpg 2x"><img src="{GIF}">'
    result = crawl_page(tmp_path, body, headers=headers)
    assert (result.urls, result.reasons) == ([], [reason] * 3)
    assert result.metrics["opted_out_pages"] == 1
    nobody = OPT_OUT.model_copy(update={"directives": [], "tdm_reservation": False})
    assert len(crawl_page(tmp_path, body, headers=headers, opt_out=nobody).urls) == 2


def test_rules_that_the_crawl_holds_elsewhere_are_honoured(tmp_path: Path) -> None:
    shown = ("/no/a.jpg", "/tdm/b.jpg", "/c.jpg", "//cdn.example/d.jpg", "e.jpg")
    tags = "".join(f'<img src="{url}">' for url in shown)
    page = Answer(f"{SITE}/p", HTML, tags.encode())
    other = Answer("http://cdn.example/p", HTML, b'<img src="http://third.example/f.jpg">')
    write_warc(tmp_path / "a.warc.gz", [page, other])
    assert len(crawl(tmp_path).urls) == 6
    rules = [
        Answer(f"{SITE}/robots.txt", "text/plain", b"User-agent: pipeline-bot\nDisallow: /no/\n"),
        Answer(f"{SITE}/robots.txt", "text/plain", b"User-agent: *\nAllow: /\n"),
        Answer(f"{SITE}/.well-known/tdmrep.json", "application/json", b'[{"location":"/tdm/","tdm-reservation":1}]'),
        Answer("http://cdn.example/robots.txt", "text/html", b"broken", "503 Busy"),
        Answer("http://third.example/robots.txt", "text/plain", b"User-agent: *\nDisallow: /", "404 Not Found"),
        Answer(f"{SITE}/c.jpg", "image/jpeg", b"jpeg", headers=[("X-Robots-Tag", "otherbot: none, *: noimageai")]),
    ]
    write_warc(tmp_path / "z.warc.gz", rules)
    result = crawl(tmp_path)
    assert result.urls == [f"{SITE}/e.jpg"]
    assert result.reasons == ["robots_txt", "tdm_file", "x_robots_tag_noimageai", "robots_txt", "page_robots_txt"]
    nobody = OPT_OUT.model_copy(update={"robots_txt": False, "directives": [], "tdm_reservation": False})
    assert len(crawl(tmp_path, PARAMS.model_copy(update={"opt_out": nobody})).urls) == 6


def test_refused_domains_come_from_files_too(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    lines = "# hosts", "0.0.0.0 ads.example more.example # 2", "::1%lo0 localhost", "plain.example", "", "*.w.example"
    path.write_text("\n".join(lines))
    file = DomainFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    domains = {"ads.example", "more.example", "localhost", "plain.example", "w.example", "xn--bcher-kva.example"}
    assert refused_domains([".Bücher.example."], [file]) == domains
    result = crawl_page(tmp_path, '<img src="//a.ads.example/x"><img src="y">', refused_domain_files=[file])
    assert result.reasons == ["refused_domain"]
    with pytest.raises(InputError, match=r"sha256 .* check the file"):
        refused_domains([], [DomainFile(path=str(path), sha256="0" * 64)])
    with pytest.raises(InputError, match=r"nowhere can't be read"):
        refused_domains([], [DomainFile(path="nowhere", sha256="0" * 64)])
    path.write_text("a.example\nno domain/at all\n")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match=r"line 2 of .* has 'domain/at', which is no domain"):
        refused_domains([], [DomainFile(path=str(path), sha256=digest)])


def test_parts_change_nothing(tmp_path: Path) -> None:
    for number in range(6):
        tags = "".join(f'<img src="{SITE}/{i}.jpg" srcset="{i}.png 2x">' for i in range(number, number + 3))
        (tmp_path / f"{number}.html").write_text(f"<base href={SITE}>{tags}" + " " * 600_000)
        write_warc(tmp_path / f"{number}.warc.gz", [Answer(f"{SITE}/{number}.png", "image/png", b"")])
    assert [len(group) for group in file_groups(tmp_path, part_mb=1)] == [2] * 6
    small, large = crawl(tmp_path), crawl(tmp_path, PARAMS.model_copy(update={"part_mb": 1000}))
    assert small == large
    assert len(small.urls) == 8
    assert small.metrics["images_in_warc"] == 6


def test_undeclared_latin_page_and_invalid_utf8_url(tmp_path: Path) -> None:
    write_warc(tmp_path / "a.warc", [Answer(SITE, HTML, b'<img src="\xff.jpg"><img src="%FF.jpg">')])
    result = crawl(tmp_path)
    assert (result.urls, result.reasons) == (["http://site.example/%FF.jpg"], ["malformed_url"])


@pytest.mark.parametrize("name", ["b.warc.gz", "b.warc"])
def test_truncated_warc_gives_what_came_before(tmp_path: Path, name: str) -> None:
    pages = [Answer(f"{SITE}/{i}", HTML, f'<img src="/{i}.jpg">'.encode()) for i in range(3)]
    write_warc(tmp_path / name, pages[:2])
    complete_bytes = (tmp_path / name).stat().st_size
    write_warc(tmp_path / name, pages)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / "c.html").write_text('<img src="http://site.example/after.jpg">')
    for cut in range(complete_bytes + 1, len(whole) - 16, 13):  # gzip's sum and line ends follow
        (tmp_path / name).write_bytes(whole[:cut])
        result = crawl(tmp_path)
        assert result.metrics["damaged_files"] == 1, cut
        assert result.urls == [f"{SITE}/{i}.jpg" for i in (0, 1)] + [f"{SITE}/after.jpg"], cut


def test_corrupt_gzip_is_counted(tmp_path: Path) -> None:
    pages = [Answer(f"{SITE}/{i}", HTML, f'<img src="/{i}.jpg">'.encode()) for i in range(4)]
    write_warc(tmp_path / "a.warc.gz", pages)
    data = bytearray((tmp_path / "a.warc.gz").read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xaa" * 40
    (tmp_path / "a.warc.gz").write_bytes(data)
    for name in ("b.warc.gz", "b.wat.gz", "b.xml.gz", "b.urls.txt.gz"):
        (tmp_path / name).write_bytes(b"no gzip at all")
    (tmp_path / "cut.urls.txt.gz").write_bytes(gzip.compress(b"".join(b"x%d.jpg\n" % i for i in range(999)))[:-9])
    result = crawl(tmp_path)
    assert result.metrics["damaged_files"] == 6
    assert f"{SITE}/0.jpg" in result.urls
    assert "file:///x0.jpg" in result.urls


@pytest.mark.parametrize("num", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_hostile_pages_cost_time_linear_in_their_size(tmp_path: Path, num: int) -> None:
    srcset = ",".join(f"{i:x} {i}w" for i in range(num))
    pages = ["<div>" * 2 * num, "<a><b>" * num, '<img src="' + "x" * 9 * num, f'<img srcset="{srcset}">']
    pages += ["<img " + "".join(f"a{i}=1 " for i in range(num // 2)) + " src=last>", "<p " * 3 * num]
    started = time.process_time()
    result = crawl_page(tmp_path, *pages, max_page_mb=20.0, part_mb=1000)
    assert time.process_time() - started < 3 + 150e-6 * num  # mostly the type checks of the tests
    assert result.urls == [f"{SITE}/dir/{num - 1:x}", f"{SITE}/dir/last"]
    assert result.reasons == ["smaller_candidate"] * 99 + ["too_many_candidates"] * (num - 100)


def test_page_of_50_mb_is_counted_and_not_read(tmp_path: Path) -> None:
    started = time.process_time()
    result = crawl_page(tmp_path, '<img src="a.jpg">', '<img src="b.jpg">' + "<p>" * 17_000_000)
    assert result.urls == ["http://site.example/dir/a.jpg"]
    assert result.metrics["oversized_pages"] == 1
    assert time.process_time() - started < 10


def test_file_that_is_no_crawl_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        file_groups(tmp_path / "absent", part_mb=1)
    with pytest.raises(InputError, match="holds no file"):
        file_groups(tmp_path, part_mb=1)


def test_files_behind_links_are_read_and_links_to_nowhere_are_damage(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/a.html").write_text('<img src="x.jpg">')
    (tmp_path / "crawl").mkdir()
    (tmp_path / "crawl/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "crawl/gone.html").symlink_to(tmp_path / "nothing")
    result = crawl(tmp_path / "crawl")
    assert result.urls == ["file:///linked/x.jpg"]
    assert result.metrics["damaged_files"] == 1
