"""What is released holds what it should, and says of itself what is true."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import sre_triton
from tests.release.__main__ import FIRST, ROOT, VERSIONS

PROJECT = (ROOT / "pyproject.toml").read_text()


@pytest.fixture(scope="module")
def sdist() -> set[str]:
    builder = pytest.importorskip("hatchling.builders.sdist", reason="hatchling comes with the extra test")
    return {file.distribution_path for file in builder.SdistBuilder(str(ROOT)).recurse_included_files()}


def test_the_sdist_has_what_its_tests_and_its_readers_need(sdist: set[str]) -> None:
    texts = {path.name for path in ROOT.glob("*.md")} | {path.name for path in ROOT.glob("constraints*.txt")}
    assert sdist >= texts | {"LICENSE", "CITATION.cff", "Makefile", "mkdocs.yml", ".ci/run"}
    assert sdist >= {"docs/index.md", "docs/hooks.py", "docs/llms.txt", "bench/results/cpu.json", "tests/conftest.py"}
    assert {"sre_triton/py.typed", "sre_triton/pretrained/vessels.safetensors"} <= sdist
    assert not any(re.search(r"__pycache__|\.egg-info|^build/|^dist/|\.venv", name) for name in sdist)


def test_the_checks_of_a_release_name_tests_that_exist() -> None:
    assert all((ROOT / name).exists() for name in FIRST)


def test_the_metadata_names_the_versions_that_are_tested() -> None:
    assert re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PROJECT) == list(VERSIONS)
    assert f'requires-python = ">={VERSIONS[0]}"' in PROJECT
    assert '"Typing :: Typed"' in PROJECT
    assert (Path(sre_triton.__file__).parent / "py.typed").exists()


def test_the_version_is_that_of_the_changelog_and_of_the_citation() -> None:
    found = re.search(r"^## (\d+\.\d+\.\d+) \(\d{4}-\d\d-\d\d\)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert found is not None
    assert found[1] == sre_triton.__version__
    assert f"\nversion: {sre_triton.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_this_python_is_one_of_them() -> None:
    assert "{}.{}".format(*sys.version_info[:2]) in VERSIONS
