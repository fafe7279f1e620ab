"""Compile the launches that the library would make, for a GPU that need not be there.

:func:`record` runs a launcher on tensors without memory and notes every kernel call, so what is compiled here
is what ships: same constants, same specialisation. :func:`build` compiles one call and reads its machine code.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from sre_triton.backends.triton import devices, tiles

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

_POINTER = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32", torch.int32: "*i32"}

_OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


@dataclass
class Launch:
    """One kernel call: the kernel, its arguments by name, and the compiler's options."""

    kernel: JITFunction[Any]
    arguments: dict[str, Any]
    options: dict[str, int]


@dataclass
class Binary:
    """What the machine code of a kernel says about itself."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_memory: int
    mma: str
    instructions: int
    """Instructions that one warp executes, loop trips counted."""


def record(call: Callable[[], object], arch: str) -> list[Launch]:
    """The launches that ``call`` would make on ``arch``. Its tensors should live on the meta device."""
    launches: list[Launch] = []

    def note(kernel: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options: dict[str, int] = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        launches.append(Launch(kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs, options))

    limits = devices.limits_of(arch)
    with mock.patch.object(JITFunction, "run", note), mock.patch.object(devices, "device_limits", return_value=limits):
        call()
    return launches


def source(launch: Launch) -> ASTSource:
    """The kernel specialised as Triton's launcher would: ones are constants, multiples of 16 are marked."""
    constexprs, signature, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        kind = "constexpr"
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (specialised and isinstance(value, int) and value == 1):
            constexprs[parameter.name] = value
        elif isinstance(value, torch.Tensor):
            kind = _POINTER[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            kind = "i32" if -(2**31) <= value < 2**31 else "i64"
            if specialised and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        signature[parameter.name] = kind
    return ASTSource(launch.kernel, signature, constexprs, attributes)


def build(launch: Launch, arch: str, trips: int = 1) -> Binary:
    """Compile for ``arch``. ``trips`` says how often the loop over blocks of channels or pixels runs.

    Raises:
        RuntimeError: the kernel needs more shared or tensor memory than there is.
    """
    compiled = triton.compile(source(launch), target=TARGETS[arch], options=launch.options)
    limit = devices.limits_of(arch).shared_bytes
    if compiled.metadata.shared > limit:
        raise RuntimeError(f"shared memory: {compiled.metadata.shared} bytes of {limit}")
    columns = getattr(compiled.metadata, "tmem_size", 0) or 0
    if columns > tiles.TENSOR_MEMORY_COLUMNS:
        raise RuntimeError(f"tensor memory: {columns} columns of {tiles.TENSOR_MEMORY_COLUMNS}; the kernel would trap")
    if arch.startswith("gfx"):
        return _read_amdgcn(compiled.asm["amdgcn"], compiled.metadata.shared, trips)
    return _read_cubin(compiled.asm["cubin"], compiled.metadata.shared, columns, trips)


def _read_cubin(cubin: bytes, shared: int, columns: int, trips: int) -> Binary:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "kernel.cubin"
        name.write_bytes(cubin)
        # The tool leaves scratch files of its own, which must not meet those of another process.
        environment = os.environ | {"TMPDIR": folder}

        def dump(option: str) -> str:
            done = subprocess.run([tool, option, name], capture_output=True, text=True, env=environment)
            if done.returncode:
                raise RuntimeError(f"cuobjdump {option} failed with {done.returncode}: {done.stderr.strip()}")
            return done.stdout + done.stderr

        sass, usage = dump("-sass"), dump("-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError("cuobjdump printed no resource usage")
    lines = [(int(a, 16), text) for a, text in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+([^;]*);", sass, re.M)]
    code = [(address, text) for address, text in lines if not text.startswith("NOP")]
    jumps = []
    for position, (address, text) in enumerate(code):
        target = re.search(r"\bBRA\S* .*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            jumps.append((_position(code, int(target[1], 16)), position))
    texts = [text for _, text in code]
    kinds = (("tcgen05", r"UTC\w*MMA"), ("wgmma", r"[HQI]GMMA"), ("mma", r"[HQID]MMA"))
    return Binary(
        int(found[1]), int(found[2]), shared, columns, _mma(texts, kinds), _executed(texts, jumps, "LDG", trips)
    )


def _read_amdgcn(text: str, shared: int, trips: int) -> Binary:
    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", text)
        return int(found[1]) if found else 0

    body, labels, code = text[: text.index("s_endpgm")], {}, []  # type: ignore[var-annotated]
    for line in body.splitlines():
        line = line.split(";")[0].strip()
        if label := re.fullmatch(r"(\.?\w+):", line):
            labels[label[1]] = len(code)
        elif re.match(r"(s|v|ds|global|buffer|flat)_", line) and not line.startswith("s_nop"):
            code.append(line)
    jumps = []
    for position, line in enumerate(code):
        target = re.match(r"s_c?branch\S*\s+(\S+)", line)
        if target and labels.get(target[1], position + 1) <= position:
            jumps.append((labels[target[1]], position))
    spilled = number("private_segment_fixed_size") + 4 * number("vgpr_spill_count")
    return Binary(
        number("vgpr_count"), spilled, shared, 0, _mma(code, (("mfma", "v_mfma"),)),
        _executed(code, jumps, r"(global|buffer)_load", trips),
    )  # fmt: skip


def _mma(code: list[str], kinds: tuple[tuple[str, str], ...]) -> str:
    return next((name for name, pattern in kinds if any(re.search(pattern, line) for line in code)), "none")


def _executed(code: list[str], jumps: list[tuple[int, int]], load: str, trips: int) -> int:
    """Length of the code, bodies of loops that load from memory counted ``trips`` times.

    Other backward jumps wait for a barrier and are passed once.
    """
    total = len(code)
    for start, stop in jumps:
        body = code[start : stop + 1]
        if any(re.search(load, line) for line in body):
            total += (trips - 1) * len(body)
    return total


def _position(code: list[tuple[int, str]], address: int) -> int:
    return next(i for i, (a, _) in enumerate(code) if a >= address)
