"""What a run has found so far: on disk after every result, and printed as it comes."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sre_triton.backends import measurements

__all__ = ["SECTIONS", "Clock", "Record"]

SECTIONS = ("checks", "warps8", "compile", "table", "networks")


class Clock:
    """Seconds left of the time that was granted."""

    def __init__(self, seconds: float) -> None:
        self.total = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        return self._end - time.monotonic()


class Record:
    """The report that grows: ``gpu-<name>.json`` and the printed lines, ``gpu-<name>.log``, in the folder ``out``.

    Attributes:
        result: what the file holds. ``rows`` (2-D) is what the planner reads; ``checks``, ``warps8``, ``compile``,
            ``table`` and ``networks`` each count what was checked and name what failed.
    """

    def __init__(self, out: Path, is_quick: bool) -> None:
        self._out, self._prefix = out, "quick-" * is_quick
        self._lock = threading.RLock()
        self.result: dict[str, Any] = {
            "gpu": "unknown", "quick": is_quick, "complete": False, "ended": "not yet",
            "seconds": {}, **{name: {"checked": 0, "failures": []} for name in SECTIONS}, "sanitizer": "not reached",
            "ceilings": None, "rows": [], "rows_3d": [], "models": [],
        }  # fmt: skip
        out.mkdir(parents=True, exist_ok=True)
        self.save()

    @property
    def path(self) -> Path:
        path = measurements.path_in(self._out, self.result["gpu"])
        return path.with_name(self._prefix + path.name)

    @property
    def failures(self) -> list[str]:
        return [f"{name}: {text}" for name in SECTIONS for text in self.result[name]["failures"]]

    def name(self, machine: dict[str, Any]) -> None:
        """Which GPU this is; the files are called after it from now on."""
        with self._lock:
            before = self.path, self.path.with_suffix(".log")
            self.result |= machine
            self.save()
            if self.path != before[0]:
                before[0].unlink(missing_ok=True)
                if before[1].exists():
                    before[1].replace(self.path.with_suffix(".log"))

    def update(self, **values: Any) -> None:
        with self._lock:
            self.result |= values
            self.save()

    def add(self, kind: str, row: dict[str, Any], line: str) -> None:
        """A row of ``rows``, ``rows_3d`` or ``models``."""
        with self._lock:
            self.result[kind].append(row)
            self.save()
            self.say(line)

    def passed(self, section: str, count: int) -> None:
        with self._lock:
            self.result[section]["checked"] += count

    def fail(self, section: str, text: str) -> None:
        with self._lock:
            self.result[section]["failures"].append(text)
            self.save()
            self.say(f"FAILED {section}: {text}")

    def say(self, line: str) -> None:
        with self._lock, self.path.with_suffix(".log").open("a") as log:
            log.write(line + "\n")
            with contextlib.suppress(OSError):  # nobody may be there to read it
                print(line, flush=True)

    def save(self) -> None:
        """At no moment is there half a file."""
        with self._lock:
            measurements.write(self.path, **self.result)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Notes the seconds that the block takes."""
        start = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                spent = self.result["seconds"].get(name, 0.0) + time.monotonic() - start
                self.result["seconds"][name] = round(spent, 1)
                self.save()
