"""Processes in which a job that faults, dies or hangs takes only itself along."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

import torch

__all__ = ["JobError", "Worker", "Workers", "kill_all"]

_START_SECONDS = 90.0  # of a process: imports, on a machine that starts many at a time

_alive: set[int] = set()  # process groups

# Processes are forked from one that has imported everything and never touches the GPU: a replacement takes a moment.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["bench.gpu.networks", "bench.gpu.run", "sre_triton.models", "triton.language"])


class JobError(RuntimeError):
    """A job that failed, in words. ``is_fault``: it took its process along."""

    def __init__(self, text: str, is_fault: bool) -> None:
        super().__init__(text)
        self.is_fault = is_fault


class Worker:
    """One process, started when it is needed, that does one job after another; replaced once it cannot be trusted.

    Args:
        name: of the process.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: Any = None
        self._connection: Connection | None = None
        self._interrupted = False
        self._lock = threading.Lock()  # an interruption and a start do not overlap

    def call(self, function: Callable[..., Any], *arguments: Any, limit: float) -> Any:
        """``function(*arguments)``, done in the process.

        Args:
            limit: seconds after which the process is killed; the first call has the time of a start on top.

        Raises:
            JobError: the job raised, its process died or did not answer, or it left a CUDA error behind.
        """
        if self._process is None:
            self._start()
        connection, process = self._connection, self._process
        assert connection is not None
        try:
            connection.send((function, arguments))
            if not connection.poll(limit):
                raise JobError(f"no answer in {limit:.0f} s", True)
            value, error, broken = connection.recv()
        except (EOFError, OSError):
            process.join(2)
            self.kill()
            raise JobError(f"the process died, {_in_words(process.exitcode)}", True) from None
        except BaseException:
            self.kill()  # whatever ended the wait, the process still computes
            raise
        if broken:
            self.kill()
        if error or broken:
            raise JobError(error or f"left behind: {broken}", bool(broken))
        return value

    def _start(self) -> None:
        with self._lock:
            if self._interrupted:
                raise JobError("it was given up before its process had started", True)
            connection, theirs = _context.Pipe()
            process: Any = _context.Process(target=_serve, args=(theirs,), name=self._name)
            process.start()
            self._connection, self._process = connection, process
            _alive.add(process.pid)
        theirs.close()
        try:
            if not connection.poll(_START_SECONDS):
                raise JobError(f"the process did not start in {_START_SECONDS:.0f} s", True)
            connection.recv()
        except (EOFError, OSError):
            self.kill()
            raise JobError("the process died before its first job", True) from None
        except BaseException:
            self.kill()
            raise

    def interrupt(self) -> None:
        """From another thread: the call that goes on fails as if its process had died, and calls fail from then on
        until :meth:`resume`."""
        with self._lock:
            self._interrupted = True
            process = self._process
        if process is not None:
            _kill_group(process.pid)
            process.kill()  # had it no group of its own yet

    def resume(self) -> None:
        """The call that was interrupted is over; others may come."""
        self._interrupted = False

    def kill(self) -> None:
        """At once, with everything that it started."""
        process, self._process = self._process, None
        if process is not None:
            _kill_group(process.pid)
            process.kill()  # had it no group of its own yet
            process.join(5)
            _alive.discard(process.pid)
        if self._connection is not None:
            self._connection.close()
            self._connection = None


class Workers:
    """So many processes side by side.

    Args:
        limit: seconds that a job may take.
    """

    def __init__(self, count: int, limit: float) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._limit = limit
        self._workers = [Worker(f"worker {index}") for index in range(count)]
        self._idle = list(self._workers)
        self._lock = threading.Lock()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """A job; its future raises :class:`JobError` if it fails."""
        return self._threads.submit(self._run, function, arguments)

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        with self._lock:
            worker = self._idle.pop()
        try:
            return worker.call(function, *arguments, limit=self._limit)
        finally:
            with self._lock:
                worker.resume()
                self._idle.append(worker)

    def give_up(self, futures: list[Future[Any]]) -> None:
        """Cancel those that wait and kill those that run; the workers can be used again."""
        waiting = [future for future in futures if not future.cancel() and not future.done()]
        if waiting:
            with self._lock:
                busy = [worker for worker in self._workers if worker not in self._idle]
            for worker in busy:
                worker.interrupt()

    def close(self) -> None:
        """At once, whatever still runs."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            idle = list(self._idle)
        for worker in self._workers:
            if worker in idle:
                worker.kill()
            else:
                worker.interrupt()
        self._threads.shutdown(wait=True)


def kill_all() -> None:
    """Every process that any worker runs in."""
    for group in list(_alive):
        _kill_group(group)


def _kill_group(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


def _in_words(code: int | None) -> str:
    if code is None:
        return "and nobody saw how"
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name


def _serve(connection: Connection) -> None:
    """The loop of a worker process."""
    with contextlib.suppress(OSError):
        os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    connection.send("ready")
    while True:
        try:
            function, arguments = connection.recv()
        except (EOFError, OSError):
            return  # whoever gave the jobs is gone
        value, error = None, None
        try:
            value = function(*arguments)
        except Exception as problem:
            error = f"{type(problem).__name__}: {problem}".strip().splitlines()[0][:300]
        connection.send((value, error, _broken_device()))


def _broken_device() -> str | None:
    """The error that a job left on the device, after which nothing works in this process."""
    if not torch.cuda.is_initialized():
        return None
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception as error:
        return str(error).splitlines()[0][:300]
    return None
