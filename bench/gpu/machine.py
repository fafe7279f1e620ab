"""What the report says of the machine. Runs in a worker: it is the first to touch the GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import torch

__all__ = ["describe"]


def describe() -> dict[str, Any]:
    """Names and versions of what the figures depend on."""
    import triton

    driver = None
    if tool := shutil.which("nvidia-smi"):
        command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.strip().split("\n")[0]
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": driver or torch.version.hip or "unknown",
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cudnn": torch.backends.cudnn.version(),
    }
