"""The code of the documentation runs, and prints what the text says that it prints."""

from __future__ import annotations

import inspect
from collections import Counter
from pathlib import Path

import pytest
import torch
from sybil import Document
from sybil.example import SybilFailure
from sybil.parsers.rest import DocTestParser

import sre_triton
from tests.docs.documents import FLAGS, blocks, documents, name_of, parse, run
from tests.test_docstrings import members, public_objects

# README, which wants a trained network, has a test of its own.
PAGES = [path for path in documents() if any(b.language == "python" for b in blocks(path)) and path.name != "README.md"]
# Neither run nor parsed. Every other language is an error: `python title="x"`, say, would never run.
SHOWN = {"", "text", "mermaid", "yaml", "toml", "json", "bibtex", "cmake", "cpp", "diff"}
# Each docstring once, under the last of its names.
_EXAMPLES = {value.__doc__: name for public, found in public_objects() for name, value in members(public, found)}
DOCTESTS = {name: text for text, name in _EXAMPLES.items() if ">>>" in (text or "")}


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_the_code_of_a_page_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.backends.__allow_nonbracketed_mutation():  # PyTorch's test utilities forbid what a trainer does
        run(parse(path), quick=True)


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in PAGES if "if(quick" in path.read_text()], ids=name_of)
def test_the_code_of_a_page_runs_to_the_last_line(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.backends.__allow_nonbracketed_mutation():
        assert run(parse(path), quick=False) == []


@pytest.mark.parametrize("name", DOCTESTS)
def test_the_examples_of_a_docstring_run(name: str) -> None:
    run(docstring(DOCTESTS[name], name))


def docstring(text: str, name: str) -> Document:
    """A docstring's examples, for which PyTorch and this package are imported."""
    document = Document(inspect.cleandoc(text), name)
    for region in DocTestParser(FLAGS)(document):
        document.add(region)
    document.namespace.update(torch=torch, nn=torch.nn, sre_triton=sre_triton)
    return document


def test_every_block_is_accounted_for(capsys: pytest.CaptureFixture[str]) -> None:
    count = Counter(block.language for path in documents() for block in blocks(path))
    assert set(count) - SHOWN <= {"python", "bash"}
    for path in documents():
        places = [example.region.start for example in parse(path).examples()]
        for block in blocks(path):
            if block.language in ("python", "text"):
                assert any(block.start <= place < block.end for place in places), f"{name_of(path)}:{block.line}"
    examples = sum(len(list(docstring(text, name).examples())) for name, text in DOCTESTS.items())
    with capsys.disabled():
        print(
            f" {count['python']} Python blocks and {count['bash']} of commands in {len(documents())} texts, "
            f"{examples} examples in {len(DOCTESTS)} docstrings ",
            end="",
        )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("```python\nprint(1 + 1)\n```\n\n```text\n2\n```\n", None),
        ("```python\nprint(1 + 1)\n```\n\n```text\n3\n```\n", "Expected"),
        ("```python\nprint(1 / 3)\n```\n\n```text\n0.33\n```\n", None),
        ("```python\nprint(1 / 3)\n```\n\n```text\n0.36\n```\n", "Expected"),
        ("```python\nprint(1)\n```\n\nA folder holds\n\n```text\na.png\n```\n", None),
        ("```python\n>>> 1 + 1\n3\n```\n", "Expected"),
        ("```python\nassert False, 'no'\n```\n", "no"),
        ("<!-- invisible-code: python\nx = 1\n-->\n```python\nassert x == 1\n```\n", None),
        ("<!-- skip: next if(quick, reason='slow') -->\n```python\nassert False\n```\n", None),
        ("<!-- skip: next if(quick, reason='slow') -->\n```python\n1\n```\n```python\nassert False, 'no'\n```\n", "no"),
    ],
)
def test_code_that_does_not_do_what_is_said_shows(tmp_path: Path, text: str, fault: str | None) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    if fault is None:
        run(parse(page))
    else:
        with pytest.raises((SybilFailure, AssertionError), match=fault):
            run(parse(page))
