"""Addition schedules: which partial sums lead to the ring sums of a geometry, as plain data.

Adding tap by tap would read the input once per tap. A schedule does far less, because rings are
mirror-symmetric and overlap:

1. Fold every dimension but the last, ``x[-h] + x[+h]``. All rings share the folded rows.
2. For each ring and column of the last dimension, add the folded rows that the ring has there. Columns
   share partial sums.
3. For each ring, add its columns, shifted left and right.

The five rings of a 9x9 kernel take 28 additions in place of 64. Where taps belong to several rings by
fractions, taps of equal fractions are summed first and weighed once. Nothing here knows PyTorch.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from sre_triton.geometry.rings import RingGeometry

__all__ = ["Offset", "Operand", "Schedule", "Step", "ring_schedule"]

Offset = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Sum:
    """A partial sum. One of level ``l`` has been summed over the first ``l`` dimensions and is indexed
    by output positions there, by positions of the padded input in the others. The padded input itself
    is the sum of level 0 without terms."""

    level: int
    terms: tuple[_Term, ...] = ()


@dataclass(frozen=True)
class _Term:
    """``factor`` times a partial sum, read ``offset`` taps from the centre."""

    sum: _Sum
    offset: Offset
    factor: float = 1.0


@dataclass(frozen=True)
class Operand:
    """A buffer, read ``offset`` taps from the centre."""

    buffer: int
    offset: Offset


@dataclass(frozen=True)
class Step:
    """``out = left + factor * right``, or ``out = factor * right`` where there is no ``left``.

    The last step of a ring's sum also names the ring that it completes.
    """

    out: int
    left: Operand | None
    right: Operand
    factor: float
    completes: int | None = None


@dataclass(frozen=True)
class Schedule:
    """Steps from a padded block, buffer 0, to its ring sums.

    ``levels[i]`` is the level of buffer ``i``: how many leading dimensions it is summed over.
    """

    num_rings: int
    levels: tuple[int, ...]
    steps: tuple[Step, ...]


@lru_cache(maxsize=256)
def ring_schedule(geometry: RingGeometry, half: Offset) -> tuple[tuple[int, ...], Schedule]:
    """The rings that have a tap within ``half`` taps of the centre, and the schedule of their sums."""
    sums = _ring_expressions(geometry, half)
    return tuple(sums), _allocate(list(sums.values()))


def _ring_expressions(geometry: RingGeometry, half: Offset) -> dict[int, _Sum]:
    """Every ring's sum as an expression of shared partial sums."""
    # By mirror symmetry the taps without negative coordinates stand for all. Taps that belong to the
    # same rings by the same shares form a class; the classes of hard rings are the rings.
    classes: dict[tuple[float, ...], dict[int, list[Offset]]] = {}
    for offset, shares in zip(geometry.offsets, geometry.weights.T.tolist(), strict=True):
        if any(shares) and all(0 <= o <= h for o, h in zip(offset, half, strict=True)):
            columns = classes.setdefault(tuple(shares), defaultdict(list))
            columns[offset[-1]].append(offset[:-1])

    column_sums = _column_sums({tuple(rows) for columns in classes.values() for rows in columns.values()})
    ring_terms: dict[int, list[_Term]] = defaultdict(list)
    for shares, columns in classes.items():
        terms = []
        for shift, rows in columns.items():
            column = column_sums[tuple(rows)]
            signs = (-1, 1) if shift else (1,)
            terms += [_Term(column.sum, (*column.offset[:-1], sign * shift)) for sign in signs]
        if any(share not in (0.0, 1.0) for share in shares) and len(terms) > 1:
            terms = [_Term(_Sum(geometry.ndim, tuple(terms)), (0,) * geometry.ndim)]
        for ring, share in enumerate(shares):
            if share:
                ring_terms[ring] += [_Term(term.sum, term.offset, share) for term in terms]
    return {ring: _Sum(geometry.ndim, tuple(ring_terms[ring])) for ring in sorted(ring_terms)}


def _column_sums(columns: set[tuple[Offset, ...]]) -> dict[tuple[Offset, ...], _Term]:
    """Sums of folded rows, one per set of rows. A pair of rows that several sets hold is added once."""
    rows = sorted(set(itertools.chain(*columns)))
    terms = list(_fold(rows))
    members = {column: {rows.index(row) for row in column} for column in sorted(columns)}
    while True:
        pairs = Counter(pair for held in members.values() for pair in itertools.combinations(sorted(held), 2))
        if not pairs:
            return {column: terms[held.pop()] for column, held in members.items()}
        (pair, _), *_ = pairs.most_common(1)
        for held in members.values():
            if held.issuperset(pair):
                held.difference_update(pair)
                held.add(len(terms))
        ndim = len(terms[0].offset)
        terms.append(_Term(_Sum(ndim - 1, tuple(terms[i] for i in pair)), (0,) * ndim))


def _fold(rows: list[Offset]) -> Iterable[_Term]:
    """The sums over all signs of each row offset, one dimension after the other."""
    ndim = len(rows[0]) + 1
    centre = (0,) * ndim
    folded: dict[Offset, _Term] = {(): _Term(_Sum(0), centre)}
    for d in range(ndim - 1):
        for prefix in sorted({row[: d + 1] for row in rows}):
            term, shift = folded[prefix[:-1]], prefix[-1]
            if shift:
                before, after = (
                    _Term(term.sum, (*term.offset[:d], sign * shift, *term.offset[d + 1 :])) for sign in (-1, 1)
                )
                term = _Term(_Sum(d + 1, (before, after)), centre)
            folded[prefix] = term
    return (folded[row] for row in rows)


def _allocate(rings: list[_Sum]) -> Schedule:
    """Put partial sums in the order of their use and give them buffers, reused after the last use."""
    order: list[_Sum] = []

    def visit(node: _Sum) -> None:
        if node not in order:
            for term in node.terms:
                visit(term.sum)
            order.append(node)

    for ring in rings:
        visit(ring)
    last_use = {term.sum: node for node in order for term in node.terms}

    levels: list[int] = []
    free: dict[int, list[int]] = defaultdict(list)
    buffers: dict[_Sum, int] = {}
    steps: list[Step] = []
    for node in order:
        if free[node.level]:
            out = free[node.level].pop()
        else:
            out = len(levels)
            levels.append(node.level)
        buffers[node] = out
        if node.terms:
            steps += _steps(node, buffers, completes=rings.index(node) if node in rings else None)
        released = {term.sum for term in node.terms if last_use[term.sum] is node}
        for done in (*sorted(released, key=order.index), *([node] if node in rings else [])):
            free[done.level].append(buffers[done])
    return Schedule(len(rings), tuple(levels), tuple(steps))


def _steps(node: _Sum, buffers: dict[_Sum, int], completes: int | None) -> Iterator[Step]:
    """Additions that bring a sum from its terms into its buffer."""
    first, *rest = sorted(node.terms, key=lambda term: term.factor != 1.0)
    out = buffers[node]
    left: Operand | None = None
    if first.factor == 1.0 and rest:
        left = Operand(buffers[first.sum], first.offset)
    else:
        rest = [first, *rest]
    for i, term in enumerate(rest, start=1):
        right = Operand(buffers[term.sum], term.offset)
        yield Step(out, left, right, term.factor, completes if i == len(rest) else None)
        left = Operand(out, (0,) * len(term.offset))
