"""The test suite on several versions of Python, PyTorch and Triton: ``make test-matrix``.

    python -m tests.matrix [PAIR ...] [--pytest "ARGUMENTS"]

Each file beside this one is an environment: the version of Python in its first line, then every package, exact. It is
made as ``.venv-matrix-PAIR`` and made again when its file changes. Prints one row of the table in README for each, and
fails if one of them does.
"""

from __future__ import annotations

import argparse
import datetime
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
PAIRS = ("oldest", "gpu", "newest")
HEADER = """
| pair | Python | PyTorch | Triton | NumPy | passed | failed | skipped | minutes | on |
|---|---|---|---|---|--:|--:|--:|--:|---|
""".strip()


def python_version(pair: str) -> str:
    """Of the interpreter that an environment wants, as 3.12."""
    first = (FOLDER / f"{pair}.txt").read_text().splitlines()[0]
    found = re.match(r"# Python (\d+\.\d+)\.", first)
    if found is None:
        raise RuntimeError(f"{pair}.txt must begin with '# Python X.Y.', got {first!r}")
    return found[1]


def versions(pair: str) -> dict[str, str]:
    """Package by package, with lower-case names."""
    lines = (FOLDER / f"{pair}.txt").read_text().splitlines()
    return {name.lower(): version for name, _, version in (line.partition("==") for line in lines if "==" in line)}


def interpreter(version: str) -> str:
    """An interpreter of this version, on the path or in pyenv's folder.

    Raises:
        RuntimeError: there is none.
    """
    for candidate in _interpreters(version):
        # pyenv puts names on the path behind which there may be nothing.
        question = [candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
        answer = subprocess.run(question, capture_output=True, text=True)
        if answer.returncode == 0 and answer.stdout.strip() == version:
            return candidate
    raise RuntimeError(f"no interpreter of Python {version} on the path or in pyenv's folder")


def _interpreters(version: str) -> Iterator[str]:
    if found := shutil.which(f"python{version}"):
        yield found
    folder = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    yield from (str(path) for path in sorted(folder.glob(f"{version}.*/bin/python"), reverse=True))


def environment(pair: str) -> Path:
    """The environment's interpreter; makes the environment unless it is there as its file says."""
    folder, wanted = ROOT / f".venv-matrix-{pair}", (FOLDER / f"{pair}.txt").read_text()
    python, made = folder / "bin" / "python", folder / "made-of.txt"
    if made.exists() and made.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([interpreter(python_version(pair)), "-m", "venv", folder], check=True)
    command = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([python, *command, "--requirement", FOLDER / f"{pair}.txt"], check=True)
    made.write_text(wanted)
    return python


def run(pair: str, arguments: list[str]) -> tuple[str, bool]:
    """The row of one environment, and whether every test passed."""
    python = environment(pair)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        variables = os.environ | {
            "PYTHONPATH": str(ROOT),
            "SRE_TRITON_CACHE_DIR": str(python.parent.parent / "cache"),
            "TRITON_CACHE_DIR": f"{folder}/triton",
            "MALLOC_PERTURB_": "128",
        }
        # Where it cannot be built, the tests that need it say so.
        subprocess.run([python, "-m", "sre_triton", "build-native"], env=variables, cwd=ROOT)
        command = [python, "-m", "pytest", "-q", f"--junit-xml={report}", "-p", "no:cacheprovider", *arguments]
        status = subprocess.run(command, env=variables, cwd=ROOT).returncode
        counts = count(report) if report.exists() else dict.fromkeys(("passed", "failed", "skipped", "seconds"), 0)
    found, today = versions(pair), datetime.date.today().isoformat()
    names = " | ".join(found[name] for name in ("torch", "triton", "numpy"))
    figures = (
        f"{counts['passed']:.0f} | {counts['failed']:.0f} | {counts['skipped']:.0f} | {counts['seconds'] / 60:.0f}"
    )
    return f"| {pair} | {python_version(pair)} | {names} | {figures} | {today} |", status == 0


def count(report: Path) -> dict[str, float]:
    """What a report in JUnit's format holds."""
    (suite,) = ElementTree.parse(report).getroot().iter("testsuite")
    tests, failures, errors, skipped = (int(suite.attrib[k]) for k in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    seconds = float(suite.attrib["time"])
    return {"passed": tests - failed - skipped, "failed": failed, "skipped": skipped, "seconds": seconds}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.matrix", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pairs", nargs="*", metavar="PAIR", help=f"of {', '.join(PAIRS)} (default: all)")
    parser.add_argument("--pytest", default="-n auto", help="arguments for pytest (default: -n auto)")
    options = parser.parse_args(argv)
    if unknown := sorted(set(options.pairs) - set(PAIRS)):
        parser.error(f"PAIR must be one of {', '.join(PAIRS)}, got {', '.join(unknown)}")
    rows = [run(pair, shlex.split(options.pytest)) for pair in options.pairs or PAIRS]
    print("\n".join([HEADER, *(row for row, _ in rows)]))
    return int(not all(passed for _, passed in rows))


if __name__ == "__main__":
    sys.exit(main())
