"""Links within the documentation lead somewhere; `make links` follows those that lead out of it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.docs.documents import ROOT, documents, name_of

_ATTRIBUTES = re.compile(r"\{[^}]*\}")
_ID = re.compile(r"(?:\bid=\"|\{[^}]*#)([\w.-]+)")


def tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt().enable("table").parse(text):
        yield token
        yield from token.children or ()


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Where links and pictures of a text lead, with the line of their paragraph."""
    line = 0
    for token in tokens(path.read_text(encoding="utf-8")):
        line = token.map[0] + 1 if token.map else line
        target = token.attrs.get("href") if token.type == "link_open" else token.attrs.get("src")
        if target:
            yield line, unquote(str(target))


def anchors(path: Path) -> set[str]:
    """What may stand behind ``#`` in a link to a text: headings, marks, and names whose docstrings it shows."""
    text = path.read_text(encoding="utf-8")
    found = set(_ID.findall(text)) | set(re.findall(r"^::: ([\w.]+)", text, re.MULTILINE))
    lines = list(tokens(text))
    for opening, content in itertools.pairwise(lines):
        if opening.type == "heading_open":
            found.add(slug(_ATTRIBUTES.sub("", "".join(t.content for t in content.children or ()))))
    return found


def slug(heading: str) -> str:
    """The anchor that GitHub and mkdocs give a heading."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def broken(path: Path, target: str) -> str | None:
    """Why a link within the repository leads nowhere, or None."""
    file, _, anchor = target.partition("#")
    place = (path.parent / file).resolve() if file else path
    if file.startswith("figures/") and path.is_relative_to(ROOT / "docs"):
        from docs.figures import FIGURES  # drawn when the pages are built

        return None if file.removeprefix("figures/") in FIGURES else "no such figure is drawn"
    if not place.exists():
        return "there is no such file"
    if anchor and place.suffix == ".md" and anchor not in anchors(place):
        return f"it has no heading #{anchor}"
    return None


def test_links_within_the_repository_lead_somewhere(capsys: pytest.CaptureFixture[str]) -> None:
    within = [
        (path, line, target) for path in documents() for line, target in links(path) if not re.match(r"[a-z]+:", target)
    ]
    faults = [
        f"{name_of(path)}:{line}: {target}: {fault}" for path, line, target in within if (fault := broken(path, target))
    ]
    with capsys.disabled():
        print(f" {len(within)} links ", end="")
    assert faults == []


def test_llms_txt_names_every_page() -> None:
    listed = re.findall(r"^- \[.+\]\((\S+)\.html\)", (ROOT / "docs" / "llms.txt").read_text(), re.MULTILINE)
    pages = re.findall(r"^ +- .*?(\S+)\.(?:md|py|ipynb)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(page for page in pages if page != "index")


def test_a_broken_link_shows(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One `code` heading, (really)\n\n[a](#one-code-heading-really) ![b](no.png) [c](#two) [d](page.md#two)\n"
    )
    assert [broken(page, target) for _, target in links(page)] == [
        None,
        "there is no such file",
        "it has no heading #two",
        "it has no heading #two",
    ]
