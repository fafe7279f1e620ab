"""The tables of evidence, by name."""

from __future__ import annotations

from bench.evidence import medmnist, nuclei, rotated_mnist, vessels
from bench.evidence.protocol import Table

__all__ = ["TABLES"]

_TABLES = (
    vessels.TABLE,
    vessels.ABLATION,
    vessels.WHOLE_ABLATION,
    rotated_mnist.TABLE,
    rotated_mnist.ABLATION,
    rotated_mnist.ARCHITECTURES,
    nuclei.TABLE,
    medmnist.BREAST,
    medmnist.PNEUMONIA,
    medmnist.ADRENAL,
)
TABLES: dict[str, Table] = {table.name: table for table in _TABLES}
