"""These tests convert other projects' networks, in an environment of their own: ``make test-swap``."""

from __future__ import annotations

import importlib.util

import torch

# torchvision's operators are built for a PyTorch with CUDA, and declaring fakes for them fails on one without.
# Nothing here calls them, so they only have to exist.
_LIBRARY = torch.library.Library("torchvision", "DEF")
if importlib.util.find_spec("torchvision") is not None:
    _LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
