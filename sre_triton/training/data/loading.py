"""Batches whose order depends on the seed and the epoch alone, so that a resumed run can start within an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sre_triton.training.data.augment import Share, derived_seed

__all__ = ["EvaluationBatches", "ResumableLoader", "TrainingBatches", "has_no_share", "loader"]


class TrainingBatches(Sampler[list[int]]):
    """Indices of the batches of one process.

    Every epoch shuffles anew. The shuffled items are cut into batches for all processes together, and a process takes
    every ``world``-th item of each, beginning with item ``rank``. So several processes together see the batches that
    one process with the same total batch size sees. An incomplete last batch is left out, unless it is the only one.

    Args:
        count: items of the set.
        batch: items per process and batch.
        seed: of the order.
        share: this process among all.
        weights: (count,); how often each item is drawn relative to others, with replacement. None: each once.
    """

    def __init__(self, count: int, batch: int, seed: int, share: Share, weights: torch.Tensor | None = None) -> None:
        self.count, self.batch, self.seed, self.share, self.weights = count, batch, seed, share, weights
        self.epoch = 0
        self.skip = 0
        if count < share.world:
            raise ValueError(f"{count} training images cannot be shared by {share.world} processes")

    def __len__(self) -> int:
        return max(1, self.count // (self.batch * self.share.world))

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        joined = min(self.batch * self.share.world, self.count // self.share.world * self.share.world)
        first, self.skip = self.skip, 0
        for index in range(first, len(self)):
            yield self.share.of(order[index * joined : (index + 1) * joined]).tolist()


def has_no_share(count: int, share: Share) -> bool:
    """Whether there are so few items that a process has none of them."""
    return share.rank >= count


class EvaluationBatches(Sampler[list[int]]):
    """Batches of every item once, in order, divided among the processes; no item is repeated to fill a batch.

    A process that there is no item for is given the last one, as Lightning leaves out who has none, and the others
    would wait for it; its answers do not count (:func:`has_no_share`).
    """

    def __init__(self, count: int, batch: int, share: Share) -> None:
        self.indices, self.batch = range(share.rank, count, share.world), batch
        if has_no_share(count, share):
            self.indices = range(count - 1, count)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch):
            yield list(self.indices[start : start + self.batch])


class ResumableLoader(DataLoader[Any]):
    """A loader over :class:`TrainingBatches` that Lightning restores in the middle of an epoch.

    Attributes:
        trained: returns the number of batches of this epoch that were trained on; those read ahead do not count.
    """

    trained: Callable[[], int] = staticmethod(lambda: 0)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        batches = self.sampler
        assert isinstance(batches, TrainingBatches)
        batches.skip = state["batches"]


def loader(dataset: Dataset[Any], batches: Sampler[list[int]], workers: int) -> DataLoader[Any]:
    """A loader for a dataset whose ``__getitem__`` takes a list of indices and returns a whole batch.

    Processes that load are started once a training, and are given the dataset then.
    """
    kind = ResumableLoader if isinstance(batches, TrainingBatches) else DataLoader
    return kind(
        dataset,
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
    )
