"""The tables of evidence, by name."""

from __future__ import annotations

from bench.evidence import vessels
from bench.evidence.protocol import Table

__all__ = ["TABLES"]

TABLES: dict[str, Table] = {table.name: table for table in (vessels.TABLE,)}
