"""Photographs with a class for every pixel, and lists of pictures that are read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sre_triton.training.options import RunOptions

__all__ = ["Kept", "KeptArrays", "LazyList", "Photograph", "cache_limit"]

Entry = TypeVar("Entry")
Read = TypeVar("Read")


@dataclass(frozen=True)
class Photograph:
    """A picture and the class of each of its pixels.

    Attributes:
        image: float32 in 0 to 1, (3, H, W).
        labels: uint8, (1, H, W); classes from 0, which is the ground.
        name: names it in tables and errors.
        field: uint8, (1, H, W), 1 inside the field of view; None if all of it is.
    """

    image: npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    name: str
    field: npt.NDArray[np.uint8] | None = None

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + self.labels.nbytes + (self.field.nbytes if self.field is not None else 0)


class Kept:
    """What was read last, up to a number of bytes; one for all lists of a set. Pickled, it is empty: a
    process that loads has a share of its own to fill.

    Args:
        limit: bytes to keep at most.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._bytes = limit, 0
        self._items: OrderedDict[tuple[object, int], tuple[Any, int]] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return Kept, (self._limit,)

    def get(self, key: tuple[object, int], read: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """What is kept under a key, or else what ``read`` returns."""
        if key in self._items:
            self._items.move_to_end(key)
            return self._items[key][0]
        item = read()
        taken = size(item)
        if taken <= self._limit:
            while self._bytes + taken > self._limit:
                self._bytes -= self._items.popitem(last=False)[1][1]
            self._items[key] = item, taken
            self._bytes += taken
        return item


class KeptArrays:
    """:class:`Kept` for arrays of one shape and type, in one block: as thousands of separate arrays that come and go
    they would leave holes of a third of their size. Pickled, it is empty, too.

    Args:
        limit: bytes to keep at most.
        most: arrays that there are.
    """

    def __init__(self, limit: int, most: int) -> None:
        self._limit, self._most = limit, most
        self._block: npt.NDArray[Any] | None = None
        self._places: OrderedDict[tuple[object, int], int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        return KeptArrays, (self._limit, self._most)

    def get(self, key: tuple[object, int], read: Callable[[], Any], size: Callable[[Any], int]) -> Any:
        """A copy of what is kept under a key, or else what ``read`` returns."""
        if self._block is not None and key in self._places:
            self._places.move_to_end(key)
            return self._block[self._places[key]].copy()
        item = read()
        if self._block is None:  # whose pages take memory once they are written to
            self._block = np.empty((min(self._most, self._limit // size(item)), *item.shape), item.dtype)
        if len(self._block):
            is_full = len(self._places) == len(self._block)
            place = self._places.popitem(last=False)[1] if is_full else len(self._places)
            self._block[place] = item
            self._places[key] = place
        return item


def cache_limit(options: RunOptions) -> int:
    """Bytes of ``--cache`` for this process: each that trains, and each that loads for one, has its share."""
    return options.cache * 2**20 // (max(1, options.world_size) * max(1, options.num_workers))


class LazyList(Sequence[Read], Generic[Entry, Read]):
    """Entries that are read when they are asked for; those read last are kept.

    Args:
        entries: what ``read`` is called with.
        read: reads an entry.
        size: bytes that a read entry takes.
        kept: keeps them, and those of other lists.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        read: Callable[[Entry], Read],
        size: Callable[[Read], int],
        kept: Kept | KeptArrays,
    ) -> None:
        self.entries, self._read, self._size, self._kept = entries, read, size, kept

    def __len__(self) -> int:
        return len(self.entries)

    @overload
    def __getitem__(self, index: int) -> Read: ...
    @overload
    def __getitem__(self, index: slice) -> list[Read]: ...
    def __getitem__(self, index: int | slice) -> Read | list[Read]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        entry = self.entries[index]
        found: Read = self._kept.get((self, index), lambda: self._read(entry), self._size)
        return found

    def __iter__(self) -> Iterator[Read]:
        return (self[index] for index in range(len(self)))
