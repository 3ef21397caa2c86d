"""The documentation's site builds strictly, shows the reference, and loads nothing from another host."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Of a <link>: those that a browser fetches, or connects to, by itself.
FETCHED = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
ELSEWHERE = re.compile(r"(?:[a-z][a-z+.-]*:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*["']?\s*((?:[a-z][a-z+.-]*:)?//[^"')\s]*)""", re.IGNORECASE)


class Loads(HTMLParser):
    """What a page makes the browser load from another host."""

    def __init__(self, page: str):
        super().__init__()
        self.style, self.found = False, []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        attributes = {name: value or "" for name, value in attrs}
        self.style = tag == "style"
        urls = [attributes[name] for name in ("src", "srcset", "data", "poster") if name in attributes]
        if tag == "link" and FETCHED & set(attributes.get("rel", "").lower().split()):
            urls.append(attributes["href"])
        self.found += [url for url in urls if ELSEWHERE.match(url.strip())]
        self.found += IN_STYLE.findall(attributes.get("style", ""))

    def handle_data(self, data):
        if self.style:
            self.found += IN_STYLE.findall(data)

    def handle_endtag(self, tag):
        self.style = False


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_pages_are_there(site):
    assert (site / "index.html").exists()
    reference = (site / "reference" / "directions" / "index.html").read_text()
    assert 'id="ldcvae.directions.stein.stein_direction"' in reference
    assert "&gt;&gt;&gt; " in reference  # an example is shown as code, not as a quotation
    assert "<blockquote>" not in reference


def test_nothing_is_loaded_from_another_host(site):
    pages, styles = list(site.rglob("*.html")), list(site.rglob("*.css"))
    assert len(pages) > 10
    assert styles
    found = {str(page): Loads(page.read_text()).found for page in pages}
    found |= {str(style): IN_STYLE.findall(style.read_text()) for style in styles}
    assert {name: urls for name, urls in found.items() if urls} == {}


def test_a_foreign_script_style_or_font_would_be_seen():
    page = """<link rel="stylesheet" href="https://a/x.css"><link rel=canonical href="https://a/">
        <script src="//b/x.js"></script><script src="x.js"></script><a href="https://e/">e</a>
        <style>@font-face {src: url('https://c/x.woff')} @import "https://d/y.css";</style>
        <i style="background: url(data:image/svg+xml;//)"></i>"""
    assert Loads(page).found == ["https://a/x.css", "//b/x.js", "https://c/x.woff", "https://d/y.css"]


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial.md", "docs/autoencoders.md"])
def test_the_code_that_a_page_shows_runs(page, tmp_path, monkeypatch):
    """One block after the other, as a reader would paste them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.S)
    assert blocks
    exec("\n".join(blocks), {"__name__": page})
