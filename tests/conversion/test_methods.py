"""Which functions of a module are its own, to be read for what they do with its children."""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from sre_triton.conversion.methods import methods


class Own(nn.Conv2d):
    def scaled(self) -> float:
        return 2.0


def test_functions_of_libraries_are_not_read() -> None:
    module = Own(1, 1, 1)
    module.activation = F.relu  # a plain function, kept as an attribute
    module.helper = lambda x: x
    assert set(methods(module)) == {"scaled", "helper"}
    assert methods(nn.Conv2d(1, 1, 1)) == {}
