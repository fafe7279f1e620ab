"""The networks of the reference packages, without the packages that they import and do not use here."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

from torch import nn

# What the 3-D networks' file imports from torchvision, for pretrained weights that are never asked for.
_TORCHVISION = {
    "transforms._presets": ("VideoClassification",),
    "utils": ("_log_api_usage_once",),
    "models._api": ("Weights", "WeightsEnum"),
    "models._meta": ("_KINETICS400_CATEGORIES",),
    "models._utils": ("_ovewrite_named_param", "handle_legacy_interface", "_ModelURLs"),
}


def reference_network(name: str, **options: Any) -> nn.Module:
    """``sre_resnet18`` and so on of SRE_Conv 1.0.2 and GMR_Conv 1.0.3."""
    kind, architecture = name.split("_", 1)
    file = f"{kind}_resnet_3d" if architecture.startswith("r3d") else f"{kind}_resnet"
    network: nn.Module = getattr(_file({"sre": "SRE_Conv", "gmr": "GMR_Conv"}[kind], file), name)(**options)
    return network


@lru_cache
def _file(package: str, file: str) -> ModuleType:
    alias = f"reference_networks_{package}"
    if alias not in sys.modules:
        found = importlib.util.find_spec(package)
        assert found is not None, f"{package} is not installed"
        parent = ModuleType(alias)  # relative imports find their files; the package's own __init__ is not run
        parent.__path__ = list(found.submodule_search_locations or [])
        sys.modules[alias] = parent
    stubs = _stubs()
    hidden = {name: sys.modules.pop(name) for name in stubs if name in sys.modules}
    sys.modules.update(stubs)
    try:
        return importlib.import_module(f"{alias}.{file}")
    finally:
        for name in stubs:
            del sys.modules[name]
        sys.modules.update(hidden)


def _stubs() -> dict[str, ModuleType]:
    stubs: dict[str, ModuleType] = {}
    for path, names in _TORCHVISION.items():
        parts = ["torchvision", *path.split(".")]
        for depth in range(1, len(parts) + 1):
            stubs.setdefault(".".join(parts[:depth]), ModuleType(parts[depth - 1]))
        for name in names:
            setattr(stubs[".".join(parts)], name, _Anything)
    return stubs


class _Anything:
    """A base class, a call, a decorator or a value, whichever it is used as."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __call__(self, function: Any) -> Any:
        return function

    def __getattr__(self, name: str) -> Any:
        return None

    @classmethod
    def __class_getitem__(cls, item: Any) -> Any:
        return cls

    def __len__(self) -> int:
        return 0
