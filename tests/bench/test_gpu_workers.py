"""Processes of the GPU benchmark: a job that faults, dies or hangs takes only itself along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.gpu.sanitizer import run_group, sanitize
from bench.gpu.workers import JobError, Worker, Workers


def child_of_this(path: str) -> None:
    """Starts a process, as compilers are started, and waits for it."""
    child = subprocess.Popen(["sleep", "600"])
    Path(path).write_text(str(child.pid))
    child.wait()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # nobody may be there to reap it


def wait_until_gone(pid: int) -> None:
    for _ in range(100):
        if not is_running(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")


@pytest.fixture
def worker() -> Iterator[Worker]:
    worker = Worker("test")
    yield worker
    worker.kill()


def test_one_process_does_job_after_job_and_survives_errors(worker: Worker) -> None:
    first = worker.call(os.getpid, limit=30)
    with pytest.raises(JobError, match="ValueError: invalid literal for int") as error:
        worker.call(int, "one", limit=30)
    assert not error.value.is_fault
    assert worker.call(os.getpid, limit=30) == first != os.getpid()


def test_a_process_that_dies_is_replaced(worker: Worker) -> None:
    first = worker.call(os.getpid, limit=30)
    with pytest.raises(JobError, match="the process died, exit code 11") as error:
        worker.call(os._exit, 11, limit=30)
    assert error.value.is_fault
    assert worker.call(os.getpid, limit=30) != first
    with pytest.raises(JobError, match="the process died, SIGSEGV"):
        worker.call(signal.raise_signal, signal.SIGSEGV, limit=30)


def test_a_process_that_hangs_is_killed_with_all_that_it_started(worker: Worker, tmp_path: Path) -> None:
    worker.call(os.getpid, limit=30)
    start = time.monotonic()
    with pytest.raises(JobError, match=r"no answer in 1 s") as error:
        worker.call(child_of_this, str(tmp_path / "pid"), limit=1)
    assert error.value.is_fault
    assert time.monotonic() - start < 10
    wait_until_gone(int((tmp_path / "pid").read_text()))


def test_a_process_that_is_given_up_before_it_started_never_starts(worker: Worker) -> None:
    """A signal may come while a thread is on its way to its first job."""
    worker.interrupt()
    with pytest.raises(JobError, match="given up before its process had started") as error:
        worker.call(os.getpid, limit=30)
    assert error.value.is_fault
    worker.resume()
    assert worker.call(os.getpid, limit=30) != os.getpid()


def test_workers_end_at_once_whatever_they_do() -> None:
    workers = Workers(1, limit=600)
    pid = workers.submit(os.getpid).result(60)
    running, waiting = workers.submit(time.sleep, 600), workers.submit(time.sleep, 600)
    while not running.running():
        time.sleep(0.01)
    workers.give_up([running, waiting])
    assert waiting.cancelled()
    with pytest.raises(JobError, match="the process died, SIGKILL"):
        running.result(10)
    assert workers.submit(os.getpid).result(60) != pid, "the pool goes on"
    hung = workers.submit(time.sleep, 600)
    start = time.monotonic()
    workers.close()
    assert time.monotonic() - start < 10
    assert hung.done()


def test_a_program_that_outlives_its_time_is_killed_with_its_children() -> None:
    """As the sanitizer is: the tool runs the program as a child of its own."""
    code = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True); time.sleep(600)"
    start = time.monotonic()
    assert run_group([sys.executable, "-c", "print('done')"], dict(os.environ), 60) == (0, "done\n")
    exit_code, output = run_group([sys.executable, "-c", code], dict(os.environ), 3)
    assert exit_code is None
    assert time.monotonic() - start < 40
    wait_until_gone(int(output))


TOOL = """#!/bin/sh
for argument; do case "$argument" in --kernel-regex) {old} ;; esac; done
[ "$PYTORCH_NO_CUDA_MEMORY_CACHING" = 1 ] || exit 3
{end}
"""


@pytest.mark.parametrize(
    ("old", "end", "expected"),
    [
        ("", "exit 0", "no errors"),
        ("echo unrecognised option kernel-regex; exit 1", "exit 0", "no errors"),
        ("", "echo invalid read of size 2; exit 9", "exit code 9: invalid read of size 2"),
        ("", "echo so far; sleep 600", "stopped after 1 s: so far"),
    ],
)
def test_what_the_sanitizer_says(
    old: str, end: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "compute-sanitizer"
    tool.write_text(TOOL.format(old=old or ":", end=end))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert sanitize(1).strip() == expected


def test_without_the_sanitizer_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert sanitize(1) == "compute-sanitizer is not installed"
