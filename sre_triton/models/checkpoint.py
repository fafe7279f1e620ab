"""Checkpoints of the reference packages' networks and of their training script."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from os import PathLike
from typing import Any, TypedDict

import torch
from torch import Tensor

from sre_triton.layers import INDEX_BUFFERS

__all__ = ["ReferenceCheckpoint", "load_reference_checkpoint", "translate_reference_keys"]

_DDP_PREFIX = "module."
# A convolution and its normalisation in a Sequential, with or without a pooling in front of them.
_PAIR = re.compile(r"(?P<block>layer\d+\.\d+\.)conv(?P<number>\d)\.(?P<place>\d)\.(?P<rest>.+)")


class ReferenceCheckpoint(TypedDict):
    """A file of the reference's training script.

    Attributes:
        state_dict: tensors by name, for ``load_state_dict``.
        optimizer: state dict of the optimiser, or None.
        cur_ep: how many epochs were finished, or None.
    """

    state_dict: dict[str, Tensor]
    optimizer: dict[str, Any] | None
    cur_ep: int | None


def load_reference_checkpoint(path: str | PathLike[str]) -> ReferenceCheckpoint:
    """Reads a file that the reference's training script wrote; nothing in it is executed.

    Args:
        path: of a file with ``state_dict``, ``optimizer`` and ``cur_ep``, or of a state dict alone.

    Returns:
        ``state_dict`` with names as a single process knows them, ready for ``load_state_dict``; ``optimizer``
        and ``cur_ep`` (epochs that were finished), None where the file has none. All on the CPU.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not such a file.
        pickle.UnpicklingError: it holds more than tensors and plain containers.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError):
        raise
    except Exception as error:  # PyTorch raises many kinds on bytes that are no checkpoint
        raise ValueError(f"{path} is not a whole checkpoint: {error}") from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} must hold a dictionary, but holds a {type(content).__name__}")
    if "sre_triton" in content:
        raise ValueError(f"{path} was written by `sre-triton`, not by the reference's script: sre_triton.load reads it")
    state = content.get("state_dict", content)
    wrong = [key for key, value in state.items() if not isinstance(value, Tensor)] if isinstance(state, Mapping) else []
    if not isinstance(state, Mapping) or not state or wrong:
        raise ValueError(
            f"{path} must hold 'state_dict' (tensors by name), 'optimizer' and 'cur_ep', or tensors by name, "
            f"but its keys are {', '.join(map(repr, list(content)[:8])) or 'none'}"
        )
    if all(key.startswith(_DDP_PREFIX) for key in state):
        state = {key[len(_DDP_PREFIX) :]: value for key, value in state.items()}
    whole = state if state is content else content
    return {
        "state_dict": dict(state),
        "optimizer": None if whole is state else whole.get("optimizer"),
        "cur_ep": None if whole is state else whole.get("cur_ep"),
    }


def translate_reference_keys(state_dict: dict[str, Any], prefix: str) -> None:
    """Renames the reference's 3-D networks' keys below ``prefix`` to ours, in place; ours stay as they are.

    There the stem is one Sequential, and so is each convolution of a block with its normalisation.
    The stem is declared 3x7x7, but has the taps of a ball of 3x3x3: if its buffer says so, it is cut to them.
    """
    if prefix + "stem.0.weight" not in state_dict:
        return
    names = {key: key[len(prefix) :] for key in state_dict if key.startswith(prefix)}
    matches = {key: match for key, name in names.items() if (match := _PAIR.fullmatch(name))}
    first: dict[tuple[str, str], int] = {}
    for match in matches.values():
        sequential = match["block"], match["number"]
        first[sequential] = min(first.get(sequential, 9), int(match["place"]))
    for key, name in names.items():
        value = state_dict.pop(key)
        if key in matches:
            match = matches[key]
            is_conv = int(match["place"]) == first[match["block"], match["number"]]
            number = match["number"]
            # A strided convolution is our second in a Sequential, after the pooling.
            strided = is_conv and number == "1" and f"{prefix}{match['block']}downsample.1.weight" in names
            part = f"conv{number}{'.1' if strided else ''}" if is_conv else f"bn{number}"
            name = f"{match['block']}{part}.{match['rest']}"
        elif name.startswith("stem.0."):
            name = "conv1." + name.removeprefix("stem.0.")
            if name.removeprefix("conv1.") in INDEX_BUFFERS:
                value = _cut_to_ball(value)
        elif name.startswith("stem.1."):
            name = "bn1." + name.removeprefix("stem.1.")
        state_dict[prefix + name] = value


def _cut_to_ball(buffer: Tensor) -> Tensor:
    """The 3x3x3 taps of a map of 3x7x7, if the others are zero; otherwise the map as it is."""
    if tuple(buffer.shape) != (1, 1, 2, 3 * 7 * 7):
        return buffer
    taps = buffer.reshape(2, 3, 7, 7)
    ball = taps[:, :, 2:5, 2:5]
    if not buffer.is_meta and ball.count_nonzero() != taps.count_nonzero():
        return buffer
    return ball.reshape(1, 1, 2, 27)
