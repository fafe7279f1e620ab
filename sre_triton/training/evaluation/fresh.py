"""Functions that run in a process of their own.

Not by multiprocessing: its fresh processes begin by running the user's script again, and one that has no
``if __name__ == "__main__"`` would then start them without end.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

__all__ = ["in_fresh_process", "serve"]

Answer = TypeVar("Answer")

_BEGIN = """
import pickle, sys
sys.path[:], sys.argv[:] = pickle.load(sys.stdin.buffer)
from sre_triton.training.evaluation.fresh import serve
serve(sys.stdin.buffer)
"""


def in_fresh_process(function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Calls a function of this package in a new process, which prints where this one does, and waits for its answer.

    It ends as on SIGTERM when this process dies.

    Args:
        function, arguments: all of them picklable; so must be the answer.

    Raises:
        OSError: the process died without an answer.
        Exception: what the function raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer"
        process = subprocess.Popen([sys.executable, "-c", _BEGIN], stdin=subprocess.PIPE)
        assert process.stdin is not None
        try:
            pickle.dump((sys.path, sys.argv), process.stdin)  # the command line is kept with what it gives
            pickle.dump((os.fspath(answer), function, arguments), process.stdin)
            process.stdin.flush()
            status = process.wait()
        except BrokenPipeError:
            status = process.wait()
        finally:
            process.stdin.close()  # if it still runs, it is now told to stop
            process.wait()
        if not answer.is_file():
            how = f"of signal {-status}" if status < 0 else f"with status {status}"
            raise OSError(f"a process that {function.__qualname__} ran in died {how}")
        found, error = pickle.loads(answer.read_bytes())
    if error is not None:
        raise error
    return found  # type: ignore[no-any-return]


def serve(source: Any) -> None:
    """What the new process does: reads a call, answers it, and watches whether it is still waited for."""
    answer, function, arguments = pickle.load(source)
    threading.Thread(target=_stop_when_closed, args=(source,), daemon=True).start()
    outcome: tuple[Any, Exception | None]
    try:
        outcome = function(*arguments), None
    except Exception as error:
        outcome = None, error
    try:
        content = pickle.dumps(outcome)
        pickle.loads(content)  # some errors are pickled and cannot be read again
    except Exception:
        content = pickle.dumps((None, RuntimeError(f"{type(outcome[1] or outcome[0]).__name__}: {outcome[1]}")))
    Path(answer).write_bytes(content)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # the thread may be reading


def _stop_when_closed(source: Any) -> None:
    source.read()
    os.kill(os.getpid(), signal.SIGTERM)
