"""The site: it builds strictly, links and references included, and loads nothing from elsewhere."""

import html.parser
import logging
import re
from pathlib import Path

import pytest

import fastpair

config = pytest.importorskip("mkdocs.config", reason="made by `make docs`")
pytest.importorskip("mkdocstrings")
pytest.importorskip("latex2mathml")

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    from mkdocs.commands.build import build

    folder = tmp_path_factory.mktemp("site")
    settings = config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    logger, shown = logging.getLogger("mkdocs"), logging.StreamHandler()
    level = logger.level
    logger.setLevel(logging.WARNING)
    logger.addHandler(shown)
    try:
        build(settings)  # which raises where strict building finds a link or a reference that leads nowhere
    finally:
        logger.removeHandler(shown)
        logger.setLevel(level)
    return folder


class Loaded(html.parser.HTMLParser):
    """What a browser fetches for a page without being asked."""

    def __init__(self):
        super().__init__()
        self.urls = []

    def handle_starttag(self, tag, attributes):
        of = dict(attributes)
        if tag in ("script", "img", "iframe", "source", "video"):
            self.urls.append(of.get("src") or "")
        elif tag == "link" and of.get("rel") not in ("canonical", "next", "prev"):
            self.urls.append(of.get("href") or "")


def test_nothing_is_loaded_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        for url in loaded.urls:
            assert not re.match(r"(https?:)?//", url), f"{page}: {url}"
            if url and not url.startswith("data:"):
                target = (page.parent if not url.startswith("/") else site) / url.split("?")[0].split("#")[0].lstrip(
                    "/"
                )
                assert target.exists(), f"{page}: {url}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style


def test_formulas_are_mathematics(site):
    for page in site.rglob("*.html"):
        assert 'class="arithmatex"' not in page.read_text(encoding="utf-8"), page
    assert (site / "paper" / "index.html").read_text(encoding="utf-8").count("<math") > 15


def test_every_loss_has_a_page_and_a_picture(site):
    wrappers = {"CrossBatchMemory", "CustomPairLoss", "MatryoshkaLoss"}
    for name in set(fastpair.losses.__all__) - wrappers:
        page = (site / "losses" / name / "index.html").read_text(encoding="utf-8")
        assert "<math" in page and f"fastpair.losses.{name}" in page
        assert name in ("SPCELoss", "PCELoss") or (site / "losses" / f"{name}.svg").stat().st_size > 5000
    reference = (site / "reference" / "losses" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="fastpair.losses.{name}"' in reference for name in fastpair.losses.__all__)


def test_results_name_machine_and_commit(site):
    page = (site / "benchmarks" / "results" / "index.html").read_text(encoding="utf-8")
    for path in (ROOT / "benchmarks" / "results").glob("*.json"):
        assert path.stem in page
    assert "NVIDIA H200" in page and "2497200" in page and "2026-11-24" in page
