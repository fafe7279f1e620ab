"""The runner of the version matrix; the matrix itself takes hours."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import matrix
from tests.matrix import __main__ as runner

REQUIRED = {"torch", "triton", "numpy", "pytest", "pytest-xdist", "hypothesis", "griffelib", "sybil", "scipy"}


def test_every_environment_is_exact_and_whole() -> None:
    assert {path.stem for path in Path(matrix.__file__).parent.glob("*.txt")} == set(runner.PAIRS)
    for pair in runner.PAIRS:
        found = runner.versions(pair)
        assert found.keys() >= REQUIRED, pair
        assert all(re.fullmatch(r"\d+(\.\w+)+", version) for version in found.values())


def test_the_oldest_is_what_the_package_says() -> None:
    project = (runner.ROOT / "pyproject.toml").read_text()
    oldest = runner.versions("oldest")
    least = dict(re.findall(r'"(numpy|torch|triton)>=([\d.]+)', project))
    assert least.keys() == {"numpy", "torch", "triton"}
    for name, version in least.items():
        assert oldest[name].startswith(f"{version}."), name
    assert f'requires-python = ">={runner.python_version("oldest")}"' in project


def test_an_interpreter_is_found_or_named() -> None:
    here = "{}.{}".format(*sys.version_info[:2])
    assert runner.interpreter(here)
    with pytest.raises(RuntimeError, match=r"Python 2\.9 "):
        runner.interpreter("2.9")


def test_failures_and_errors_count(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    attributes = 'tests="10" failures="1" errors="2" skipped="3" time="90.5"'
    report.write_text(f'<testsuites><testsuite name="pytest" {attributes}/></testsuites>')
    assert runner.count(report) == {"passed": 4, "failed": 3, "skipped": 3, "seconds": 90.5}
