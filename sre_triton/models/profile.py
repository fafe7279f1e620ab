"""What a network costs: parameters, multiplications run densely and ring-wise, and time on this machine."""

from __future__ import annotations

import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from sre_triton.invariants.layers import AddInvariantsNd
from sre_triton.layers import RingConvNd
from sre_triton.models.registry import Entry, entry, list_models
from sre_triton.observing import unchanged

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["COUNTED", "Arithmetic", "Profile", "count_work", "profile", "profiles", "show_profiles", "table", "to_json"]


COUNTED = (RingConvNd, nn.modules.conv._ConvNd, nn.Linear, AddInvariantsNd)
"""Layers whose arithmetic :func:`count_work` knows."""


class Arithmetic(NamedTuple):
    """Arithmetic of one call."""

    dense: int  # multiply-accumulates with ring kernels expanded
    ringwise: int  # multiply-accumulates with ring sums
    additions: int  # of these ring sums, before any that rings can share, and of differences


@dataclass(frozen=True)
class Profile:
    """The cost of a network of the registry, built as it was published.

    Attributes:
        name: of the network.
        input_shape: channels and sizes of the image.
        options: arguments of the network beside its defaults.
        parameters: how many it learns.
        gmac_dense, gmac_ringwise: 1e9 multiply-accumulates per image, run densely or ring-wise.
        gadd_ringwise: 1e9 additions of ring sums per image.
        ms_per_image: median time of inference on one image, in milliseconds; None if it was not taken.
    """

    name: str
    input_shape: tuple[int, ...]
    options: dict[str, Any]
    parameters: int
    gmac_dense: float
    gmac_ringwise: float
    gadd_ringwise: float
    ms_per_image: float | None


def count_work(network: nn.Module, x: Tensor) -> Arithmetic:
    """Arithmetic of ``network(x)`` in its convolutions and linear layers.

    Nothing is computed if network and input are on the meta device.

    Args:
        network: is called once, without gradients, and left as it was.
        x: what it is called with.
    """
    counts: list[Arithmetic] = []

    def count(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(_layer_work(layer, inputs[0], output))

    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, COUNTED)]
    try:
        with unchanged(network, x), torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return Arithmetic(*map(sum, zip(*counts, strict=True))) if counts else Arithmetic(0, 0, 0)


def _layer_work(layer: nn.Module, x: Tensor, y: Tensor) -> Arithmetic:
    if isinstance(layer, nn.Linear):
        products = y.numel() * layer.in_features
        return Arithmetic(products, products, 0)
    if isinstance(layer, AddInvariantsNd):
        positions = y.numel() // layer.channels
        products = positions * (layer.project.numel() + layer.weight.numel())
        return Arithmetic(products, products, positions * layer.features * layer.spec.additions)
    assert isinstance(layer, (RingConvNd, nn.modules.conv._ConvNd))
    ndim = len(layer.kernel_size)
    # A convolution multiplies once per tap for each output pixel, a transposed one for each input pixel.
    fine_to_coarse = x if layer.transposed else y
    batch = fine_to_coarse.shape[0] if fine_to_coarse.dim() == ndim + 2 else 1
    positions = batch * math.prod(fine_to_coarse.shape[-ndim:])
    per_tap = positions * layer.in_channels * layer.out_channels // layer.groups
    taps = math.prod(layer.kernel_size)
    if not isinstance(layer, RingConvNd):
        return Arithmetic(per_tap * taps, per_tap * taps, 0)
    additions = positions * layer.in_channels * (sum(layer.geometry.tap_counts) - layer.num_rings)
    return Arithmetic(per_tap * taps, per_tap * layer.num_rings, additions)


def profile(model: Entry, *, timed: bool = True, rounds: int = 5) -> Profile:
    """Builds a network on the meta device to count, and on the CPU if it is to be timed.

    Args:
        timed: whether to run it on an image; large networks take seconds.
        rounds: calls that the median is taken of, after one to warm up.
    """
    shape = (1, *model.input_shape)
    counted = model.build(**model.published, device="meta").eval()
    work = count_work(counted, torch.empty(shape, device="meta"))
    return Profile(
        name=model.name,
        input_shape=model.input_shape,
        options=model.published,
        parameters=sum(p.numel() for p in counted.parameters()),
        gmac_dense=1e-9 * work.dense,
        gmac_ringwise=1e-9 * work.ringwise,
        gadd_ringwise=1e-9 * work.additions,
        ms_per_image=1e3 * _seconds(model.build(**model.published), shape, rounds) if timed else None,
    )


def _seconds(network: nn.Module, shape: tuple[int, ...], rounds: int) -> float:
    call = partial(network.eval(), torch.randn(shape))
    with torch.inference_mode():
        call()
        return statistics.median(_time(call) for _ in range(rounds))


def _time(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def profiles(filter: str = "*", *, timed: bool = True, on_start: Callable[[str], None] | None = None) -> list[Profile]:
    """Profiles of all networks whose name matches a shell pattern.

    Args:
        on_start: is told the name of each network before it is profiled.

    Raises:
        ValueError: no name matches.
    """
    names = list_models(filter)
    if not names:
        raise ValueError(f"no network's name matches {filter!r}; there are {', '.join(list_models())}")
    found = []
    for name in names:
        if on_start is not None:
            on_start(name)
        found.append(profile(entry(name), timed=timed))
    return found


def to_json(rows: Iterable[Profile]) -> str:
    """A list of objects, one per network, with the fields of :class:`Profile`."""
    return json.dumps([asdict(row) for row in rows], indent=1)


def table(rows: Sequence[Profile]) -> Table:
    """A table for the terminal.

    Raises:
        ImportError: rich is not installed.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    result = Table(
        title="Networks as published",
        caption="Per image. GMAC: 1e9 multiply-accumulates, with expanded kernels or with ring sums; Gadd: 1e9 "
        f"additions of these. ms: median time of inference, {torch.get_num_threads()} CPU threads.",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for heading in ("network", "image", "sizes"):
        result.add_column(heading, no_wrap=True)
    for heading in ("parameters", "GMAC\ndense", "GMAC\nrings", "Gadd\nrings", "ms"):
        result.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        sizes = row.options["sre_conv_size"]
        result.add_row(
            row.name,
            "x".join(map(str, row.input_shape)),
            str(sizes) if isinstance(sizes, int) else ",".join(map(str, sizes)),
            f"{row.parameters:,}",
            f"{row.gmac_dense:.2f}",
            f"{row.gmac_ringwise:.2f}",
            f"{row.gadd_ringwise:.2f}" if row.gadd_ringwise else "-",
            "-" if row.ms_per_image is None else f"{row.ms_per_image:.1f}",
        )
    return result


def show_profiles(filter: str = "*", *, timed: bool = True, as_json: bool = False) -> None:
    """Prints :func:`profiles` to standard output, with a progress bar if they become a table.

    Raises:
        ValueError: no name matches ``filter``.
        ImportError: rich is not installed, and a table was asked for.
    """
    if as_json:
        print(to_json(profiles(filter, timed=timed)))
        return
    from rich.console import Console
    from rich.progress import Progress

    console = Console(width=None if sys.stdout.isatty() else 80)
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("networks", total=len(list_models(filter)))
        rows = profiles(filter, timed=timed, on_start=lambda name: progress.update(task, advance=1, description=name))
    console.print(table(rows))
