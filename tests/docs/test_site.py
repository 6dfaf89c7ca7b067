"""The site of the documentation: every page is in it, it builds without a warning, and it loads nothing from elsewhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

import nnet_edge
from nnet_edge.cli.main import COMMANDS
from tests.conftest import MadeOnce
from tests.runtime.web.browser import CHROMIUM, Browser

ROOT = Path(__file__).parents[2]
needs_mkdocs = pytest.mark.skipif(
    find_spec("material") is None, reason='no mkdocs-material: pip install "nnet-edge[docs]"'
)
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "video": "src"}


class Loads(HTMLParser):
    """The addresses that a browser loads with a page, and the texts of its paragraphs."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.paragraphs: list[str] = []
        self._is_paragraph = False
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        facts = dict(attrs)
        if tag in LOADING and not (tag == "link" and facts.get("rel") in ("canonical", "next", "prev", "alternate")):
            self.addresses.append(facts.get(LOADING[tag]) or "")
        if tag == "p":
            self._is_paragraph = True
            self.paragraphs.append("")

    def handle_endtag(self, tag: str) -> None:
        self._is_paragraph &= tag != "p"

    def handle_data(self, data: str) -> None:
        if self._is_paragraph:
            self.paragraphs[-1] += data


def pages_of(nav: object) -> set[str]:
    """The pages that a navigation names."""
    if isinstance(nav, str):
        return {nav}
    inner = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else []
    return set().union(*(pages_of(part) for part in inner))


def test_no_page_is_forgotten() -> None:
    named = pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"])
    docs = ROOT / "docs"
    pages = {str(path.relative_to(docs)) for path in docs.rglob("*.md") if docs / "site" not in path.parents}
    assert not pages - named, "in no section of mkdocs.yml: add these pages of docs/ under nav"


@pytest.fixture(scope="module")
def site(made_once: MadeOnce) -> Path:
    """The built site. A warning, as for a dead link, an anchor that is not there or a page outside nav, is a failure."""

    def build(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
        quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return made_once("site", build)


def test_every_finding_is_in_their_table() -> None:
    folder = ROOT / "findings"
    named = re.findall(r"^\| `(\w+\.sh)` \|", (folder / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(path.name for path in folder.glob("*.sh"))


@needs_mkdocs
def test_every_page_loads_from_this_folder_alone(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        for address in Loads(page).addresses:
            assert not re.match(r"(https?:)?//", address), f"{page.name} loads {address}"
            path = page.parent / address.split("?")[0].split("#")[0]
            assert page.name == "404.html" or address.startswith("data:") or path.exists(), f"{page.name}: no {address}"
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(['\"]?(?:https?:)?//|@import", sheet.read_text(encoding="utf-8")), sheet.name


@needs_mkdocs
def test_lists_and_tables_are_read_as_such(site: Path) -> None:
    """Markdown of the repository's viewer that the site's reader takes for a paragraph."""
    for page in site.rglob("*.html"):
        for text in Loads(page).paragraphs:
            assert not re.search(r"^(- |\* |\d\. |\| )|\n(- |\|)|```", text), f"{page.name}: {text[:80]}"


@needs_mkdocs
def test_the_search_finds_options_keys_and_answers(site: Path) -> None:
    found = json.loads((site / "search/search_index.json").read_text(encoding="utf-8"))["docs"]
    text = {entry["location"].split("#")[0]: "" for entry in found}
    for entry in found:
        text[entry["location"].split("#")[0]] += f"{entry['title']} {entry['text']}\n"
    for name in COMMANDS:
        assert "--help" in text[f"reference/commands/{name}.html"]
    assert "--when-full" in text["reference/commands/stream.html"]
    assert "trigger_mode" in text["reference/settings.html"]
    assert (site / "search/search_index.js").exists(), "what the search reads from file://"


@needs_mkdocs
def test_every_public_name_of_python_is_explained(site: Path) -> None:
    page = (site / "reference/python.html").read_text(encoding="utf-8")
    explained = {name.rsplit(".", 1)[-1] for name in re.findall(r'id="(nnet_edge\.[\w.]+)"', page)}
    assert set(nnet_edge.__all__) - {"__version__"} <= explained


@needs_mkdocs
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")
def test_the_search_works_from_a_file_and_a_phone_need_not_scroll_sideways(site: Path, tmp_path: Path) -> None:
    with Browser(tmp_path, 390, 844) as browser:
        browser.open((site / "troubleshooting.html").as_uri())
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
        browser.value("document.querySelector('.md-search__input').focus()")
        browser.write_text("libGL")
        browser.value("document.querySelector('.md-search__input').dispatchEvent(new KeyboardEvent('keyup'))")
        browser.wait("document.querySelector('.md-search-result__list').innerText.includes('ImportError')")
        assert not browser.complaints
