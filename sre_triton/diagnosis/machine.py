"""What a result depends on besides the code: versions, processor, devices and their drivers."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from sre_triton.backends import native

__all__ = ["describe_machine"]


def describe_machine() -> dict[str, str]:
    """Names and values in the form that a bug report quotes. Imports no Triton."""
    found = {"sre_triton": _version("sre-triton"), "torch": torch.__version__}
    found |= {name: _version(name) for name in ("triton", "numpy")}
    found["python"] = f"{platform.python_version()} on {platform.platform()}"
    found["processor"] = f"{_processor()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    reason = native.missing()
    found["native kernel"] = "built" if reason is None else f"none: {reason}"
    if os.environ.get("TRITON_INTERPRET") == "1":
        found["TRITON_INTERPRET"] = "1: Triton's kernels run in its interpreter, on CPU tensors"
    if not torch.cuda.is_available():
        found["GPU"] = f"none (PyTorch built for {torch.version.cuda or torch.version.hip or 'CPUs'})"
        return found
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        arch = getattr(device, "gcnArchName", "") or f"sm_{device.major}{device.minor}"
        found[f"GPU {index}"] = f"{device.name}, {arch}, {device.total_memory // 2**20} MiB"
    toolkit = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    found["driver"] = f"{_driver()} for {toolkit}, cuDNN {torch.backends.cudnn.version()}"
    return found


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _driver() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    command = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.split()
    except (OSError, subprocess.SubprocessError):
        printed = []
    return printed[0] if printed else "unknown"
