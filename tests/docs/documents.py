"""The project's texts, and what Sybil finds in them: code that runs, what it prints, commands."""

from __future__ import annotations

import doctest
import io
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest import SkipTest

from sybil import Document, Example, Sybil
from sybil.evaluators.doctest import NUMBER, OutputChecker
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

ROOT = Path(__file__).parent.parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | NUMBER  # figures to as many digits as are shown


class Block(NamedTuple):
    """A fenced block: its language and text, the line on which it begins, and where it begins and ends in the file."""

    language: str
    source: str
    line: int
    start: int
    end: int


def documents() -> list[Path]:
    """Every text that a reader is meant to see."""
    folders = [ROOT / name for name in ("bench", "docs", "sre_triton")]
    return sorted([*ROOT.glob("*.md"), *(path for folder in folders for path in folder.glob("**/*.md"))])


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> Iterator[Block]:
    document = Document.parse(str(path))
    for region in FencedCodeBlockLexer(".*")(document):
        line = document.text.count("\n", 0, region.start) + 1
        yield Block(region.lexemes["language"].strip(), str(region.lexemes["source"]), line, region.start, region.end)


def parse(path: Path) -> Document:
    """A text with its Python code, the outputs below it, and what is to be skipped."""
    python = PythonCodeBlockParser(doctest_optionflags=FLAGS)
    return Sybil([python, CodeBlockParser("text", _compare), SkipParser()]).parse(path)


def run(document: Document, *, quick: bool = True) -> list[str]:
    """Runs a text from its beginning to its end as a reader would type it, but what is to be skipped: why, is returned.

    A block of ``text`` right below one of Python is what that prints. ``quick`` is a name that conditions of skipping
    may use.
    """
    document.namespace["quick"] = quick
    skipped = []
    for example in document.examples():
        printed = io.StringIO()
        try:
            with redirect_stdout(printed):
                example.evaluate()
        except SkipTest as reason:
            skipped.append(str(reason))
            continue
        if example.region.evaluator is not _compare:
            document.namespace["__printed__"] = (example.region.end, printed.getvalue())
    return skipped


def _compare(example: Example) -> str | None:
    end, printed = example.namespace.get("__printed__", (0, ""))
    if not end or example.document.text[end : example.region.start].strip("\n `"):
        return None  # something stands between them: this is a drawing, a file, or what a command prints
    expected, checker = doctest.Example("", str(example.parsed)), OutputChecker()
    if checker.check_output(expected.want, printed, FLAGS):
        return None
    return checker.output_difference(expected, printed, FLAGS)
