"""Commands in the documentation exist, with the options that they are given there."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from sre_triton.cli import _parser
from sre_triton.training.parser import CommandParser
from tests.docs.documents import ROOT, blocks, documents, name_of

OURS = ("sre-triton", "make", "python -m", "pip install", "pytest")
INLINE = re.compile(rf"`((?:{'|'.join(map(re.escape, OURS))}) [^`]+)`")
FOREIGN = {"cd", "git", "unzip"}  # whose options are not ours to check
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
PROJECT = (ROOT / "pyproject.toml").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = [target.replace("%", "*") for target in re.findall(r"^([a-z%-]+):(?!=)", MAKEFILE, re.MULTILINE)]


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a script, without comments and settings of variables."""
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        command: list[str] = []
        for word in [*words, ";"]:
            if not set(word) <= set(words.punctuation_chars):
                command.append(word)
            elif command:
                yield command
                command = []


def check(words: list[str]) -> None:
    """Raises where there is no such command, or it has no such option."""
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
        words = words[1:]
    if not words or words[0] in FOREIGN:
        return
    name = next((name for name in CHECKS if words[: name.count(" ") + 1] == name.split()), None)
    if name is None:
        raise ValueError(f"there is no check for the command {shlex.join(words)}")
    CHECKS[name](words[name.count(" ") + 1 :])


@functools.cache
def _command_line() -> CommandParser:
    return _parser()[0]


def _sre_triton(words: list[str]) -> None:
    if words[:1] == ["COMMAND"]:  # any of them
        words = ["train", *words[1:]]
    if len(words) == 1:  # spoken of, not called
        words = [*words, "--help"]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            given, unknown = _command_line().parse_known_args(words)
            if unknown:
                given.parser.refuse(unknown)
        except SystemExit as stop:
            if stop.code:
                raise ValueError(f"sre-triton {shlex.join(words)}: {printed.getvalue()}") from None


def _make(words: list[str]) -> None:
    for word in words:
        name, sets, _ = word.partition("=")
        if sets and f"$({name})" not in MAKEFILE and f"$(if $({name})" not in MAKEFILE:
            raise ValueError(f"make has no variable {name}")
        if not sets and not any(fnmatchcase(name, target) for target in TARGETS):
            raise ValueError(f"make has no target {name}")


def _module(words: list[str]) -> None:
    name, *options = words
    if name == "sre_triton":
        return _sre_triton(options)
    if name == "pytest":
        return _pytest(options)
    path = ROOT.joinpath(*name.split("."))
    file = next((p for p in (path.with_suffix(".py"), path / "__main__.py") if p.exists()), None)
    if file is None:
        raise ValueError(f"there is no module {name}")
    if "-m" in options:  # one that runs another
        _module(options[options.index("-m") + 1 :])
        options = options[: options.index("-m")]
    source = file.read_text()
    for option in options:
        if option.startswith("-") and f'"{option}"' not in source:
            raise ValueError(f"python -m {name} has no option {option}")
    return None


def _pip(words: list[str]) -> None:
    for word in words:
        path, _, extras = word.rstrip("]").partition("[")
        if re.search(r"sre.triton", path) or path == ".":
            for extra in filter(None, extras.split(",")):
                if not _has_line(rf"{extra} = \[", PROJECT):
                    raise ValueError(f"there is no extra {extra}")


def _pytest(words: list[str]) -> None:
    for word in words:
        if word.startswith("tests") and not (ROOT / word.partition("::")[0]).exists():
            raise ValueError(f"there is no {word}")


def _has_line(beginning: str, text: str) -> bool:
    return re.search(rf"^[a-z -]*\b{beginning}", text, re.MULTILINE) is not None


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "sre-triton": _sre_triton,
    "make": _make,
    "pip install": _pip,
    "python -m pip install": _pip,
    "python -m": _module,
    "pytest": _pytest,
}


def scripts(path: Path) -> Iterator[tuple[int, str]]:
    """Blocks of commands, and commands within sentences, each with its line."""
    for block in blocks(path):
        if block.language == "bash":
            yield block.line, block.source
    text = path.read_text(encoding="utf-8")
    for found in INLINE.finditer(_FENCED.sub(lambda block: "\n" * block[0].count("\n"), text)):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[1].split())


def check_all(script: str) -> int:
    found = list(commands(script))
    for words in found:
        check(words)
    return len(found)


def test_every_command_exists_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    faults, count = [], 0
    for path in documents():
        for line, script in scripts(path):
            try:
                count += check_all(script)
            except ValueError as error:
                faults.append(f"{name_of(path)}:{line}: {error}")
    with capsys.disabled():
        print(f" {count} commands ", end="")
    assert faults == []


def test_every_block_of_commands_is_a_script() -> None:
    everything = "\n".join(block.source for path in documents() for block in blocks(path) if block.language == "bash")
    subprocess.run(["bash", "-n"], input=everything, text=True, check=True)


@pytest.mark.parametrize(
    "script",
    [
        "sre-triton tran --data photos",
        "sre-triton train --dta photos",
        "sre-triton predict RUN new && sre-triton evaluate RUN --no-such-option",
        "make tset",
        "make mutation AREAS=geometry",
        "python -m bench.nothing",
        "python -m bench --no-such-option",
        "python -m bench.pretended_gpu dense -m bench.gpu --no-such-option",
        "pip install '.[tran]'",
        "pytest tests/nothing",
        "curl example.org",
    ],
)
def test_a_command_that_does_not_exist_shows(script: str) -> None:
    with pytest.raises(ValueError, match=r"no|unknown|invalid|unrecognized|choice"):
        check_all(script)
