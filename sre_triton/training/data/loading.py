"""Batches in an order that depends on the seed and the epoch alone, and that a resumed run enters in the middle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from sre_triton.training.data.augment import Share, derived_seed

__all__ = ["EvaluationBatches", "ResumableLoader", "TrainingBatches", "loader"]


class TrainingBatches(Sampler[list[int]]):
    """Indices of the batches of one process.

    Every epoch shuffles anew. The items are cut into joined batches of all processes, and a process takes every
    ``world``-th item of each from ``rank`` on: several processes see together what one with the joined batch sees.
    An incomplete last batch is left out, unless there is no other.

    Args:
        count: items of the set.
        batch: items per process and batch.
        seed: of the order.
        share: this process among all.
    """

    def __init__(self, count: int, batch: int, seed: int, share: Share) -> None:
        self.count, self.batch, self.seed, self.share = count, batch, seed, share
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
        order = torch.randperm(self.count, generator=generator)
        joined = min(self.batch * self.share.world, self.count // self.share.world * self.share.world)
        first, self.skip = self.skip, 0
        for index in range(first, len(self)):
            yield self.share.of(order[index * joined : (index + 1) * joined]).tolist()


class EvaluationBatches(Sampler[list[int]]):
    """Every item once, in order, shared by the processes; none is repeated to fill a batch."""

    def __init__(self, count: int, batch: int, share: Share) -> None:
        self.indices, self.batch = range(share.rank, count, share.world), batch

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch)

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, len(self.indices), self.batch):
            yield list(self.indices[start : start + self.batch])


class ResumableLoader(DataLoader[Any]):
    """A loader over :class:`TrainingBatches` that Lightning restores in the middle of an epoch.

    What it counts are the batches that were trained on, as Lightning's loop says, not those that were read ahead.
    """

    trained: Callable[[], int] = staticmethod(lambda: 0)

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.trained()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        batches = self.sampler
        assert isinstance(batches, TrainingBatches)
        batches.skip = state["batches"]


def loader(dataset: Dataset[Any], batches: Sampler[list[int]], workers: int) -> DataLoader[Any]:
    """A loader whose dataset is asked for whole batches: it gets a list of indices and returns tensors."""
    kind = ResumableLoader if isinstance(batches, TrainingBatches) else DataLoader
    return kind(
        dataset,
        sampler=batches,  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=False,
    )
