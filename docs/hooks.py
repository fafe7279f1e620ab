"""What mkdocs does beside rendering pages: tables, figures and texts from the code, formulas without a script.

A page asks with a comment that GitHub does not show: ``<!-- table: NAME -->`` for a function of :mod:`docs.tables`,
``<!-- include: PATH -->`` for a text of the repository. Pictures ``figures/NAME`` are drawn by :mod:`docs.figures`.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

import torch
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
DRAWN = ROOT / "build" / "figures"
EVIDENCE = ROOT / "bench" / "results" / "evidence"

_redraw = True

_ASKED = re.compile(r"^<!-- (table|include): (\S+) -->$", re.MULTILINE)
_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_startup(command: str, dirty: bool, **_: Any) -> None:
    """While pages are written (``mkdocs serve``, ``build --dirty``) figures that are there are shown as they are."""
    global _redraw
    torch.set_num_threads(1)  # the same figures and errors on every machine
    _redraw = command == "build" and not dirty
    # Notebooks run as on a fresh machine, whatever this user's IPython loads, and do not warn of ports.
    profile = ROOT / "build" / "ipython" / "profile_default"
    profile.mkdir(parents=True, exist_ok=True)
    (profile / "ipython_kernel_config.py").write_text("get_config().IPKernelApp.log_level = 'ERROR'\n")
    os.environ["IPYTHONDIR"] = str(profile.parent)


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Draws the figures, and adds them to the site along with those that lie beside results."""
    from docs import figures

    figures.draw(DRAWN, [name for name in figures.FIGURES if _redraw or not (DRAWN / name).exists()])
    for name in figures.FIGURES:
        files.append(File.generated(config, f"figures/{name}", abs_src_path=str(DRAWN / name)))
    for path in sorted(EVIDENCE.glob("*/*.svg")):  # the page of evidence names them as they lie beside it
        files.append(File.generated(config, f"{path.parent.name}/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Fills in what a page asks for."""
    return _ASKED.sub(lambda asked: _answer(asked[1], asked[2], page), markdown)


def _answer(kind: str, name: str, page: Page) -> str:
    if kind == "include":
        text = (ROOT / name).read_text(encoding="utf-8")
        return re.sub(r"\A# .*\n+", "", text)  # the page has a heading
    from docs import tables

    try:
        function = tables.TABLES[name]
    except KeyError:
        raise PluginError(
            f"{page.file.src_uri} asks for the table {name!r}; there are {', '.join(tables.TABLES)}"
        ) from None
    return function()


def on_page_content(html_text: str, **_: Any) -> str:
    """Formulas as MathML, which browsers draw by themselves."""

    def formula(found: re.Match[str]) -> str:
        display = "inline" if found[1] == "span" else "block"
        return convert(html.unescape(found[2]).strip(), display=display)

    return _FORMULA.sub(formula, html_text)


# What a browser fetches by itself, other than the readers' own clicks.
_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*rel=["']?stylesheet[^>]*//|url\(["']?(?:https?:)?//"""
)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Makes sure that pages need nothing from outside to be read."""
    for path in Path(config.site_dir).rglob("*"):
        if path.suffix in (".html", ".css") and (found := _FETCHED.search(path.read_text(encoding="utf-8"))):
            raise PluginError(f"{path} fetches something from outside: {found[0]}")
