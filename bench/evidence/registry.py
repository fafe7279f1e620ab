"""The tables of evidence, by name."""

from __future__ import annotations

from bench.evidence import rotated_mnist, vessels
from bench.evidence.protocol import Table

__all__ = ["TABLES"]

TABLES: dict[str, Table] = {table.name: table for table in (vessels.TABLE, vessels.ABLATION, rotated_mnist.TABLE)}
