"""Random calls of the operators that are right, and what is wrong with one argument of them.

``python -m tests.fuzz.operator_calls OPERATOR FIRST COUNT`` makes that many wrong calls in a process of its own and
says of each what it was before it is made, so that a crash has a name.
"""

from __future__ import annotations

import faulthandler
import random
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.operators.test_checks import CALLS
from tests.oracle import BACKENDS, Case

__all__ = ["OPERATORS", "check"]

OPERATORS = tuple(CALLS)
WHERE = ("plain", "plain", "grad", "fake")

# What an error may call an argument.
NAMES = {
    "input": "input",
    "weight": "weight|rings",
    "dense": "dense|kernel_size",
    "kernel_size": "kernel.size",
    "output_padding": "output.padding",
}
SECONDS = 60  # within which a refusal comes, on however busy a machine
BYTES = 6 * 2**30  # of addresses: what asks for more is a fault, not the end of the machine


@dataclass
class Mistake:
    """One argument, how it is spoiled, and what the error must say."""

    argument: str
    label: str
    value: Any
    names: str


def right_call(operator: str, rng: random.Random) -> dict[str, Any]:
    """Arguments of a call that nothing is wrong with."""
    ndim, groups, k = rng.randint(1, 3), rng.randint(1, 2), rng.choice([1, 3, 3, 5])
    circular, antialias = rng.choice([(True, False), (True, True), (False, False)])

    def numbers(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randint(low, high) for _ in range(ndim))

    stride, dilation, padding = numbers(1, 3), numbers(1, 2), numbers(0, k // 2)
    transposed = operator == "transpose"
    case = Case(
        ndim=ndim, batch=rng.randint(1, 2), in_channels=groups * rng.randint(1, 3),
        out_channels=groups * rng.randint(1, 3), size=tuple(d * (k - 1) + rng.randint(1, 3) for d in dilation),
        kernel_size=k, stride=stride, padding=padding, dilation=dilation, groups=groups, circular=circular,
        antialias=antialias, transposed=transposed,
        output_padding=tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True)),
    )  # fmt: skip
    x, weight, bias = case.tensors(torch.float32)
    y = torch.randn_like(case.dense(x, weight)) if not transposed else None
    tensors = {"input": x, "weight": weight, "bias": bias, "residual": y, "grad_output": y}
    values = dict(zip(tuple(CALLS["conv"][1])[3:], (*map(_listed, case.operator_args), "auto"), strict=True))
    own = {
        "num_rings": case.rings, "activation": rng.choice(["", "relu", "leaky_relu"]), "negative_slope": 0.1,
        "output_padding": _listed(case.output_padding),
    }  # fmt: skip
    known = {**tensors, **values, **own, "backend": rng.choice(["auto", *BACKENDS])}
    if operator in ("expand", "collapse"):
        known |= {
            "kernel_size": [k] * ndim, "dtype": rng.choice([None, torch.float64]),
            "dense": torch.randn(*weight.shape[:2], *[k] * ndim),
        }  # fmt: skip
    arguments = {name: known[name] for name in CALLS[operator][1]}
    for name in ("bias", "residual"):
        if name in arguments and rng.random() < 0.3:
            arguments[name] = None
    return arguments


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


# Mistakes -----------------------------------------------------------------------------------------------


def mistakes(operator: str, arguments: dict[str, Any], rng: random.Random) -> Iterator[Mistake]:
    """Everything that is wrong with a call once one argument is another."""
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            yield from _of_a_tensor(operator, name, value, arguments)
        elif isinstance(value, list):
            yield from _of_numbers(name, value, arguments, rng)
    for name, label, value in _of_values(arguments, rng):
        yield Mistake(name, label, value, NAMES.get(name, name))


def _of_a_tensor(operator: str, name: str, t: Tensor, arguments: dict[str, Any]) -> Iterator[Mistake]:
    def mistake(label: str, value: Any, more: str = "") -> Mistake:
        return Mistake(name, label, value, "|".join(filter(None, (NAMES.get(name, name), more))))

    if name != "dense" or t.dim() == 3:  # else it is a kernel of fewer dimensions
        yield mistake("one dimension less", t[0])
    for rank in (0, 7):
        yield mistake(f"{rank} dimensions", t.new_zeros([1] * rank))
    for label, value in (("None", None), ("a string", "tensor"), ("an array", np.zeros(3)), ("a list", [t, t])):
        if value is not None or name not in ("bias", "residual"):
            yield mistake(label, value)
    # Kernels of eight bits are expanded and collapsed as others are; nothing convolves them.
    for dtype in (torch.int64, torch.bool, torch.complex64, *([torch.float8_e4m3fn] if "groups" in arguments else [])):
        yield mistake(f"of {dtype}", t.to(dtype))
    yield mistake("sparse", t.to_sparse())
    if operator in ("expand", "collapse"):
        if name == "weight":
            too_many = t.new_zeros(*t.shape[:2], 500)
            yield mistake("rings that do not exist", too_many)
            yield mistake("no rings", t[..., :0])
        elif t.dim() > 3:
            yield mistake("a kernel that is no cube", torch.cat([t, t], -1))
        return
    yield mistake("of another precision", t.double())
    yield mistake("elsewhere", t.to("meta"), "device")
    if name == "bias":
        yield mistake("one entry less", t[:-1])
        yield mistake("one entry more", torch.cat([t, t[:1]]))
        return
    groups = arguments["groups"]
    if name == "weight":
        yield mistake("no rings", t[..., :0])
        yield mistake("rings that do not exist", t.new_zeros(*t.shape[:2], 500))
        if operator != "transpose" or arguments["bias"] is not None:
            yield mistake("fewer channels within a group", t[:, :-1], "bias|input")
            yield mistake("more channels within a group", torch.cat([t, t], 1), "bias|input")
        if t.shape[0] > groups or operator in ("transpose", "backward"):
            more = "bias|groups|residual|grad_output|input"
            held = any(arguments.get(n) is not None for n in ("bias", "residual", "grad_output"))
            if held or operator == "transpose":
                yield mistake("fewer channels", t[:-groups], more)
        if groups > 1:
            yield mistake("channels that the groups do not divide", torch.cat([t, t[:1]]), "groups|bias")
        return
    if name in ("residual", "grad_output"):
        yield mistake("a longer batch", torch.cat([t, t]))
        yield mistake("longer", torch.cat([t, t], -1))
        yield mistake("shorter", t[..., :-1])
    if name != "residual" and (operator != "weight_grad" or groups > 1):
        yield mistake("one channel more", torch.cat([t, t[:, :1]], 1), "weight|groups")
    if name == "residual":
        yield mistake("one channel more", torch.cat([t, t[:, :1]], 1))
    reach = arguments["dilation"][-1] * (arguments["kernel_size"] - 1)
    if name == "input" and operator != "transpose" and 2 * arguments["padding"][-1] <= reach:
        yield mistake("empty", t[..., :0], "size")


def _of_numbers(name: str, value: list[int], arguments: dict[str, Any], rng: random.Random) -> Iterator[Mistake]:
    own = NAMES.get(name, name)
    lengths = "stride|padding|dilation|input" if name == "stride" else own
    kernel = name == "kernel_size"
    for label, other in (("none", []), ("too many", [*value, *value, *value, *value])):
        yield Mistake(name, label, other, lengths)
    if len(value) > 1 and not kernel:
        yield Mistake(name, "too few", value[:-1], lengths)
    for label, other in (("None", None), ("a string", "2"), ("floats", [1.5] * len(value)), ("strings", ["1"])):
        yield Mistake(name, label, other, own)
    spoiled = {
        "stride": (0, -1, -(2**31), -(2**62), 2**31, 2**40, 2**62),
        "padding": (-1, -(2**31), -(2**62), 2**31, 2**40, 2**62),
        "dilation": (0, -1, -(2**62), 2**31, 2**40, 2**62),
        "output_padding": (-1, -(2**62), 3, 2**31, 2**40, 2**62),
        "kernel_size": (0, -1, -3, 2, 4, 2**31 + 1, 2**62 + 1),
    }[name]
    place = rng.randrange(len(value))
    for entry in spoiled:
        yield Mistake(name, f"an entry {entry}", [entry if i == place else v for i, v in enumerate(value)], own)
    if kernel:
        for entry in (10_000_001, 2**31 + 1, 2**62 + 1):
            yield Mistake(name, f"every entry {entry}", [entry] * len(value), own)
    yield Mistake(name, "an entry 2**70", [2**70] * len(value), f"{own}|[Oo]verflow")


def _of_values(arguments: dict[str, Any], rng: random.Random) -> Iterator[tuple[str, str, Any]]:
    table: dict[str, tuple[Any, ...]] = {
        "groups": (0, -1, -(2**62), 977, 2**31, 2**62, None, "2", 1.5),
        "num_rings": (0, -1, -(2**62), 500, 2**31, 2**62, None, "2", 1.5),
        "backend": ("fast", "", "NATIVE", "native ", "triton", "a" * 10_000, None, 3),
        "activation": ("gelu", "RELU", "relu ", "none", None, 1),
        "negative_slope": (None, "0.1", [0.1]),
        "circular": ("yes", [True]),  # the dispatcher reads None as False
        "antialias": ("yes", [False]),
        "dtype": (torch.int64, torch.bool, torch.complex64, "float32", 1.5),
    }
    if isinstance(arguments.get("kernel_size"), int):
        table["kernel_size"] = (0, -1, -3, 2, 4, 10_000_001, 2**31 + 1, 2**62 + 1, -(2**62), None, "3", 1.5)
    for name, values in table.items():
        if name in arguments:
            for value in values:
                yield name, f"{value!r:.40}", value
    if "circular" in arguments and arguments["antialias"]:
        yield "circular", "not, and anti-aliased", False


# Calls --------------------------------------------------------------------------------------------------


def check(operator: str, seed: int, say: Callable[[str], None] = lambda text: None) -> None:
    """Makes one right call and one wrong one, which must be refused by name and change nothing."""
    rng = random.Random(f"{operator} {seed}")
    torch.manual_seed(seed)
    overload = CALLS[operator][0]
    arguments = right_call(operator, rng)
    label = f"{operator} {seed}"
    say(f"{label}: right, {_shown(arguments)}")
    expected = overload(*arguments.values())
    by_argument: dict[str, list[Mistake]] = {}
    for mistake in mistakes(operator, arguments, rng):
        by_argument.setdefault(mistake.argument, []).append(mistake)
    mistake = rng.choice(by_argument[rng.choice(list(by_argument))])
    # Where nothing is computed no backend is missing.
    where = "plain" if mistake.argument == "backend" else rng.choice(WHERE)
    wrong = {**arguments, mistake.argument: mistake.value}
    say(f"{label}: {where}, {mistake.argument} is {mistake.label}, {_shown(wrong)}")
    try:
        _call(overload, wrong, where)
    except (RuntimeError, ValueError, TypeError) as error:
        if not re.search(mistake.names, str(error), re.IGNORECASE):
            raise AssertionError(f"{mistake.argument} is {mistake.label}: not named in {str(error)!r:.400}") from error
    else:
        raise AssertionError(f"{mistake.argument} is {mistake.label}, and the call returns")
    for a, b in zip(_several(expected), _several(overload(*arguments.values())), strict=True):
        assert torch.equal(a, b), "another result after the refusal"


def _several(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _call(overload: Any, arguments: dict[str, Any], where: str) -> Any:
    if where == "grad":
        arguments = {
            name: a.detach().requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
            for name, a in arguments.items()
        }
    if where == "fake" and not any(isinstance(a, Tensor) and (a.is_sparse or a.is_meta) for a in arguments.values()):
        mode = FakeTensorMode()
        arguments = {name: mode.from_tensor(a) if isinstance(a, Tensor) else a for name, a in arguments.items()}
    return overload(*arguments.values())


def _shown(arguments: dict[str, Any]) -> str:
    shown = (
        f"{name}={list(a.shape)} {a.dtype} {a.device}" if isinstance(a, Tensor) else f"{name}={a!r:.80}"
        for name, a in arguments.items()
    )
    return ", ".join(shown)


def main(operator: str, first: int, count: int) -> int:
    """Makes the calls; returns how many were not refused as they should be. Each is printed before it is made."""
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    torch.set_num_threads(1)

    def late(*_: Any) -> None:
        raise AssertionError(f"not refused within {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    faults = 0
    for seed in range(first, first + count):
        last: list[str] = []

        def say(text: str, last: list[str] = last) -> None:
            last[:] = [text]
            print(text, flush=True)

        signal.alarm(SECONDS)
        try:
            check(operator, seed, say)
        except BaseException as error:
            faults += 1
            print(f"FAULT {last[0]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            signal.alarm(0)
    return faults


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])), 100))
