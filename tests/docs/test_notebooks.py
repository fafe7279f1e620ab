"""Notebooks are scripts in Jupytext's percent format. `make docs` runs them; here they are looked at."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.docs.documents import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_says_what_it_does_and_asserts_it(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# %% [markdown]\n# # ")
    statements = ast.parse(text).body
    assert sum(isinstance(statement, ast.Assert) for statement in ast.walk(ast.Module(statements, []))) >= 3
    assert text.count("# %% [markdown]") >= 4


def test_the_pages_show_them_all() -> None:
    pages = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert len(NOTEBOOKS) >= 3
    assert all(f"notebooks/{path.name}" in pages for path in NOTEBOOKS)
    assert "allow_errors: false" in pages
    assert "execute: true" in pages
