"""The report as a page, in a real browser: no name that an agent chose runs, or fetches anything."""

from __future__ import annotations

import base64
import hashlib
import http.server
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from clsecure.cli import page as pages
from clsecure.cli import report_rows
from clsecure.cli.report import lines, sections
from clsecure.errors import UsageError
from clsecure.session.proof import Proof, Standing
from tests.support import artefacts, schema
from tests.support.records import sample

_RUNS = "document.documentElement.setAttribute('data-canary','ran')"
HOSTILE = [
    f"<script>{_RUNS}</script>",
    f'"><img src=x onerror="{_RUNS}">',
    f"'><svg/onload={_RUNS}>",
    f"</td></table></title></style><script>{_RUNS}</script>",
    f"<iframe srcdoc='<script>parent.{_RUNS}</script>'></iframe>",
    f'<a href="javascript:{_RUNS}" autofocus onfocus="{_RUNS}" tabindex=1>x</a>',
    "}</style><style>*{display:none}</style>",
    "{{ 7*7 }}{% for x in range(9) %}canary{% endfor %}{{ report.__class__.__mro__ }}",
    "\u202egnp.exe\u2066\x1b]0;x\x07\x9b2J\r\n\0",
    "<!-- --><base href='http://canary.invalid/'><meta http-equiv=refresh content='0;url=/canary'>",
]
FETCHES = (
    "<img src={url}img><link rel=stylesheet href={url}css><style>@import '{url}import';</style>"
    "<p style='background:url({url}style)'>x</p><iframe src={url}frame></iframe><object data={url}object>"
    "</object><script src={url}script></script>"
)
_TAGS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "section", "div", "table",
         "thead", "tbody", "tr", "th", "td"}  # fmt: skip
_ATTRIBUTES = {"lang", "charset", "http-equiv", "content", "name", "class", "scope"}

PROOFS = (
    Proof(what="form", standing=Standing.HOLDS, words="x"),
    Proof(what="signature", standing=Standing.HOLDS, words="y"),
)


class _Shape(HTMLParser):
    """What elements and attributes a page has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}


def made(text: str, proofs: tuple[Proof, ...] = PROOFS) -> str:
    said = sample(text)
    schema.check(said, schema.load("record"))
    report = sections(said, proofs)
    return pages.page(report, record=Path("/state/records/x.json"), sha256="0" * 64)


@pytest.mark.parametrize("text", HOSTILE)
def test_g1_no_name_becomes_an_element_an_attribute_or_a_control(text: str) -> None:
    whole = made(text)
    shape = _Shape(whole)
    assert shape.tags <= _TAGS
    assert shape.attributes <= _ATTRIBUTES
    assert not set(whole) & set("\x1b\x07\x9b\r\0\u202e\u2066")
    assert whole.count("{{ 7*7 }}{% for") == whole.count("7*7")  # no template of theirs is one of ours


def test_the_policy_allows_the_pages_own_style_and_nothing_else() -> None:
    whole = made("x")
    style = re.search(r"<style>(.*)</style>", whole, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', whole)
    assert policy is not None
    allowed = policy[1].replace("&#39;", "'")
    assert allowed == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    assert "|safe" not in "".join(p.read_text() for p in Path(pages.__file__).parent.glob("templates/*"))


def test_the_words_for_a_terminal_command_nothing() -> None:
    told = "\n".join(line for text in HOSTILE for line in lines(sections(sample(text), PROOFS)))
    assert all(c.isprintable() for c in told.replace("\n", ""))


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory", "fifo"])
def test_h13_a_page_replaces_nothing_but_an_earlier_one(tmp_path: Path, kind: str) -> None:
    target, page = tmp_path / "target", tmp_path / "page.html"
    target.write_text("precious")
    match kind:
        case "file":
            page.write_text("precious")
        case "link":
            page.symlink_to(target)
        case "dangling link":
            page.symlink_to(tmp_path / "nowhere")
        case "directory":
            page.mkdir()
        case "fifo":
            os.mkfifo(page)
    with pytest.raises(UsageError, match="is there already"):
        pages.write(page, made("x"))
    assert target.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_page_is_private_and_replaces_an_earlier_report(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    pages.write(page, made("first"))
    pages.write(page, made("second"))
    assert page.stat().st_mode & 0o777 == 0o600
    assert "second" in page.read_text()


# ---------------------------------------------------------------- in a real browser


@pytest.fixture(scope="module")
def chromium() -> str:
    found = shutil.which("chromium")
    if found is None:
        pytest.skip("chromium is not installed; ./dev test installs it where root and Debian's packages are")
    return found


def browse(chromium: str, place: Path, text: str, *more: str) -> str:
    """Open a page in a headless browser; return the document as it stands once all of it was loaded."""
    file = place / "page.html"
    file.write_text(text, encoding="utf-8")
    argv = [
        chromium, "--headless", "--disable-gpu", "--disable-background-networking", "--no-first-run",
        # The tests are root, as whom chromium's own sandbox does not start.
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
        f"--user-data-dir={place}/profile", "--window-size=1200,2400", *more, file.as_uri(),
    ]  # fmt: skip
    env = {"PATH": os.environ["PATH"], "HOME": str(place), "LC_ALL": "C.UTF-8"}
    done = subprocess.run(argv, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.decode("utf-8", "replace")


@pytest.fixture
def sabotaged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Break every escaping that the page relies on: what is left is its policy."""
    import jinja2

    real = jinja2.Environment

    def environment(**options: object) -> jinja2.Environment:
        return real(**{**options, "autoescape": False})  # type: ignore[arg-type]

    monkeypatch.setattr(jinja2, "Environment", environment)
    monkeypatch.setattr(report_rows, "escape", lambda text: text)
    monkeypatch.setattr(report_rows, "_MOST", 100_000)


def without_policy(text: str) -> str:
    changed = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text, count=1)
    assert changed != text
    return changed


@pytest.mark.timeout(300)
def test_nothing_of_hostile_names_runs_in_a_browser(chromium: str, tmp_path: Path) -> None:
    for text in HOSTILE:
        dom = browse(chromium, tmp_path, made(text), "--dump-dom", "--virtual-time-budget=3000")
        # As the browser has it, after anything that could run did: the canary would be an attribute.
        assert _Shape(dom).tags <= _TAGS
        assert _Shape(dom).attributes <= _ATTRIBUTES
    whole = made(HOSTILE[1])
    shot = tmp_path / "report.png"
    browse(chromium, tmp_path, whole, f"--screenshot={shot}")
    assert shot.read_bytes().startswith(b"\x89PNG")
    artefacts.keep(shot)


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("sabotaged")
def test_the_policy_holds_where_escaping_is_broken(chromium: str, tmp_path: Path) -> None:
    for text in HOSTILE[:6]:
        whole = made(text)
        assert text in whole
        dom = browse(chromium, tmp_path, whole, "--dump-dom", "--virtual-time-budget=3000")
        assert "data-canary" not in _Shape(dom).attributes
    # The same page without its policy: the names do run, so this test could have failed.
    ran = browse(chromium, tmp_path, without_policy(made(HOSTILE[0])), "--dump-dom")
    assert "data-canary" in _Shape(ran).attributes


@pytest.fixture
def listener() -> Iterator[tuple[str, list[str]]]:
    """A web server that remembers what it was asked for."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("sabotaged")
def test_nothing_is_fetched_even_where_escaping_is_broken(
    chromium: str, tmp_path: Path, listener: tuple[str, list[str]]
) -> None:
    url, asked = listener
    whole = made(FETCHES.format(url=url))
    browse(chromium, tmp_path, whole, "--dump-dom")
    assert asked == []
    browse(chromium, tmp_path, without_policy(whole), "--dump-dom")
    assert {"/img", "/css", "/script"} <= set(asked)
