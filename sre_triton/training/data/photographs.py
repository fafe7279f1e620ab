"""Photographs with a class for every pixel, and lists of pictures that are read when they are needed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt

__all__ = ["LazyList", "Photograph"]

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


class LazyList(Sequence[Read], Generic[Entry, Read]):
    """Entries that are read when they are asked for; those read last are kept.

    Args:
        entries: what ``read`` is called with.
        read: reads an entry.
        size: bytes that a read entry takes.
        limit: bytes to keep at most.
    """

    def __init__(
        self, entries: Sequence[Entry], read: Callable[[Entry], Read], size: Callable[[Read], int], limit: int
    ) -> None:
        self.entries, self._read, self._size, self._limit = entries, read, size, limit
        self._kept: OrderedDict[int, Read] = OrderedDict()
        self._bytes = 0

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
        if index in self._kept:
            self._kept.move_to_end(index)
            return self._kept[index]
        read = self._read(self.entries[index])
        if self._size(read) <= self._limit:
            self._kept[index] = read
            self._bytes += self._size(read)
            while self._bytes > self._limit:
                self._bytes -= self._size(self._kept.popitem(last=False)[1])
        return read

    def __iter__(self) -> Iterator[Read]:
        return (self[index] for index in range(len(self)))
