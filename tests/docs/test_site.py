"""What the site is built with: pages ask for tables and figures that there are, formulas need no script, and nothing is
fetched from outside. `make docs` builds it whole."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.docs.documents import ROOT

pytest.importorskip("mkdocs")
pytest.importorskip("latex2mathml")

from mkdocs.exceptions import PluginError

from docs import figures, hooks, tables

PAGES = "\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("**/*.md")))


def test_pages_ask_for_every_table_and_figure_and_no_other() -> None:
    assert set(re.findall(r"<!-- table: (\S+) -->", PAGES)) == set(tables.TABLES)
    assert set(re.findall(r"\((?:\.\./)?figures/([^)]+)\)", PAGES)) == set(figures.FIGURES)


def test_tables_of_results_show_losses() -> None:
    losses = tables.TABLES["losses"]()
    found, total = map(int, re.match(r"(\d+) of (\d+) measurements", losses).groups())  # type: ignore[union-attr]
    rows = re.findall(r"^\| \S+ \| \d+ \| .* \| (\d\.\d\d) \|$", losses, re.MULTILINE)
    assert 0 < found == len(rows) < total
    assert all(float(speed) <= 1 for speed in rows)


def test_the_check_list_of_backends_is_what_they_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    triton = pytest.importorskip("triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)  # as where pages are built
    rows = dict(re.findall(r"^\| ([^|]+) \| (.+) \|$", tables.TABLES["backends"](), re.MULTILINE))
    assert re.fullmatch(r"yes \| yes \| yes \| no \(\d\)", rows["float64"])
    assert rows["CPU"].startswith("yes | yes | yes | no")
    assert rows["3-D"] == "yes | yes | yes | yes"


def test_a_page_gets_what_it_asks_for() -> None:
    page = SimpleNamespace(file=SimpleNamespace(src_uri="page.md"))
    text = hooks.on_page_markdown("# A\n\n<!-- include: CHANGELOG.md -->\n\n<!-- table: savings -->\n", page)
    assert "# Changelog" not in text
    assert "## Unreleased" in text
    assert "| 2-D, 9 | 81 | 69 | 5 | 16.2 |" in text
    with pytest.raises(PluginError, match=r"page.md asks for the table 'none'; there are backends, cli"):
        hooks.on_page_markdown("<!-- table: none -->", page)


def test_formulas_become_mathml() -> None:
    html = hooks.on_page_content('<p><span class="arithmatex">\\(a &lt; b_1\\)</span></p>')
    assert html.startswith('<p><math xmlns="http://www.w3.org/1998/Math/MathML" display="inline">')
    assert "&#x0003C;" in html or "&lt;" in html
    assert "arithmatex" not in html


@pytest.mark.parametrize(
    ("text", "fetches"),
    [
        ('<script src="https://a.org/x.js"></script>', True),
        ("<img alt=x src=//a.org/x.png>", True),
        ('<link rel="stylesheet" href="https://a.org/x.css">', True),
        ("@font-face { src: url(https://a.org/x.woff2) }", True),
        ('<a href="https://a.org">A</a><img src="figures/x.png"><script src="assets/x.js"></script>', False),
        ('<link rel="canonical" href="https://a.org/">', False),
    ],
)
def test_what_is_fetched_from_outside_stops_the_build(tmp_path: Path, text: str, fetches: bool) -> None:
    (tmp_path / "page.html").write_text(text)
    config = SimpleNamespace(site_dir=str(tmp_path))
    if not fetches:
        hooks.on_post_build(config)
    else:
        with pytest.raises(PluginError, match="fetches something from outside"):
            hooks.on_post_build(config)
