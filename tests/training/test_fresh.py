"""Functions in processes of their own, and comparisons that are called from a script."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sre_triton.training.evaluation.fresh import in_fresh_process
from sre_triton.training.runs.folder import command_line
from sre_triton.training.runs.interruption import Interrupted


def double(value: int) -> tuple[int, int, str]:
    return 2 * value, os.getpid(), command_line()


def refuse(message: str) -> None:
    raise Interrupted(message)


class UnreadableError(Exception):
    """Is pickled and cannot be read again."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def refuse_unreadably() -> None:
    raise UnreadableError(1, 2)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_command_line_is_as_a_shell_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for program, name in (("/bin/sre-triton", "sre-triton"), ("/lib/sre_triton/__main__.py", "python -m sre_triton")):
        monkeypatch.setattr(sys, "argv", [program, "train", "--exp", "two words"])
        assert command_line() == f"{name} train --exp 'two words'"


def test_answers_and_errors_come_back() -> None:
    answer, process, command = in_fresh_process(double, 21)
    assert answer == 42
    assert process != os.getpid()
    assert command == command_line()  # what the user ran
    with pytest.raises(Interrupted, match="enough"):
        in_fresh_process(refuse, "enough")


@pytest.mark.slow
def test_other_ends_are_errors_too() -> None:
    with pytest.raises(RuntimeError, match="UnreadableError: 1 and 2"):
        in_fresh_process(refuse_unreadably)
    with pytest.raises(OSError, match="a process that die ran in died of signal 9"):
        in_fresh_process(die)


_SCRIPT = """
print("begun", flush=True)
import sys
from pathlib import Path
from sre_triton.training.evaluation.compare import compare
from sre_triton.training.options import CompareOptions, SegmentOptions
options = SegmentOptions(vessels_size=64, vessels_count=[1, 1, 1], crop_size=32, crops_per_image=1, epochs=1,
                         batch_size=1, model_args='{"features": [4, 4], "sre_conv_size": 3}', no_cuda=True, threads=1)
networks = CompareOptions(models=["sre_unet"], seeds=[1, 2], jobs=int(sys.argv[2]), output=Path(sys.argv[1]))
rows = compare(options, networks)
print("ended", rows[0]["seeds"], rows[0]["training_mib"] is not None)
"""


_MEASURES = """
print("begun", flush=True)
import torch
from functools import partial
from sre_triton.training.evaluation.footprint import peak_training_memory
print("ended", peak_training_memory(partial(torch.nn.Conv2d, 1, 4, 3), (8, 1, 32, 32), "cpu") is not None)
"""


def run_script(text: str, tmp_path: Path, *arguments: str | Path) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(text)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ran = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=300, check=False,
                         env=environment)  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_memory_is_measured_without_running_a_script_again(tmp_path: Path) -> None:
    assert run_script(_MEASURES, tmp_path) == ["begun", f"ended {sys.platform == 'linux'}"]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_script_without_a_guard_is_run_once(jobs: int, tmp_path: Path) -> None:
    lines = run_script(_SCRIPT, tmp_path, tmp_path / "comparison", str(jobs))
    assert lines.count("begun") == 1
    assert lines[-1] == f"ended 2 {sys.platform == 'linux'}"


def wait_for_ever(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(600)


@pytest.mark.slow
def test_a_process_ends_with_the_one_that_waits_for_it(tmp_path: Path) -> None:
    place = tmp_path / "process"
    begin = ("from pathlib import Path; from tests.training.test_fresh import *; import sys; "
             "in_fresh_process(wait_for_ever, Path(sys.argv[1]))")  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    waiting = subprocess.Popen([sys.executable, "-c", begin, place], env=environment)
    until = time.monotonic() + 60
    while not place.is_file() or not place.read_text():
        assert time.monotonic() < until
        time.sleep(0.05)
    waiting.kill()
    waiting.wait()
    process = int(place.read_text())
    while _runs(process):
        assert time.monotonic() < until
        time.sleep(0.05)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2][:3]
    except OSError:
        return False
