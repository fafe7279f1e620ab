"""A release as users get it: ``make release-check``.

    python -m tests.release [VERSION ...] [--full VERSION] [--keep]

Builds the sdist from this tree and the wheel from the sdist. For each version of Python the wheel is installed into an
empty environment, and the sdist's tests run on what was installed: all of them on one version, on the others those of
what a user meets first.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

from tests.matrix.__main__ import ROOT, interpreter

FOLDER = ROOT / "build" / "release"
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
FULL = "3.12"
TORCH = "torch==2.13.0"  # by exact version: a plain requirement may bring another build's libraries
FIRST = (
    "tests/test_fresh_process.py",
    "tests/test_public_names.py",
    "tests/test_docstrings.py",
    "tests/test_functional.py",
    "tests/test_layers.py",
    "tests/test_readme.py",
    "tests/conversion/test_convert.py",
    "tests/docs",
    "tests/models/test_symmetry.py",
    "tests/release",
    "tests/training/test_command_line.py",
    "tests/training/test_pretrained.py",
)


class Release(NamedTuple):
    """The files that are uploaded."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Release:
    """The sdist of this tree, and the wheel that it makes.

    Raises:
        RuntimeError: the wheel has other files than one of this tree would have.
    """
    shutil.rmtree(folder, ignore_errors=True)
    hatchling = [sys.executable, "-m", "hatchling", "build"]
    subprocess.run([*hatchling, "-t", "sdist", "-d", folder], cwd=ROOT, check=True)
    (sdist,) = folder.glob("*.tar.gz")
    source = unpack(sdist, folder / "source")
    subprocess.run([*hatchling, "-t", "wheel", "-d", folder], cwd=source, check=True)
    subprocess.run([*hatchling, "-t", "wheel", "-d", folder / "of-tree"], cwd=ROOT, check=True)
    (wheel,), (of_tree,) = folder.glob("*.whl"), (folder / "of-tree").glob("*.whl")
    if files(wheel) != files(of_tree):
        raise RuntimeError(f"the sdist makes another wheel than the tree: {sorted(files(wheel) ^ files(of_tree))}")
    return Release(sdist, wheel)


def unpack(sdist: Path, folder: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    return source


def files(wheel: Path) -> set[str]:
    return set(ZipFile(wheel).namelist())


def check(release: Release, version: str, *, full: bool) -> bool:
    """Whether the tests pass on a version of Python, in an environment that holds the wheel and what it requires."""
    folder = FOLDER / f"python-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(version), "-m", "venv", folder / "env"], check=True)
    python = folder / "env" / "bin" / "python"
    extras = "train,native,triton,onnx,bench,test" if full else "train,native,test"
    # The oldest Python has not all pinned versions: it gets what it can have, as a user does.
    pins = ["-c", ROOT / "constraints.txt"] if version != VERSIONS[0] else []
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, TORCH, *pins], check=True)
    subprocess.run([*pip, f"{release.wheel}[{extras}]", TORCH, *pins], check=True)
    subprocess.run([python, "-m", "pip", "check"], check=True)
    # What the tests compare with; nothing requires it.
    subprocess.run([*pip, "--no-deps", "-c", ROOT / "constraints.txt", "SRE-Conv", "GMR-Conv"], check=True)
    # Tests that look at the package's files, and Python itself, find those that were installed.
    source = unpack(release.sdist, folder / "source")
    (installed,) = (folder / "env").glob("lib/python*/site-packages/sre_triton")
    shutil.rmtree(source / "sre_triton")
    (source / "sre_triton").symlink_to(installed)
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"SRE_TRITON_CACHE_DIR": str(folder / "cache"), "TRITON_CACHE_DIR": str(folder / "triton")}
    variables |= {"PYTHONHASHSEED": "0"}
    subprocess.run([python, "-m", "sre_triton", "build-native"], env=variables, cwd=folder)
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "auto", *(() if full else FIRST)]
    return subprocess.run(command, env=variables, cwd=source).returncode == 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.release", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("versions", nargs="*", metavar="VERSION", help=f"of Python (default: {', '.join(VERSIONS)})")
    parser.add_argument("--full", default=FULL, metavar="VERSION", help="on which all tests run (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the environments (2 GB each)")
    options = parser.parse_args(argv)
    release = build(FOLDER)
    passed = {}
    for version in options.versions or VERSIONS:
        passed[version] = check(release, version, full=version == options.full)
        if not options.keep:
            shutil.rmtree(FOLDER / f"python-{version}", ignore_errors=True)
    for version, fine in passed.items():
        print(f"{release.wheel.name} on Python {version}: {'passed' if fine else 'FAILED'}")
    return int(not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main())
