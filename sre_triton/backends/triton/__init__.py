"""The Triton path: kernels, their launchers and the choice of tiles. Importing this package imports Triton."""

from sre_triton.backends.triton.launch import (
    backward,
    collapse,
    expand,
    forward,
    fused_forward,
    refusal,
    transpose,
    weight_grad,
)

__all__ = [
    "backward",
    "collapse",
    "expand",
    "forward",
    "fused_forward",
    "refusal",
    "transpose",
    "weight_grad",
]
