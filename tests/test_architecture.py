"""The arrows between modules, and the lint that keeps them: what pyproject.toml forbids must be noticed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# An import that runs back, for every contract and for every kind of import: in a function, for a type checker, plain.
BROKEN = {
    "Arrows go one way": ("backends/dense.py", "def late() -> None:\n    from sre_triton.planning import plan\n"),
    "No circles, at any depth": (
        "geometry/rings.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from sre_triton.geometry.windows import Window\n",
    ),
    "Backends do not know each other, and what they share knows none of them": (
        "backends/expansion.py",
        "def late() -> None:\n    from sre_triton.backends.triton import tiles\n",
    ),
    "Geometry is numbers": ("geometry/conv.py", "def late() -> None:\n    import torch\n"),
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    pytest.importorskip("importlinter", reason="import-linter comes with the extra lint")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "sre_triton", tmp_path / "sre_triton", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def lint(folder: Path) -> str:
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False).stdout


def test_the_arrows_are_kept_and_every_contract_notices_an_import_that_runs_back(copy: Path) -> None:
    verdicts = lint(copy).splitlines()
    for name, (file, line) in BROKEN.items():
        assert f"{name} KEPT" in verdicts
        with open(copy / "sre_triton" / file, "a") as source:
            source.write(line)
    verdicts = lint(copy).splitlines()
    for name in BROKEN:
        assert f"{name} BROKEN" in verdicts


def test_a_module_that_no_contract_places_is_noticed(copy: Path) -> None:
    (copy / "sre_triton" / "homeless.py").touch()
    assert "sre_triton.homeless" in lint(copy)


def test_few_files_stand_in_the_package_itself() -> None:
    assert len(list((ROOT / "sre_triton").glob("*.py"))) <= 14


def test_no_file_is_longer_than_450_lines() -> None:
    files = [file for folder in ("sre_triton", "tests", "bench") for file in (ROOT / folder).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert len(lengths) > 250
    assert {name: length for name, length in lengths.items() if length > 450} == {}
