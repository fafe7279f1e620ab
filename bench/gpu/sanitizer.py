"""compute-sanitizer over our kernels: reads and writes out of bounds, and memory that was never written."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time

__all__ = ["main", "sanitize"]

_ERRORS = 9  # exit code
_KERNELS = "kernel_substring=ring_"  # every kernel of ours has this in its name


def sanitize(seconds: float) -> str:
    """What the tool found, in words, if it is installed. Takes no longer than ``seconds``."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        return "compute-sanitizer is not installed"
    program = ["--error-exitcode", str(_ERRORS), sys.executable, "-m", "bench.gpu.sanitizer"]
    # Blocks of the caching allocator are larger than tensors: reads beyond a tensor would go unseen.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.monotonic()
    code, text = run_group([tool, "--kernel-regex", _KERNELS, *program], environment, seconds)
    if code not in (0, _ERRORS, None) and "kernel-regex" in text:  # a tool that does not know the option
        code, text = run_group([tool, *program], environment, seconds - (time.monotonic() - start))
    if code is None:
        return f"stopped after {seconds:.0f} s: {text[-2000:]}"
    return "no errors" if code == 0 else f"exit code {code}: {text[-2000:]}"


def run_group(command: list[str], environment: dict[str, str], seconds: float) -> tuple[int | None, str]:
    """Exit code, None if the time was up, and output. Nothing that the command started outlives this call."""
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        _kill(process)
        return None, process.communicate()[0]
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def main() -> None:
    """The program that is watched: our launchers on small layers, and as little else as possible."""
    import torch

    from bench.gpu.cases import PASSES, full
    from bench.gpu.checks import compile_ahead

    for layer in full().checks[::4]:
        for which in PASSES:
            compile_ahead(layer, which)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
