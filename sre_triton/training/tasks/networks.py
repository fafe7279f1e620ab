"""The network that the options of a training name."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from sre_triton.balance import balance_weights
from sre_triton.training.options import RunOptions, SegmentOptions, TrainOptions
from sre_triton.training.tasks.histogram import HISTOGRAM, HistogramClassifier

__all__ = ["MONAI_NETWORKS", "PLAIN_TWINS", "classifier", "network_arguments", "segmenter"]

PLAIN_TWINS = {
    **{f"{ring}_resnet{depth}": f"resnet{depth}" for ring in ("sre", "gmr") for depth in (18, 34, 50, 101)},
    **{f"{ring}_r3d_{depth}": f"r3d_{depth}" for ring in ("sre", "gmr") for depth in (18, 34)},
    "sre_unet": "plain_unet",
    "gmr_unet": "plain_unet",
}
"""For each ring network, the ordinary network of the same stem, channels, strides and resolutions."""

MONAI_NETWORKS = (
    "AttentionUnet",
    "BasicUNet",
    "DynUNet",
    "FlexibleUNet",
    "HighResNet",
    "MedNeXt",
    "SegResNet",
    "SwinUNETR",
    "UNETR",
    "UNet",
    "VNet",
)
"""MONAI's networks that answer an image with a map of logits. A checkpoint, which may be somebody else's, can name
these and no other class."""

_BASIC_UNET_FEATURES = (32, 32, 64, 128, 256, 32)


def classifier(options: TrainOptions, classes: int, channels: int, ndim: int) -> nn.Module:
    """Builds a classification network.

    The stem is 5x5 at stride 1 without pooling, for ring networks and their plain twins alike.

    Raises:
        ValueError: the network does not exist or is for another number of dimensions, or an option does not fit it.
    """
    from sre_triton import models

    name = options.model_type
    if name == HISTOGRAM:
        if network_arguments(options):
            raise ValueError(f"--model-args {options.model_args!r}: {HISTOGRAM} takes none")
        return HistogramClassifier(classes, channels)
    if "unet" in name or name.startswith("monai:"):
        raise ValueError(f"--model-type {name} is for `sre-triton segment`: take a classifier, as sre_resnet18")
    sizes = options.sre_conv_size_list or [options.sre_conv_size]
    if any(size < 1 or size % 2 == 0 for size in sizes):
        flag = "--sre-conv-size-list" if options.sre_conv_size_list else "--sre-conv-size"
        raise ValueError(f"{flag} must be odd and positive, got {' '.join(map(str, sizes))}")
    network = models.entry(name)
    if network.ndim != ndim:
        raise ValueError(f"--model-type {name} is for {network.ndim}-D images, the set's are {ndim}-D")
    arguments: dict[str, Any] = {
        "num_classes": classes,
        "in_channels": channels,
        "inplanes": options.res_inplanes,
        "norm_layer": _norm(options, ndim),
        "dropout_p": max(0.0, options.dropout_p),
        "global_pool": "max" if options.maxpool else "avg",
        "skip_first_maxpool": True,
    }
    if name in PLAIN_TWINS:
        arguments["invariants"] = options.invariants
        arguments["sre_conv_size"] = options.sre_conv_size_list or options.sre_conv_size
        rings = options.sre_conv_k
        arguments["num_rings"] = rings[0] if rings is not None and len(rings) == 1 else rings
    if options.large_conv:
        arguments["stem_size"] = 7
    arguments |= network_arguments(options)
    try:
        return _balanced(network.build(**arguments), options)
    except TypeError as error:
        raise ValueError(f"--model-type {name} with {arguments}: {error}") from error


def network_arguments(options: RunOptions) -> dict[str, Any]:
    """What ``--model-args`` says.

    Raises:
        ValueError: it is no JSON object.
    """
    try:
        given = json.loads(options.model_args or "{}")
    except ValueError as error:
        raise ValueError(f"--model-args must be a JSON object, got {options.model_args!r}: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--model-args must be a JSON object, got {options.model_args!r}")
    return given


def segmenter(options: SegmentOptions, classes: int = 2) -> nn.Module:
    """Builds a segmentation network from 3 channels to the logits of classes.

    Raises:
        ValueError: the network does not exist, or its arguments do not fit it.
    """
    given, name = network_arguments(options), options.model_type
    build: Callable[..., nn.Module]
    if name == "unet" or name.startswith("monai:"):
        import monai.networks.nets as nets

        wanted = "BasicUNet" if name == "unet" else name.removeprefix("monai:")
        if wanted not in MONAI_NETWORKS:
            raise ValueError(f"--model-type {name}: expected monai: and one of {', '.join(MONAI_NETWORKS)}")
        build = getattr(nets, wanted, None)  # type: ignore[assignment]
        if build is None:
            raise ValueError(f"--model-type {name}: this version of MONAI has no {wanted}")
        arguments: dict[str, Any] = {"spatial_dims": 2, "in_channels": 3, "out_channels": classes} | given
        if name == "unet":
            arguments = {"features": _BASIC_UNET_FEATURES, "norm": _monai_norm(options)} | arguments
    else:
        from sre_triton import models

        known = models.list_models("*_unet")
        if name not in known:
            raise ValueError(f"--model-type must be {', '.join(known)}, unet or monai:NAME, got {name!r}")
        build = models.entry(name).build
        arguments = {"in_channels": 3, "out_channels": classes, "norm_layer": _norm(options, 2)}
        if name in PLAIN_TWINS:
            arguments["invariants"] = options.invariants
        arguments |= given
    try:
        return _balanced(build(**arguments), options)
    except ImportError as error:  # MONAI's own has a page of text below its first line
        told = str(error).partition("\n")[0]
        raise ValueError(f"--model-type {name} needs a package that MONAI does not bring: {told}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"--model-type {name} with {arguments}: {error}") from error


def _balanced(network: nn.Module, options: RunOptions) -> nn.Module:
    if options.balance_rings:
        balance_weights(network)
    return network


def _norm(options: RunOptions, ndim: int) -> Callable[[int], nn.Module] | None:
    if options.norm_layer == "group":
        return partial(nn.GroupNorm, 8)
    if options.norm_layer == "instance":
        return partial(nn.InstanceNorm2d if ndim == 2 else nn.InstanceNorm3d, affine=True)
    return None


def _monai_norm(options: RunOptions) -> tuple[str, dict[str, Any]]:
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "batch": ("batch", {}),
        "group": ("group", {"num_groups": 8}),
        "instance": ("instance", {"affine": True}),
    }
    return kinds[options.norm_layer]
