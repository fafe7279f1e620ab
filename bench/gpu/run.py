"""The order of work. This process touches no GPU: it can neither hang nor die of what happens there."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from pathlib import Path
from types import FrameType
from typing import Any

from bench.gpu import checks, networks, table
from bench.gpu.cases import PASSES, Case, Layer, Network, Workload
from bench.gpu.machine import describe
from bench.gpu.record import Clock, Record
from bench.gpu.sanitizer import sanitize
from bench.gpu.summary import line, network_line, summary
from bench.gpu.workers import JobError, Worker, Workers, kill_all

__all__ = ["Limits", "run"]

_GRACE = 10.0  # seconds past the clock's end until the watchdog ends the run
_COMPILED_SECONDS = 120.0  # that must be left for compiled networks
_SANITIZER_SECONDS = 20.0
_FAULTS = 2  # of one pass at one kernel size, after which it is not tried again


class Limits:
    """Seconds that jobs may take: those that compile, and those that only run what is compiled."""

    def __init__(self, job: float) -> None:
        self.job, self.timed = job, job / 2


class _Stopped(BaseException):
    """A signal asks for the end; no guard against ordinary errors may swallow it."""


def run(workload: Workload, out: Path, clock: Clock, workers: int, limit: float) -> int:
    """Everything, within the clock. Returns the exit code: 0 if all was right and nobody stopped it.

    Args:
        out: folder of the report.
        workers: processes that check and compile.
        limit: seconds that a job may take.
    """
    day = _Day(workload, Record(out, workload.is_quick), clock, workers, Limits(limit))
    finished = threading.Event()
    watchdog = threading.Thread(target=_watch, args=(finished, clock, day.record), daemon=True)
    watchdog.start()
    try:
        with _signals():
            is_complete = day.work()
        ended = "complete" if is_complete else "stopped when the time was spent"
        day.record.update(complete=is_complete, ended=ended)
    except _Stopped as stop:
        day.record.update(ended=f"stopped by {stop}")
    except Exception as error:
        traceback.print_exc()
        day.record.fail("table", f"the run itself: {type(error).__name__}: {error}")
        day.record.update(ended="stopped by an error of its own")
    with _deaf():
        day.close()
        return _finish(day.record, finished)


def _finish(record: Record, finished: threading.Event) -> int:
    record.save()
    record.say(summary(record.result))
    record.say(f"written to {record.path}")
    finished.set()
    return int(bool(record.failures) or "stopped by" in record.result["ended"])


def _watch(finished: threading.Event, clock: Clock, record: Record) -> None:
    """Ends the process when its time is over and its work is not, whatever it waits for."""
    if not finished.wait(clock.left() + _GRACE):
        last = threading.Timer(_GRACE / 2, os._exit, (1,))  # should even the disk not answer
        last.daemon = True
        last.start()
        record.update(ended="stopped by the watchdog")
        kill_all()
        code = _finish(record, finished)
        os._exit(code)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM, SIGHUP and Ctrl-C raise in the main thread, once."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Stopped(signal.Signals(number).name)

    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, stop) for number in watched]
    try:
        yield
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """The summary is printed, however impatient the signals."""
    watched = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = [signal.signal(number, signal.SIG_IGN) for number in watched]
    try:
        yield
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


class _Day:
    """One run: its processes, what it knows of the machine, and what has faulted."""

    def __init__(self, workload: Workload, record: Record, clock: Clock, workers: int, limits: Limits) -> None:
        self.record, self._workload, self._clock, self._limits = record, workload, clock, limits
        self._pool, self._table = Workers(workers, limits.job), Worker("table")
        self._top: tuple[float, float] | None = None
        self._suspects: dict[tuple[Case, str], str] = {}
        self._faults: dict[tuple[int, str], int] = {}
        self._steps: dict[Network, dict[str, Any]] = {}
        self._lost: set[tuple[str, str]] = set()

    def close(self) -> None:
        self._pool.close()
        self._table.kill()

    def work(self) -> bool:
        """Whether all of the table was reached."""
        load, record = self._workload, self.record
        with record.phase("machine"):
            self._describe()
        with record.phase("checks"):
            # Nothing is timed while workers compile, so only what comes first is compiled now.
            listed = [self._pool.submit(network.layers) for network in load.networks]
            futures = self._submit([*self._compile(load.first), *checks.jobs(load)])
            self._wait(futures | self._submit(self._compile_networks(listed)), 0.4)
        with record.phase("ceilings"):
            self._measure_ceilings()
        with record.phase("table"):
            is_complete = self._time(load.first)
        with record.phase("networks"):
            self._time_networks(("eager", "graph"))
        with record.phase("compile"):
            self._wait(self._submit(self._compile((*load.second, *load.third))), 0.2)
        with record.phase("table"):
            is_complete = self._time((*load.second, *load.third)) and is_complete
        with record.phase("compiled networks"):
            self._time_networks(("compiled",))
        self._table.kill()  # its memory, too, is the sanitizer's
        with record.phase("sanitizer"):
            left = self._clock.left()
            record.update(sanitizer=sanitize(left) if left > _SANITIZER_SECONDS else "skipped: the time was spent")
        return is_complete

    def _describe(self) -> None:
        try:
            self.record.name(self._table.call(describe, limit=self._limits.job))
        except JobError as error:
            self.record.fail("table", f"describing the machine: {error}")

    # Checks and compilation ----------------------------------------------------------------------------

    def _compile(self, cases: Sequence[Case]) -> list[checks.Job]:
        return [_ahead((case, which), case.layer, which) for case in cases for which in PASSES]

    def _compile_networks(self, listed: Sequence[Future[list[Layer]]]) -> list[checks.Job]:
        """The layers of all networks, once they are known."""
        layers: dict[Layer, None] = {}
        for network, future in zip(self._workload.networks, listed, strict=True):
            try:
                layers |= dict.fromkeys(future.result(max(0, self._clock.left())))
            except (JobError, TimeoutError) as error:
                self.record.fail("compile", f"listing the layers of {network}: {error}")
        return [_ahead(f"compiling {layer} {which}", layer, which) for layer in layers for which in PASSES]

    def _submit(self, jobs: Sequence[checks.Job]) -> dict[Future[Any], checks.Job]:
        return {self._pool.submit(job[2], *job[3]): job for job in jobs}

    def _wait(self, waiting: dict[Future[Any], checks.Job], reserve: float) -> None:
        """Until all jobs are done or only this share of the time is left."""
        pending = set(waiting)
        while pending:
            seconds = self._clock.left() - reserve * self._clock.total
            if seconds <= 0:
                break
            done, pending = wait(pending, timeout=seconds, return_when=FIRST_COMPLETED)
            for future in done:
                self._collect(future, waiting[future])
        self._pool.give_up(list(pending))
        for future in pending:
            section, what = waiting[future][:2]
            self.record.fail(section, f"{_in_words(what)}: not finished in time")
        self.record.save()

    def _collect(self, future: Future[checks.Finding], job: checks.Job) -> None:
        section, what = job[:2]
        try:
            count, failures = future.result()
        except JobError as error:
            if error.is_fault and isinstance(what, tuple):
                self._suspects[what] = str(error)
            count, failures = 0, [str(error)]
        self.record.passed(section, count if not failures else max(0, count - len(failures)))
        for failure in failures:
            self.record.fail(section, f"{_in_words(what)}: {failure}")

    # The table -----------------------------------------------------------------------------------------

    def _measure_ceilings(self) -> None:
        load = self._workload
        try:
            self._top = self._table.call(table.ceilings, load.ceiling, load.pace, limit=self._limits.timed)
        except JobError as error:
            self.record.fail("table", f"ceilings of copies and products: {error}")
            return
        names = ("copy_bytes_per_second", "gemm_flop_per_second")
        self.record.update(ceilings=dict(zip(names, self._top, strict=True)))

    def _time(self, cases: Sequence[Case]) -> bool:
        """Every pass of these cases; False if the time is spent before."""
        for case in cases:
            for which in PASSES:
                if self._clock.left() <= 0:
                    return False
                self._time_pass(case, which)
        return True

    def _time_pass(self, case: Case, which: str) -> None:
        if why := self._suspicion(case, which):
            self.record.fail("table", f"{case} {which}: not timed, {why}")
            return
        seconds = min(self._limits.timed, self._clock.left())
        try:
            load = self._workload
            measured = self._table.call(table.measure, case, which, case in load.with_gmr, load.pace, limit=seconds)
        except JobError as error:
            if error.is_fault and self._clock.left() > 0:
                place = case.kernel_size, which
                self._faults[place] = self._faults.get(place, 0) + 1
            cut = " (the time was spent)" if self._clock.left() <= 0 else ""
            self.record.fail("table", f"{case} {which}: {error}{cut}")
            return
        row = table.row(case, which, measured, self._top, self.record.result.get("cudnn"))
        self.record.passed("table", int(row["correct"]))
        self.record.add("rows" if case.ndim == 2 else "rows_3d", row, line(row))
        if measured.problems:
            self.record.fail("table", f"{case} {which}: {'; '.join(measured.problems)}")

    def _suspicion(self, case: Case, which: str) -> str | None:
        """Why a pass is not worth the danger of trying it again."""
        for part in PASSES if which == "step" else (which,):
            if part in ("grad_x", "grad_w") and which == "step":
                continue  # a step takes both gradients from one launcher of its own
            if text := self._suspects.get((case, part)):
                return f"{part} faulted in a worker: {text}"
        if self._faults.get((case.kernel_size, which), 0) >= _FAULTS:
            return f"{which} at k={case.kernel_size} has faulted {_FAULTS} times"
        return None

    # Networks ------------------------------------------------------------------------------------------

    def _time_networks(self, modes: Sequence[str]) -> None:
        for network in self._workload.networks:
            for mode in modes:
                for backend in networks.BACKENDS:
                    row = self._time_network(network, backend, mode)
                    self.record.add("models", row, network_line(row))

    def _time_network(self, network: Network, backend: str, mode: str) -> dict[str, Any]:
        row: dict[str, Any] = {"model": str(network), "batch": network.batch, "mode": mode, "backend": backend}
        row |= {"ms": None, "speedup_vs_dense": None, "correct": None, "skipped": None}
        left = self._clock.left()
        if left < (_COMPILED_SECONDS if mode == "compiled" else 5):
            return row | {"skipped": "the time was spent"}
        if (network.name, backend) in self._lost:
            return row | {"skipped": "faulted before"}
        try:
            limit = left if mode == "compiled" else min(left, self._limits.job)
            found = self._table.call(networks.measure, network, backend, mode, limit=limit)
        except JobError as error:
            if error.is_fault:
                self._lost.add((network.name, backend))
            self.record.fail("networks", f"{network} {mode} {backend}: {error}")
            return row | {"skipped": str(error)}
        truth = self._steps.setdefault(network, found) if backend == "dense" else self._steps.get(network)
        row |= found
        if problem := networks.problem(found, truth):
            self.record.fail("networks", f"{network} {mode} {backend}: {problem}")
            return row | {"correct": False}
        self.record.passed("networks", 1)
        rivals = [r for r in self.record.result["models"] if (r["model"], r["mode"]) == (row["model"], mode)]
        dense = next((r["ms"] for r in rivals if r["backend"] == "dense"), None)
        return row | {"correct": truth is not None or None, "speedup_vs_dense": dense and dense / found["ms"]}


def _ahead(what: Any, layer: Any, which: str) -> checks.Job:
    return "compile", what, checks.compile_ahead, (layer, which)


def _in_words(what: Any) -> str:
    """A job of the table is known by its case and pass."""
    return f"compiling {what[0]} {what[1]}" if isinstance(what, tuple) else str(what)
