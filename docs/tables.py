"""``python -m docs.tables NAME``: the tables of the documentation, made from the code and from what was measured.

A page has the comment ``<!-- table: NAME -->`` where its table belongs; `make docs` puts it there.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import json
import os
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import sre_triton
from bench import report as bench_report
from sre_triton.backends.base import Call, Kind, fuses_epilogue
from sre_triton.backends.registry import BACKENDS
from sre_triton.cli import main as command
from sre_triton.geometry.conv import conv_spec
from sre_triton.geometry.rings import default_num_rings
from sre_triton.models.profile import profiles
from sre_triton.planning.gpu_cost import gpu_of
from sre_triton.planning.plan import plan_on_gpu

__all__ = ["TABLES"]

RESULTS = Path(__file__).parent.parent / "bench" / "results"


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]], numbers: int = 0) -> str:
    """A Markdown table whose last ``numbers`` columns are aligned right."""
    aligned = [" --- "] * (len(headings) - numbers) + [" --: "] * numbers
    lines = [" | ".join(headings), "|".join(aligned), *(" | ".join(map(str, row)) for row in rows)]
    return "\n".join(f"| {line} |" for line in lines)


def _call(
    kind: Kind = "forward", *, ndim: int = 2, k: int = 5, stride: int = 1, dilation: int = 1, groups: int = 1,
    circular: bool = True, antialias: bool = False, channels: int = 64, size: int = 32, batch: int = 8,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> Call:  # fmt: skip
    rings = default_num_rings(k, circular, ndim)
    one_each = [(value,) * ndim for value in (stride, dilation * (k // 2), dilation)]
    spec = conv_spec(ndim, k, rings, circular, antialias, *one_each, groups)
    return Call(kind, spec, batch, channels, channels, (size,) * ndim, dtype, torch.device(device))


# What a backend may be asked for: a label and the call.
_FEATURES: dict[str, dict[str, Any]] = {
    "1-D": {"ndim": 1},
    "2-D": {},
    "3-D": {"ndim": 3, "size": 8},
    "transposed": {"kind": "transpose"},
    "gradient of the input and of the weight": {"kind": "backward"},
    "stride": {"stride": 2},
    "dilation": {"dilation": 2},
    "groups": {"groups": 4},
    "depthwise": {"groups": 64},
    "`circular=False`": {"circular": False},
    "`antialias=True`": {"antialias": True},
    "k = 31": {"k": 31},
    "no image in the batch": {"batch": 0},
    "float32": {"dtype": torch.float32},
    "float64": {"dtype": torch.float64},
    "bfloat16": {"dtype": torch.bfloat16},
    "float16": {"dtype": torch.float16},
}
_DEVICES = {"CPU": "cpu", "CUDA and ROCm": "cuda", "XPU": "xpu", "MPS": "mps"}


def backends() -> str:
    """What each backend takes, as its own check answers."""
    # Whether the kernel has been built on the machine that makes the page is not the question.
    with mock.patch("sre_triton.backends.native.passes.missing", return_value=None):
        answers = {
            name: {device: _refusal(name, _call(device=kind)) for device, kind in _DEVICES.items()} for name in BACKENDS
        }
        for name in BACKENDS:
            home = next(kind for device, kind in _DEVICES.items() if answers[name][device] is None)
            answers[name] |= {what: _refusal(name, _call(**call, device=home)) for what, call in _FEATURES.items()}
            answers[name]["`sre_conv_act` in one pass"] = None if fuses_epilogue(BACKENDS[name]) else "several passes"
    notes: dict[str, str] = {}

    def cell(reason: str | None) -> str:
        if reason is None:
            return "yes"
        notes.setdefault(reason, f"({len(notes) + 1})")
        return f"no {notes[reason]}"

    features = list(answers["dense"])
    rows = [[what, *(cell(answers[name][what]) for name in BACKENDS)] for what in features]
    listed = "\n".join(f"- {number} {reason}" for reason, number in notes.items())
    return f"{_table(['', *(f'`{name}`' for name in BACKENDS)], rows)}\n\n{listed}"


def _refusal(name: str, call: Call) -> str | None:
    return BACKENDS[name].refusal(call)


_GPUS = {
    "A100": ("sm_80", 108),
    "L4": ("sm_89", 58),
    "H100": ("sm_90", 132),
    "B200": ("sm_100", 148),
    "MI300X": ("gfx942", 304),
}


def gpu_plans() -> str:
    """What the planner would take on GPUs that are not here."""
    rows = []
    kinds: tuple[Kind, ...] = ("forward", "backward")
    for kind in kinds:
        for k in (3, 5, 9):
            for channels, size in ((64, 64), (256, 16)):
                call = _call(kind, k=k, channels=channels, size=size, batch=32, dtype=torch.bfloat16, device="cuda")
                plans = [plan_on_gpu(call, gpu_of(*arch), in_graph=True) for arch in _GPUS.values()]
                rows.append([kind, k, channels, f"{size}x{size}", *(plan.backend for plan in plans)])
    return _table(["pass", "k", "channels", "image", *_GPUS], rows)


def networks() -> str:
    """Parameters and arithmetic of every network; nothing is timed."""
    rows = [
        [
            f"`{row.name}`", "x".join(map(str, row.input_shape)), f"{row.parameters:,}",
            *(f"{value:.2f}" for value in (row.gmac_dense, row.gmac_ringwise, row.gadd_ringwise)),
        ]
        for row in profiles(timed=False)
    ]  # fmt: skip
    headings = ["network", "image", "parameters", "GMAC, dense", "GMAC, ring-wise", "G additions"]
    return _table(headings, rows, numbers=4)


def savings() -> str:
    """Taps of the dense kernel, taps that carry weight, rings, and what that saves."""
    rows = []
    for ndim, sizes in ((2, (3, 5, 7, 9, 11)), (3, (3, 5, 7))):
        for k in sizes:
            geometry = sre_triton.ring_geometry((k,) * ndim)
            taps, rings = geometry.num_taps, geometry.num_rings
            rows.append([f"{ndim}-D, {k}", taps, sum(geometry.tap_counts), rings, f"{taps / rings:.1f}"])
    return _table(["k", "taps", "with weight", "rings", "multiplications saved: taps over rings"], rows, 4)


def _benchmark(name: str) -> tuple[dict[str, Any], list[bench_report.Row]]:
    found = json.loads((RESULTS / name).read_text())
    rows = [bench_report.Row(row["case"], row["k"], row["device"], row["modes"]) for row in found["cases"]]
    return found, rows


def _machine(environment: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items())
    kernel = "with" if environment.get("native") else "without"
    threads = f"{environment['threads']} thread{'s' * (environment['threads'] != 1)}"
    return f"{environment['cpu']}, {threads}, {kernel} the native kernel; {versions}."


def _means(name: str) -> str:
    found, _ = _benchmark(name)
    rows = []
    for group, figures in found["means"].items():
        cells = [format(figures[n], style) if n in figures else "-" for n, (_, style) in bench_report.COLUMNS.items()]
        rows.append([group.removesuffix(" cpu").replace(" ", "&nbsp;"), *cells])
    return f"{_table(['', *bench_report.COLUMNS], rows, len(bench_report.COLUMNS))}\n\n{_machine(found['environment'])}"


def _layers(name: str) -> str:
    """Every layer, those of the mean and those that are hard."""
    _, measured = _benchmark(name)
    rows = []
    for row in measured:
        cells = [
            "-" if value is None else f"**{value:{style}}**" if value < 1 and not is_cost else format(value, style)
            for heading, (figure, style) in bench_report.COLUMNS.items()
            for value, is_cost in [(figure(row), heading in ("time / floor", "memory"))]
        ]
        rows.append([row.case, row.k, *cells, row.paths])
    return _table(["layer", "k", *bench_report.COLUMNS, "backend"], rows)


def _losses(name: str) -> str:
    """Where nn.Conv was faster."""
    _, measured = _benchmark(name)
    modes = {
        "infer": "inference",
        "train": "training step",
        "infer-bf16": "bfloat16 inference",
        "train-bf16": "bfloat16 training step",
    }
    found = [
        [row.case, row.k, what, f"{ratio:.2f}"]
        for row in measured
        for mode, what in modes.items()
        if (ratio := row.speedup(mode, bench_report.DENSE)) is not None and ratio < 1
    ]
    number = sum(mode in row.modes for row in measured for mode in modes)
    return f"{len(found)} of {number} measurements:\n\n{_table(['layer', 'k', 'what', 'speed'], found, 1)}"


def gpu_results() -> str:
    """What was measured on GPUs, if anything was."""
    files = sorted(RESULTS.glob("gpu*.json"))
    if not files:
        return "**Nothing was measured on a GPU yet**: `bench/results` holds no file of one."
    parts = []
    for file in files:
        rows = [
            [
                *(row[key] for key in ("pass", "dtype", "kernel_size", "channels", "size", "batch")),
                f"{row['ms']:.3f}",
                "wrong" if row["speedup_vs_dense"] is None else f"{row['speedup_vs_dense']:.2f}",
            ]
            for row in json.loads(file.read_text()).get("rows", ())
        ]
        headings = ["pass", "dtype", "k", "channels", "size", "batch", "ms", "times as fast as dense"]
        parts.append(f"### {file.stem.removeprefix('gpu-')}\n\n{_table(headings, rows, 2)}")
    return "\n\n".join(parts)


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def _modules() -> Iterator[tuple[str, Callable[[], nn.Module], tuple[int, ...], str]]:
    """What precision is measured of: a name, a module, its input, and the backend that is asked for."""
    image = (2, 16, 24, 24)
    yield "nn.Conv2d, k = 5 (PyTorch's own)", partial(nn.Conv2d, 16, 16, 5, padding=2), image, "auto"
    for backend in ("dense", "ringwise", "native"):
        if BACKENDS[backend].refusal(_call()) is None:
            yield f"SREConv2d, k = 5, `{backend}`", partial(sre_triton.SREConv2d, 16, 16, 5, padding=2), image, backend
    yield "nn.Conv2d, k = 9 (PyTorch's own)", partial(nn.Conv2d, 16, 16, 9, padding=4), image, "auto"
    yield "SREConv2d, k = 9", partial(sre_triton.SREConv2d, 16, 16, 9, padding=4), image, "auto"
    yield (
        "SREConv2d, k = 9, anti-aliased",
        partial(sre_triton.SREConv2d, 16, 16, 9, padding=4, antialias=True),
        image,
        "auto",
    )
    yield (
        "SREConvTranspose2d, k = 5, stride 2",
        partial(sre_triton.SREConvTranspose2d, 16, 16, 5, 2, padding=2),
        image,
        "auto",
    )
    yield "SREConv3d, k = 3", partial(sre_triton.SREConv3d, 8, 8, 3, padding=1), (1, 8, 10, 10, 10), "auto"
    yield "GMRConv2d, k = 9", partial(sre_triton.GMRConv2d, 16, 16, 9, padding=4), image, "auto"
    yield "CenteredAvgPool2d", partial(sre_triton.CenteredAvgPool2d, 2), (2, 16, 25, 25), "auto"
    yield "AddInvariants2d", partial(sre_triton.AddInvariants2d, 16), image, "auto"
    yield (
        "sre_resnet18",
        partial(sre_triton.sre_resnet18, num_classes=8, inplanes=8, sre_conv_size=[9, 9, 5, 5]),
        (2, 3, 32, 32),
        "auto",
    )
    yield "SREUNet", partial(sre_triton.SREUNet, features=[8, 8, 16, 16]), (1, 3, 48, 48), "auto"


def precision() -> str:
    """Relative error, in root mean square, of the output and of the gradient of the input, against float64."""
    rows = []
    for name, build, shape, backend in _modules():
        torch.manual_seed(0)
        module, x = build().eval(), torch.randn(shape)
        errors = []
        for dtype in _DTYPES.values():
            # Parameters and input are those that the dtype can hold: what is measured is the computation.
            rounded = module.to(torch.float32) if dtype == torch.float32 else _as_dtype(module, dtype)
            with sre_triton.backend(backend):
                found = _output_and_gradient(rounded, x.to(dtype))
            with sre_triton.backend("dense"):
                truth = _output_and_gradient(_as_dtype(rounded, torch.float64), x.to(dtype).double())
            errors += [_relative(a, b) for a, b in zip(found, truth, strict=True)]
        rows.append([name, *errors])
    headings = ["module", *(f"{dtype}, {what}" for dtype in _DTYPES for what in ("output", "gradient"))]
    return _table(headings, rows, len(headings) - 1)


def _as_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of a module in another dtype."""
    return copy.deepcopy(module).to(dtype)


def _output_and_gradient(module: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    y = module(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).reshape(y.shape).to(y.dtype)
    (gradient,) = torch.autograd.grad(y, x, weights)
    return y.detach(), gradient


def _relative(found: Tensor, truth: Tensor) -> str:
    return f"{float((found.double() - truth).norm() / truth.norm()):.1e}"


def evidence() -> str:
    """The page of bench/results/evidence, whole. docs/hooks.py puts its figures where it names them."""
    page = RESULTS / "evidence" / "README.md"
    if not page.exists():
        return "**`bench/results/evidence` holds no result yet.** README reports what was measured before."
    return re.sub(r"\A# .*\n+", "", page.read_text(encoding="utf-8"))


def public_names() -> str:
    """Every public name with the first sentence of its documentation. The build fails where one has no page."""
    lines = []
    for module in (sre_triton, sre_triton.functional, sre_triton.models):
        lines += ["", f"## {module.__name__}", ""]
        for name in sorted(module.__all__, key=str.lower):
            value = getattr(module, name)
            if inspect.ismodule(value) or (module is not sre_triton and name in sre_triton.__all__):
                continue
            lines.append(f"- [`{name}`][{module.__name__}.{name}]: {_first_sentence(value)}")
    return "\n".join(lines)


def _first_sentence(value: object) -> str:
    paragraph = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    from docs.roles import without_roles

    return without_roles(paragraph)


def cli() -> str:
    """The help of every command."""
    overview = _help()
    parts = [f"```text\n{overview}\n```"]
    for name in re.findall(r"^    (\S+)", overview.split("  COMMAND\n")[1], re.MULTILINE):
        everything = textwrap.indent(f"```text\n{_help(name, '--help-all')}\n```", "    ")
        parts += [f"## {name}", f"```text\n{_help(name)}\n```", f'??? note "Every option of {name}"\n\n{everything}']
    return "\n\n".join(parts)


def _help(*words: str) -> str:
    arguments = words if words and words[-1].startswith("--") else (*words, "--help")
    said = io.StringIO()
    with (
        mock.patch.dict(os.environ, {"COLUMNS": "80"}),
        contextlib.redirect_stdout(said),
        contextlib.suppress(SystemExit),
    ):
        command(list(arguments))
    return said.getvalue().strip()


TABLES: dict[str, Callable[[], str]] = {
    "backends": backends,
    "cli": cli,
    "evidence": evidence,
    "gpu-plans": gpu_plans,
    "gpu-results": gpu_results,
    "layers": partial(_layers, "cpu.json"),
    "losses": partial(_losses, "cpu.json"),
    "losses-pure": partial(_losses, "cpu-pure.json"),
    "means": partial(_means, "cpu.json"),
    "means-pure": partial(_means, "cpu-pure.json"),
    "networks": networks,
    "precision": precision,
    "public-names": public_names,
    "savings": savings,
}
"""What makes each table."""


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TABLES:
        print(TABLES[wanted](), "\n")
