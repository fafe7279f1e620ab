"""Writes ``antialias_shares.json``: covered shares by SciPy's adaptive quadrature, not by ``sre_triton``.

python tests/geometry/golden/make_antialias_shares.py
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.reference import share_in_ball  # noqa: E402

# (dimensions, kernel size, rings)
GEOMETRIES = [
    *((1, k, k // 2 + 1) for k in (3, 5, 7, 9, 11)),
    *((2, k, k // 2 + 1) for k in (3, 5, 7, 9, 11)),
    *((2, 9, rings) for rings in (1, 3, 7)),
    *((3, k, k // 2 + 1) for k in (3, 5, 7)),
    (3, 5, 2),
]


def shares(ndim: int, kernel_size: int, num_rings: int) -> dict[str, list[float]]:
    """Share per ring, for one tap of each set of taps that symmetries exchange, keyed by its offset."""
    radius = kernel_size // 2
    edges = np.linspace(0, radius + 0.5, num_rings + 1)
    orbits = itertools.combinations_with_replacement(range(radius + 1), ndim)
    table = {}
    for orbit in orbits:
        balls = [share_in_ball(orbit, edge) if edge else 0.0 for edge in edges]
        table[" ".join(map(str, orbit))] = [round(float(s), 10) for s in np.diff(balls)]
    return table


def main() -> None:
    tables = [
        {"ndim": ndim, "kernel_size": k, "num_rings": rings, "shares": shares(ndim, k, rings)}
        for ndim, k, rings in GEOMETRIES
    ]
    note = (
        "Share of each tap's pixel that each ring covers, correct to 1e-9; one tap of each orbit, by offset. "
        "Made by: python tests/geometry/golden/make_antialias_shares.py"
    )
    lines = ",\n".join(json.dumps(table) for table in tables)
    (HERE / "antialias_shares.json").write_text(f'{{"note": {json.dumps(note)},\n"tables": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
