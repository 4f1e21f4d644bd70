"""Pages from a real site over real HTTP: what is read, what is refused, what is remembered."""

from __future__ import annotations

import json
import logging
import pickle
import random
import shutil
import ssl
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address

import pytest
from support.trainer_helpers import chat_tokenizer
from support.web_site import Site, article, serve_site

from mem1_trl.environment_runtime.actions import run_calls
from mem1_trl.environments import WebQAEnvironment
from mem1_trl.retrying import Cancellation
from mem1_trl.web import (
    CachedSearch,
    Fetcher,
    FetchError,
    LocalWeb,
    SearxngSearch,
    SerpApiSearch,
    SerperSearch,
    WebCache,
    WebResult,
)
from mem1_trl.web.addresses import is_public, read_address
from mem1_trl.web.exchange import HTTPConnection
from mem1_trl.web.politeness import Pace
from mem1_trl.web.readable import decode, readable

pytest.importorskip("trafilatura")


@pytest.fixture
def site():
    with serve_site(Site()) as server:
        yield server


def fetcher(**kwargs):
    return Fetcher(**{"allow_private": True, "requests_per_second": 1000.0, "timeout": 5.0, **kwargs})


# --- Pages -----------------------------------------------------------------------------------------------------------


def test_a_page_is_its_text_without_menus_and_scripts(site):
    page = fetcher().fetch(f"{site.url}/iron")
    assert page.title == "Iron" and page.url == f"{site.url}/iron" and not page.cut
    assert "symbol Fe and the atomic number 26" in page.text and "most common element" in page.text
    assert not any(word in page.text for word in ("menus", "Log in", "secret script", "<p>"))
    assert site.paths == ["/robots.txt", "/iron"]
    assert all(agent.startswith("mem1-trl/") for agent in site.agents)


def test_redirects_are_followed_to_where_they_end(site):
    page = fetcher().fetch(f"{site.url}/moved")
    assert page.url == f"{site.url}/iron" and "symbol Fe" in page.text
    with pytest.raises(FetchError, match="more than 3 times"):
        fetcher(max_redirects=3).fetch(f"{site.url}/loop")
    assert site.paths.count("/loop") == 4


@pytest.mark.parametrize(
    ("location", "path"),
    [
        ("/café".encode(), "/caf%C3%A9"),
        ("/Åland?q=鉄".encode(), "/%C3%85land?q=%E9%89%84"),
        ("/café".encode("latin-1"), "/caf%E9"),
        (b"/a b?c d", "/a%20b?c%20d"),
        ("  /a é ".encode(), "/a%20%C3%A9"),
        (b"/caf%C3%A9", "/caf%C3%A9"),
        (b"/100%25", "/100%25"),
    ],
)
def test_a_redirect_may_be_written_in_letters(site, location, path):
    """The header was read as Latin-1, and a space was said to be the agent's."""
    site.locations["/old"] = location
    with pytest.raises(FetchError, match="has no such page"):
        fetcher().fetch(f"{site.url}/old")
    assert site.paths[1:] == ["/old", path]


@pytest.mark.parametrize(
    ("location", "fact"),
    [
        (b"ftp://example.org/a", r"'ftp://example.org/a' is not a web address"),
        (b"http://example.org:22/", "Port 22 is not a port of a web server"),
        (b"http://me:pass@example.org/", "Addresses with a user name or password are not visited"),
        (b"/a\\b", "must not contain a space, a backslash or a control character"),
        (b"http://[", "is not a web address"),
    ],
)
def test_a_bad_redirect_is_the_sites(site, location, fact):
    site.locations["/old"] = location
    with pytest.raises(FetchError, match=fact) as caught:
        fetcher().fetch(f"{site.url}/old")
    assert str(caught.value).startswith("127.0.0.1 redirects to an address that cannot be visited (")
    assert "write" not in str(caught.value)


def test_compressed_pages(site):
    assert "symbol Fe" in fetcher().fetch(f"{site.url}/gzip").text
    began = time.monotonic()
    page = fetcher(max_bytes=100_000).fetch(f"{site.url}/bomb")  # 20 MB in 20 kB
    assert page.cut and len(page.text) <= 100_000 and time.monotonic() - began < 60


def test_a_declared_encoding_may_be_wrong(site):
    page = fetcher().fetch(f"{site.url}/wrong-charset")
    assert page.title == "Café" and "heißt dort café, très fort" in page.text
    assert "Un café très fort, s'il vous plaît." in fetcher().fetch(f"{site.url}/utf8-as-latin1").text


@pytest.mark.parametrize(
    ("body", "declared", "text"),
    [
        ("Eisen heißt fer".encode("utf-16"), None, "Eisen heißt fer"),
        ("\ufeffäß".encode(), "latin-1", "äß"),
        ("鉄".encode("iso2022_jp"), "iso-2022-jp", "鉄"),
        ("鉄".encode("shift_jis"), "shift_jis", "鉄"),
        (b'<meta charset="windows-1251">' + "железо".encode("cp1251"), None, '<meta charset="windows-1251">железо'),
        ("käse".encode()[:-3], "no-such-encoding", "k"),  # cut within a character
        (b"abc", "base64", "abc"),  # an encoding, but none of text
        ("鉄は金属である".encode() + b"\xff" + "鉄".encode(), "UTF-8", "鉄は金属である\ufffd鉄"),  # one bad byte
        ("naïve café, très fort".encode() + b"\x92", None, "naïve café, très fort\ufffd"),  # an apostrophe of Windows
        ("käse".encode() + b"\xe9 x", "utf8", "käse\ufffd x"),
        ("鉄は金属である".encode() + b"\xe2\x82", "latin-1", "鉄は金属である"),  # cut within a character
        ("鉄は金属である".encode() + b"\xe2\x82 ", "latin-1", "鉄は金属である\ufffd "),
        (b'<meta charset="utf-8">' + "Käse; 鉄".encode() + b"\x80", None, '<meta charset="utf-8">Käse; 鉄\ufffd'),
        (
            "鉄は金属である".encode("shift_jis") + b"\xff" + "鉄".encode("shift_jis"),
            "shift_jis",
            "鉄は金属である\ufffd鉄",
        ),
        ("Café très fort".encode("latin-1"), "utf-8", "Café très fort"),  # declared by mistake
        ("\ufffd".encode(), None, "\ufffd"),  # as it was written
    ],
)
def test_decoding(body, declared, text):
    assert decode(body, declared) == text


def test_a_bad_byte_costs_one_character_and_not_the_page():
    page = article("鉄", "鉄は元素記号Feの金属である。" * 20).encode()
    middle = page.index("元素".encode()) + 6
    for bad in (b"\xff", b"\x80", b"\0", b"\xed\xa0\x80", b"\x01"):
        title, text = readable(page[:middle] + bad + page[middle:], "text/html", "utf-8", "https://a.example/")
        assert title == "鉄" and text.count("鉄は元素記号Feの金属である。") >= 19, bad


def test_a_big_page_is_cut(site):
    page = fetcher(max_bytes=50_000).fetch(f"{site.url}/big")
    assert page.cut and "Sentence number 0 " in page.text and len(page.text) < 50_000
    assert "Sentence number 2999 " not in page.text
    assert fetcher(max_bytes=50_000).fetch(f"{site.url}/endless").cut


def test_a_page_that_drips_is_given_up(site):
    began = time.monotonic()
    with pytest.raises(FetchError, match=r"did not answer within 0.5 seconds") as caught:
        fetcher(timeout=0.5).fetch(f"{site.url}/slow")
    assert caught.value.passing and time.monotonic() - began < 60  # it drips without end


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/missing", r"has no such page \(HTTP 404\)"),
        ("/binary", "'application/octet-stream', which cannot be read"),
        ("/binary-as-text", "is not text, although its type says so"),
        ("/empty", "no text on this page"),
        ("/broken", "broke"),
        ("/nonsense", "broke|sent a malformed HTTP answer"),
        ("/private/iron", "does not allow robots"),
        ("/paper.pdf", "does not allow robots"),
        ("/leave?to=/private/iron", "does not allow robots"),
        ("/leave?to=file:///etc/passwd", "not a web address"),
        ("/leave?to=gopher://x/", "not a web address"),
    ],
)
def test_what_cannot_be_read_says_why(site, path, message):
    with pytest.raises(FetchError, match=message):
        fetcher().fetch(site.url + path)
    assert not {"/private/iron", "/paper.pdf"} & set(site.paths)


def test_plain_text(site):
    assert fetcher().fetch(f"{site.url}/plain").text == "Iron has the symbol Fe."


# --- Manners ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("status", "allowed"), [(404, True), (403, True), (500, False), (429, False)])
def test_a_site_without_rules_allows_all_and_one_that_fails_nothing(status, allowed):
    with serve_site(Site(robots=status)) as site:
        if allowed:
            assert fetcher().fetch(f"{site.url}/private/iron").title == "Iron"
        else:
            with pytest.raises(FetchError, match=r"robots.txt fails"):
                fetcher().fetch(f"{site.url}/iron")
            assert fetcher(obey_robots=False).fetch(f"{site.url}/iron").title == "Iron"


def test_rules_are_those_for_our_name_and_are_loaded_once():
    with serve_site(Site("User-agent: my-study\nDisallow: /iron\n\nUser-agent: *\nDisallow:\n")) as site:
        polite = fetcher(user_agent="my-study/1.0 (+https://example.org)")
        for _ in range(2):
            with pytest.raises(FetchError, match="does not allow"):
                polite.fetch(f"{site.url}/iron")
        assert site.paths == ["/robots.txt"]
        assert fetcher().fetch(f"{site.url}/iron").title == "Iron"


def test_a_host_is_asked_at_its_pace(site):
    slow = fetcher(requests_per_second=10.0)
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        pages = list(pool.map(slow.fetch, [f"{site.url}/iron?{n}" for n in range(4)]))
    assert len(pages) == 4 and time.monotonic() - began >= 0.39  # robots.txt and four pages: four waits
    pace = Pace(1.0)
    pace.wait("a", patience=0.0)
    pace.wait("b", patience=0.0)
    with pytest.raises(FetchError, match="Too many pages of a"):
        pace.wait("a", patience=0.5)


def test_a_crawl_delay_is_kept():
    with serve_site(Site("User-agent: *\nCrawl-delay: 0.3\n")) as site:
        polite = fetcher()
        polite.fetch(f"{site.url}/iron")
        began = time.monotonic()
        polite.fetch(f"{site.url}/plain")
        assert time.monotonic() - began >= 0.25


# --- What is not visited ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1:248:1893:25c8:1946", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of 93.184.216.34
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("240.0.0.1", False),
        ("192.0.2.1", False),
        ("::1", False),
        ("::", False),
        ("fe80::1", False),
        ("fc00::1", False),
        ("fec0::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("::127.0.0.1", False),
        ("2002:7f00:1::", False),  # 6to4 of 127.0.0.1
        ("64:ff9b::7f00:1", False),  # NAT64 of 127.0.0.1
        ("2001:0:7f00:1::", False),  # Teredo by way of 127.0.0.1
    ],
)
def test_public_addresses(ip, public):
    assert is_public(ip_address(ip)) is public


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"]
)
def test_this_machine_is_not_visited_under_any_name(site, host):
    with pytest.raises(
        FetchError, match=r"private network|host .* is not known|does not name a host|not a web address"
    ):
        fetcher(allow_private=False).fetch(f"http://{host}:{site.server_port}/iron")
    assert site.requests == []


def test_a_redirect_into_the_private_network_is_not_followed(site, monkeypatch):
    import mem1_trl.web.addresses as addresses

    # The site counts as public, as one that an attacker owns would
    monkeypatch.setattr(addresses, "is_public", lambda ip: str(ip) == "127.0.0.1")
    with pytest.raises(FetchError, match="private network"):
        fetcher(allow_private=False).fetch(f"{site.url}/leave?to=http://169.254.169.254/latest/meta-data/")
    with pytest.raises(FetchError, match="private network"):
        fetcher(allow_private=False).fetch(f"{site.url}/leave?to=http://127.0.0.2:{site.server_port}/iron")
    assert "/iron" not in site.paths


def test_a_name_that_changes_its_address_leads_nowhere_else(site, monkeypatch):
    answers = ["93.184.216.34", "127.0.0.1"]
    connected = []

    def connect(self):
        connected.append(self.host)
        raise OSError("no network here")

    def resolver(host, port, **kwargs):
        return [(2, 1, 6, "", (answers.pop(0), port))]

    monkeypatch.setattr(HTTPConnection, "connect", connect)
    with pytest.raises(FetchError, match=r"rebind\.test:8080 does not answer\."):
        fetcher(allow_private=False, obey_robots=False, resolver=resolver).fetch("http://rebind.test:8080/iron")
    assert connected == ["93.184.216.34"] and answers == ["127.0.0.1"]


def test_the_connection_goes_to_the_address_that_was_checked(site):
    """Under the name of the site, which the resolver alone knows."""
    page = fetcher(resolver=site.resolver).fetch(f"http://site.test:{site.server_port}/iron")
    assert page.url == f"http://site.test:{site.server_port}/iron"
    assert {host for _, host in site.requests} == {f"site.test:{site.server_port}"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("ftp://example.org/", "not a web address"),
        ("file:///etc/passwd", "not a web address"),
        ("javascript:alert(1)", "not a web address"),
        ("example.org/iron", "beginning with http"),
        ("http://user:pass@example.org/", "user name"),
        ("http://example.org@127.0.0.1/", "user name"),
        ("http://exam ple.org/", "space"),
        ("http://example.org\\@127.0.0.1/", "backslash"),
        ("http://example.org:22/", "Port 22"),
        ("http:///iron", "does not name a host|not a web address"),
        ("http://[::1%25eth0]/", "does not name a host|not a web address"),
        ("http://" + "a" * 300 + ".org/", "not a web address|is not known"),
        ("", "not a web address"),
    ],
)
def test_addresses_that_are_not_visited(url, message):
    with pytest.raises(FetchError, match=message):
        fetcher().fetch(url)


def test_addresses_are_read_once():
    address = read_address(" HTTPS://Example.ORG./a/../b?q=ä#part ")
    assert (address.url, address.host, address.port) == ("https://example.org/b?q=%C3%A4", "example.org", 443)
    assert read_address("../x", base="http://h:8080/a/b").url == "http://h:8080/x"
    assert read_address("http://[2606:2800::1]/").authority == "[2606:2800::1]"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate")
def test_tls_is_checked_for_the_name_and_not_for_the_number(site, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=site.test -addext subjectAltName=DNS:site.test "
        f"-keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    server = Site()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    with serve_site(server):
        trusting = ssl.create_default_context(cafile=certificate)
        base = f"https://site.test:{server.server_port}"
        assert fetcher(resolver=server.resolver, tls=trusting).fetch(f"{base}/iron").title == "Iron"
        for name, tls in ((base, None), (base.replace("site", "other"), trusting)):
            with pytest.raises(FetchError, match="does not have a trusted certificate"):
                fetcher(resolver=server.resolver, tls=tls, obey_robots=False).fetch(f"{name}/iron")


def test_bad_settings_are_refused():
    for name in ("timeout", "max_bytes", "requests_per_second"):
        with pytest.raises(ValueError, match=name):
            Fetcher(**{name: 0})
    with pytest.raises(ValueError, match="user_agent must name the client"):
        Fetcher(user_agent="")


# --- The cache -------------------------------------------------------------------------------------------------------


def test_a_run_is_repeated_without_the_site(tmp_path):
    path = tmp_path / "web.sqlite"
    with serve_site(Site()) as site:
        recording = fetcher(cache=WebCache(path))
        page = recording.fetch(f"{site.url}/moved")
        with pytest.raises(FetchError) as missing:
            recording.fetch(f"{site.url}/missing")
        site.failures["/iron"] = 1
        with pytest.raises(FetchError, match="503") as busy:
            recording.fetch(f"{site.url}/iron")
        asked = len(site.requests)
        assert recording.fetch(f"{site.url}/moved#part") == page
        with pytest.raises(FetchError, match="404"):
            recording.fetch(f"{site.url}/missing")
        assert len(site.requests) == asked
        replay = fetcher(cache=pickle.loads(pickle.dumps(WebCache(path, mode="replay"))))
        with pytest.raises(FetchError, match=str(busy.value).replace("(", r"\(").replace(")", r"\)")):
            replay.fetch(f"{site.url}/iron")
        assert recording.fetch(f"{site.url}/iron").title == "Iron"  # what passes is asked for again
        url = site.url
    assert replay.fetch(f"{url}/moved") == page
    with pytest.raises(FetchError) as again:
        replay.fetch(f"{url}/missing")
    assert str(again.value) == str(missing.value)
    with pytest.raises(FetchError, match="not visited when the run was recorded"):
        replay.fetch(f"{url}/plain")


def test_a_cached_page_is_that_of_fetchers_with_the_same_limits(site, tmp_path):
    cache = WebCache(tmp_path / "web.sqlite")

    def read(**limits):
        try:
            return len(fetcher(cache=cache, **limits).fetch(f"{site.url}/iron").text)
        except FetchError as error:
            return str(error)

    assert "private network" in read(allow_private=False)
    whole = read()
    assert read(max_bytes=300) < whole == read()
    assert "private network" in read(allow_private=False) and site.paths.count("/iron") == 2


def test_a_page_that_many_want_is_loaded_once(site, tmp_path):
    cached = fetcher(cache=WebCache(tmp_path / "web.sqlite"))
    with ThreadPoolExecutor(16) as pool:
        pages = list(pool.map(cached.fetch, [f"{site.url}/iron"] * 32))
    assert len(set(pages)) == 1 and site.paths.count("/iron") == 1


def test_a_cache_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="'read_write' or 'replay'"):
        WebCache(tmp_path / "x", mode="write")
    with pytest.raises(FileNotFoundError, match="to replay"):
        WebCache(tmp_path / "x", mode="replay")
    (tmp_path / "text").write_text("no database, but long enough to be looked at" * 100)
    with pytest.raises(ValueError, match="is not a web cache"):
        WebCache(tmp_path / "text")


@pytest.mark.parametrize(("written", "moved"), [(0, 0), (19, 0), (45, 40)])
def test_the_file_of_a_cache_that_was_not_closed_can_be_copied(tmp_path, written, moved):
    """Everything stood in `-wal` until the cache was closed, and after a kill the file held not even its table."""
    cache = WebCache(tmp_path / "web.sqlite")
    for number in range(written):
        cache.put("page", str(number), {"text": "iron" * number})
    (tmp_path / "copies").mkdir()
    copy = shutil.copy(tmp_path / "web.sqlite", tmp_path / "copies")
    replayed = WebCache(copy, mode="replay")
    assert len(replayed) == moved
    if moved:
        assert replayed.get("page", "39") == {"text": "iron" * 39}


def test_processes_share_a_cache(tmp_path):
    first, second = WebCache(tmp_path / "web.sqlite"), WebCache(tmp_path / "web.sqlite")
    first.put("page", "a", {"x": 1})
    assert second.get("page", "a") == {"x": 1} and len(second) == 1
    first.put("page", "a", {"x": 2}, passing=True)
    assert second.get("page", "a") is None
    assert WebCache(tmp_path / "web.sqlite", "replay").get("page", "a") == {"x": 2}


# --- Search engines --------------------------------------------------------------------------------------------------


class Engine(ThreadingHTTPServer):
    """Answers as Serper, SerpAPI and SearXNG do, by path."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _EngineHandler)
        self.asked = []
        self.statuses = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _EngineHandler(BaseHTTPRequestHandler):
    def _answer(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append((self.path, dict(self.headers), body))
        entry = {"title": "Iron  (element)", "link": "https://example.org/iron", "snippet": "Symbol\nFe"}
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 308:
            self.send_response(308)
            self.send_header("Location", f"https://other.example{self.path}")
            self.end_headers()
            return
        found = {
            "/serper": {"organic": [entry, {"title": "no link"}, {**entry, "snippet": None}], "credits": 1},
            "/serpapi": {"organic_results": [entry] * 3},
            "/searx/search": {
                "results": [{"title": "Iron", "url": "https://example.org/iron", "content": "Symbol Fe"}] * 20
            },
        }[self.path.split("?")[0]]
        data = json.dumps(
            found if status == 200 else {"message": f"refused {self.path} {self.headers.items()}"}
        ).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = _answer

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def engine():
    with serve_site(Engine()) as server:
        yield server


def test_the_engines_ask_as_they_are_documented(engine, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "key-of-serper")
    monkeypatch.setenv("SERPAPI_API_KEY", "key-of-serpapi")
    result = WebResult("Iron (element)", "https://example.org/iron", "Symbol Fe")
    serper = SerperSearch(f"{engine.url}/serper", gl="de").search("symbol of iron", 2)
    assert serper == [result, WebResult("Iron (element)", "https://example.org/iron", "")]
    path, headers, body = engine.asked.pop()
    assert path == "/serper" and headers["X-API-KEY"] == "key-of-serper"
    assert json.loads(body) == {"gl": "de", "q": "symbol of iron", "num": 2}
    assert SerpApiSearch(f"{engine.url}/serpapi", hl="en").search("käse & brot", 1) == [result]
    path = engine.asked.pop()[0]
    assert path == "/serpapi?hl=en&engine=google&q=k%C3%A4se+%26+brot&num=1&api_key=key-of-serpapi"
    found = SearxngSearch(f"{engine.url}/searx", language="en").search("iron", 4)
    assert found == [WebResult("Iron", "https://example.org/iron", "Symbol Fe")] * 4
    assert engine.asked.pop()[0] == "/searx/search?language=en&q=iron&format=json"


def test_the_query_of_an_address_is_sent_with_each_search(engine, monkeypatch):
    monkeypatch.setenv("SERPER_API_KEY", "key-of-serper")
    monkeypatch.setenv("SERPAPI_API_KEY", "k")
    SerperSearch(f"{engine.url}/serper?region=eu").search("iron", 1)
    assert engine.asked.pop()[0] == "/serper?region=eu"
    search = SerpApiSearch(f"{engine.url}/serpapi?no_cache=true&hl=de", hl="en")
    search.search("iron", 1)
    assert engine.asked.pop()[0] == "/serpapi?no_cache=true&hl=en&engine=google&q=iron&num=1&api_key=k"
    assert search.parameters == {"no_cache": "true", "hl": "en"}  # by which searches are remembered
    for address in ("/searx?theme=simple&e=a&e=%C3%A4", "/searx/?theme=simple&e=a&e=%C3%A4"):
        SearxngSearch(engine.url + address, language="en").search("iron", 1)
        assert engine.asked.pop()[0] == "/searx/search?theme=simple&e=a&e=%C3%A4&language=en&q=iron&format=json"
    with pytest.raises(
        ValueError, match="The address of SerpAPI sets 'api_key', which the search sets itself"
    ) as caught:
        SerpApiSearch(f"{engine.url}/serpapi?api_key=very-secret-key")
    assert "very-secret-key" not in str(caught.value)
    with pytest.raises(ValueError, match="sets 'q', which"):
        SearxngSearch(f"{engine.url}/searx?q=x")


def test_an_engine_that_has_moved_says_where(engine, monkeypatch):
    monkeypatch.setenv("SERPAPI_API_KEY", "very-secret-key")
    engine.statuses = [308]
    with pytest.raises(RuntimeError, match=r"HTTP 308: it redirects to 'https://other\.example/serpapi'\)") as caught:
        SerpApiSearch(f"{engine.url}/serpapi").search("iron", 1)
    assert "secret" not in str(caught.value) and len(engine.asked) == 1


def test_keys_stay_secret(engine, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SERPAPI_API_KEY", "very-secret-key")
    search = SerpApiSearch(f"{engine.url}/serpapi", max_retries=0)
    engine.statuses = [200, 401, 400, 503]
    search.search("iron", 1)
    for kind in (PermissionError, RuntimeError, ConnectionError):
        with pytest.raises(kind) as caught:
            search.search("iron", 1)
        assert "very-secret-key" not in str(caught.value)
    assert len(engine.asked) == 4
    assert "very-secret-key" not in caplog.text + repr(search)


def test_a_missing_key_and_a_refusing_engine_say_what_to_do(engine, monkeypatch):
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    with pytest.raises(ValueError, match="environment variable SERPER_API_KEY"):
        SerperSearch()
    with pytest.raises(ValueError, match="not a web address"):
        SearxngSearch("localhost:8080")
    engine.statuses = [403]
    with pytest.raises(PermissionError, match=r"`search\.formats`"):
        SearxngSearch(f"{engine.url}/searx").search("iron", 1)


def test_a_busy_engine_is_asked_again(engine, monkeypatch):
    waits = []
    monkeypatch.setattr(Cancellation, "wait", lambda self, seconds: waits.append(seconds))
    search = SearxngSearch(f"{engine.url}/searx", max_retries=2)
    engine.statuses = [429, 503]
    state = random.getstate()
    assert len(search.search("iron", 1)) == 1 and len(engine.asked) == 3
    assert 0 < waits[0] < waits[1]
    assert len(search.search("iron", 1)) == 1
    assert random.getstate() == state, "neither a search nor a wait draws from the global random state"
    engine.statuses = [503] * 3
    with pytest.raises(ConnectionError, match=r"SearXNG gave no answer in 3 attempts \(HTTP 503\)"):
        search.search("iron", 1)


def test_searches_are_remembered(engine, tmp_path):
    search = SearxngSearch(f"{engine.url}/searx")
    found = CachedSearch(search, WebCache(tmp_path / "web.sqlite")).search("iron", 2)
    replay = CachedSearch(search, WebCache(tmp_path / "web.sqlite", "replay"))
    assert replay.search("iron", 2) == found and len(found) == 2 and len(engine.asked) == 1
    with pytest.raises(LookupError, match="not searched for when the run was recorded"):
        replay.search("gold", 2)


def test_a_search_that_failed_fails_in_a_replay_too(engine, tmp_path):
    """With the same sentence, which the agent reads; outside of a replay the engine is asked again."""
    search = SearxngSearch(f"{engine.url}/searx", max_retries=0)
    cached = CachedSearch(search, WebCache(tmp_path / "web.sqlite"))
    engine.statuses = [503]
    with pytest.raises(ConnectionError) as failed:
        cached.search("iron", 1)
    replay = CachedSearch(search, WebCache(tmp_path / "web.sqlite", "replay"))
    with pytest.raises(ConnectionError) as again:
        replay.search("iron", 1)
    assert str(again.value) == str(failed.value) and "HTTP 503" in str(failed.value) and len(engine.asked) == 1
    assert cached.search("iron", 1) == replay.search("iron", 1) and len(engine.asked) == 2


def test_an_engine_with_other_parameters_is_asked_itself(engine, tmp_path):
    path, url = tmp_path / "web.sqlite", f"{engine.url}/searx"
    plain, german = SearxngSearch(url), SearxngSearch(url, language="de", engines="wikipedia")
    cache = WebCache(path)
    for number, search in enumerate((plain, german, plain, german)):
        CachedSearch(search, cache).search("iron", 2)
        assert len(engine.asked) == min(number + 1, 2)
    assert ["language=de" in request for request in map(str, engine.asked)] == [False, True]
    again = SearxngSearch(url, engines="wikipedia", language="de")  # in another order
    CachedSearch(again, cache).search("iron", 2)
    # A recording of before, which did not know of parameters or addresses, is replayed with any
    cache.put("search", json.dumps(["SearxngSearch", 2, "gold"]), [["Gold", "https://a.org", "Au"]])
    cache.put("search", json.dumps(["SearxngSearch", 2, "tin", german.parameters], sort_keys=True), [["Tin", "", ""]])
    cache.close()
    replay = CachedSearch(german, WebCache(path, "replay"))
    assert replay.search("gold", 2) == [WebResult("Gold", "https://a.org", "Au")]
    assert replay.search("tin", 2) == [WebResult("Tin", "", "")]
    assert len(engine.asked) == 2


def test_an_engine_at_another_address_is_asked_itself_but_in_a_replay(engine, tmp_path):
    """The results of the first were those of the second, too."""
    path = tmp_path / "web.sqlite"
    cache = WebCache(path)
    first, second = SearxngSearch(f"{engine.url}/searx"), SearxngSearch(f"{engine.url}/searx/")
    for asked, search in ((1, first), (2, second), (2, first)):
        found = CachedSearch(search, cache).search("iron", 2)
        assert len(engine.asked) == asked
    cache.close()
    moved = SearxngSearch("http://other.example/searx", max_retries=0)
    assert CachedSearch(moved, WebCache(path, "replay")).search("iron", 2) == found


def test_other_pages_are_searched_themselves(tmp_path):
    cache = WebCache(tmp_path / "web.sqlite")
    for name in ("a", "b"):
        web = LocalWeb([{"url": f"https://{name}.org/iron", "title": "Iron", "text": "Iron has the symbol Fe."}])
        (found,) = CachedSearch(web, cache).search("iron", 1)
        assert found.url == f"https://{name}.org/iron"


def test_another_fetcher_is_another_environment():
    class Cached:
        def fetch(self, url):
            return PAGES[0]

    web = LocalWeb(PAGES)
    recipes = [
        WebQAEnvironment.factory(web, fetcher)()._recipe.code
        for fetcher in (None, Fetcher(), Fetcher(max_bytes=1000), Cached())
    ]
    assert recipes[0] == recipes[1] and "fetcher" not in recipes[0]
    assert all("fetcher=fetcher" in one for one in recipes[2:])


# --- The environment -------------------------------------------------------------------------------------------------

LONG = " ".join(f"Sentence {n} about gold." for n in range(400))
PAGES = [
    {"url": "https://example.org/iron", "title": "Iron", "text": "A metal. Iron has the symbol Fe. It rusts."},
    {"url": "https://example.org/gold", "title": "Gold", "text": LONG},
]


def test_an_episode():
    environment = WebQAEnvironment.factory(LocalWeb(PAGES), top_k=2, page_length=1000)()
    assert environment.reset(questions=["Symbol of iron?"], answers=[["Fe"]]) == "Symbol of iron?"
    assert environment.read_more() == "No page is open: visit one first.\n"
    assert environment.search("iron symbol") == "1. Iron\nURL: https://example.org/iron\nIron has the symbol Fe.\n"
    shown = "Title: Iron\nURL: https://example.org/iron\n\nA metal. Iron has the symbol Fe. It rusts.\n"
    assert environment.visit("1") == environment.visit("[1]") == environment.visit("https://example.org/iron") == shown
    assert environment.read_more() == "That was the end of the page.\n"
    assert environment.visit("2") == "The last search has no result 2: give the address of the page.\n"
    assert environment.visit("https://example.org/x").startswith("This page cannot be read. There is no such page")
    assert environment.search("zebra") == "Nothing was found.\n"
    assert environment.search(" ").startswith("The query is empty")
    environment.answer("Fe")
    assert environment.done and environment.get_reward() == 1.0
    environment.reset(questions=["x"])
    assert environment.read_more().startswith("No page is open") and environment.get_reward() is None


@pytest.mark.parametrize("tokens", [False, True])
def test_a_long_page_comes_in_parts(tokens):
    tokenizer = chat_tokenizer() if tokens else None
    environment = WebQAEnvironment.factory(LocalWeb(PAGES), page_length=500, tokenizer=tokenizer)()
    environment.reset()
    texts = [environment.visit("https://example.org/gold")]
    while not (text := environment.read_more()).startswith("That was the end"):
        texts.append(text)
    bodies = [text.split("\n\n", 1)[1].strip() for text in texts]
    assert len(bodies) > 5 and f"\nPart 2 of {len(bodies)}\n" in texts[1]
    assert " ".join(bodies) == LONG  # nothing lost, no word cut
    lengths = [len(tokenizer(body)["input_ids"]) if tokens else len(body) for body in bodies]
    assert max(lengths) <= 500 and min(lengths[:-1]) > 300


def test_episodes_run_at_once_on_a_real_site(site, tmp_path):
    engine = LocalWeb([{"url": f"{site.url}/{path}", "title": path, "text": path} for path in ("iron", "big", "slow")])
    cached = fetcher(cache=WebCache(tmp_path / "web.sqlite"), timeout=1.0)
    make = WebQAEnvironment.factory(engine, cached, top_k=1)
    environments = [make() for _ in range(9)]
    for environment in environments:
        environment.reset()
    words = ["iron", "big", "slow"] * 3
    run_calls([(e.search, {"query": word}) for e, word in zip(environments, words)])
    began = time.monotonic()
    results = run_calls([(e.visit, {"url": "1"}) for e in environments])
    assert time.monotonic() - began < 60 and not any(result.failed for result in results)
    for word, result in zip(words, results):
        expected = {"iron": "symbol Fe", "big": "Part 1 of", "slow": "did not answer within 1 seconds"}[word]
        assert expected in result.text
    assert site.paths.count("/iron") == site.paths.count("/big") == 1


def test_a_failing_engine_is_an_error_and_a_failing_page_is_not(site):
    class Broken:
        def search(self, query, top_k):
            raise ConnectionError("Serper gave no answer in 4 attempts.")

    environment = WebQAEnvironment(Broken(), fetcher())
    environment.reset()
    results = run_calls([(environment.search, {"query": "x"}), (environment.visit, {"url": f"{site.url}/missing"})])
    assert results[0].failed and "Serper gave no answer" in results[0].text
    assert not results[1].failed and "has no such page" in results[1].text


def test_the_factory_checks_what_it_is_given():
    web = LocalWeb(PAGES)
    with pytest.raises(TypeError, match=r"must have a method `search\(query, top_k\)`, got a"):
        WebQAEnvironment.factory(object())
    with pytest.raises(TypeError, match=r"must have a method `fetch\(url\)`, got a"):
        WebQAEnvironment.factory(web, fetcher=object())
    with pytest.raises(ValueError, match="top_k must be at least 1, got 0"):
        WebQAEnvironment.factory(web, top_k=0)
    with pytest.raises(ValueError, match="page_length must be at least 1, got 0"):
        WebQAEnvironment.factory(web, page_length=0)


def test_pages_at_hand_say_what_is_wrong():
    with pytest.raises(ValueError, match="Page 0 has no 'url'"):
        LocalWeb([{"title": "x", "text": "y"}])
    with pytest.raises(ValueError, match="Two pages have the address"):
        LocalWeb([PAGES[0], PAGES[0]])


def test_locks_are_given_back():
    from mem1_trl.web.politeness import Locks

    locks, order = Locks(), []

    def work(number):
        with locks("a"):
            order.append(number)
            time.sleep(0.01)
            order.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[::2] == order[1::2] and locks._held == {}


def test_a_page_without_a_text_is_one_that_was_read():
    empty = [
        {"url": f"https://e.org/{number}", "title": "Gold", "text": text} for number, text in enumerate(("", " \n\t"))
    ]
    environment = WebQAEnvironment.factory(LocalWeb([*PAGES, *empty]))()
    environment.reset(prompt="x")
    for page in empty:
        assert environment.visit(page["url"]) == f"Title: Gold\nURL: {page['url']}\n\n[the page has no text]\n"
        assert environment.read_more() == "That was the end of the page.\n"
