"""The shipped kernels, on a GPU where there is one and in Triton's interpreter elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are first imported


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "exhaustive: the full cross product of layers, with -m exhaustive only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "exhaustive" not in config.getoption("-m"):
        for item in items:
            if "exhaustive" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs -m exhaustive"))


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def nan_filled_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fresh memory holds NaN, so that an element which no kernel wrote cannot pass."""

    def poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def wrapped(*args: Any, **kwargs: Any) -> torch.Tensor:
            tensor = allocate(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

        return wrapped

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))
    monkeypatch.setattr(torch, "empty_strided", poisoned(torch.empty_strided))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def no_plans() -> None:
    """Every test works out its launches anew: many put other rules or devices in the place of the real ones."""
    from sre_triton.backends.triton import launch

    launch.forget()


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The launches that are started from here on, in order."""
    from sre_triton.backends.triton.prepared import Launch

    found: list[Any] = []
    original = Launch.__call__

    def watch(self: Any, *tensors: Any) -> Any:
        found.append(self)
        return original(self, *tensors)

    monkeypatch.setattr(Launch, "__call__", watch)
    return found
