"""Rotated MNIST: digits at any angle, 12,000 of them to train and validate on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.evidence.protocol import Evaluation, Network, Table
from sre_triton.training.data import warp
from sre_triton.training.files import replacing
from sre_triton.training.options import TrainOptions

__all__ = ["TABLE"]

PROTOCOL = """
"""

_FILE = "rotated_mnist.npz"


def _prepare(data: Path, work: Path) -> None:
    """The digits, turned once and for all, in MedMNIST's format."""
    path = work / _FILE
    if path.is_file():
        return
    generator = np.random.default_rng(0)
    with np.load(data / "mnist.npz") as mnist:
        known = {name: mnist[name] for name in mnist.files}
    images, labels = (known[f"train_{kind}"] for kind in ("images", "labels"))
    chosen = generator.choice(len(images), 12_000, replace=False)
    parts = {
        "train": (images[chosen[:10_000]], labels[chosen[:10_000]]),
        "val": (images[chosen[10_000:]], labels[chosen[10_000:]]),
        "test": (known["test_images"], known["test_labels"]),
    }
    arrays = {}
    for name, (digits, answers) in parts.items():
        arrays[f"{name}_images"] = _turned(digits, generator.uniform(0, 360, len(digits)))
        arrays[f"{name}_labels"] = answers.reshape(-1, 1)
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _turned(digits: npt.NDArray[np.uint8], degrees: npt.NDArray[np.float64]) -> npt.NDArray[np.uint8]:
    """Digits (N, 28, 28), each turned by its own angle, bilinear."""
    matrices = warp.rotation_matrix(torch.from_numpy(degrees), "x", 2)
    turned = warp.affine(torch.from_numpy(digits)[:, None].float(), matrices, "bilinear")
    return turned[:, 0].round().clamp(0, 255).to(torch.uint8).numpy()


def _arguments(**more: object) -> str:
    return json.dumps({"skip_first_maxpool": False, **more})


_RATES = (3e-3, 1e-2)
_RING = {"model_type": "sre_resnet18", "res_inplanes": 5, "sre_conv_size": 5}
_PLAIN = {"model_type": "resnet18", "res_inplanes": 3, "model_args": _arguments()}
_INVARIANTS = {"features": 3, "levels": 3}

TABLE = Table(
    name="rotated-mnist",
    title="Rotated MNIST",
    protocol=PROTOCOL,
    options=TrainOptions(
        data_root=Path(),
        med_mnist="rotated_mnist",
        batch_size=64,
        epochs=16,
        adam=True,
        one_cycle=True,
        balance_rings=True,
        weight_decay=0.0,
        interpolation="bilinear",
        threads=1,
        quiet=True,
    ),
    networks=(
        Network("ring", {**_RING, "model_args": _arguments()}, _RATES),
        Network("ring-invariants", {**_RING, "model_args": _arguments(invariants=_INVARIANTS)}, _RATES),
        Network("plain", _PLAIN, _RATES),
        Network("plain-augmented", {**_PLAIN, "train_rotate": True, "train_degree": 180.0}, _RATES),
    ),
    seeds=(1, 2, 3),
    rate_options={"epochs": 2},
    evaluations=(Evaluation("test", "10,000 test digits, each turned once"),),
    score="accuracy",
    comparisons=(("ring-invariants", "ring"), ("ring-invariants", "plain"), ("ring-invariants", "plain-augmented")),
    prepare=_prepare,
)
