"""What a table of evidence is: networks, seeds, rates that are tried, and what is measured of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sre_triton.training.options import RunOptions

__all__ = [
    "ANY_ANGLE",
    "EIGHT",
    "EVERY_TEN",
    "EVERY_THIRTY",
    "FLIPPED",
    "TWELVE",
    "Evaluation",
    "Network",
    "Table",
    "at_all",
    "distinct_angles",
]

EVERY_TEN = tuple(float(angle) for angle in range(0, 360, 10))
"""The 36 angles of the rotation test."""

EVERY_THIRTY = tuple(float(angle) for angle in range(0, 360, 30))
"""The 12 angles of the rotation test about each axis of a volume."""

TWELVE = (0.0, 90.0, 180.0, 270.0, 10.0, 110.0, 210.0, 310.0, 50.0, 150.0, 250.0, 350.0)
"""The four right angles, and of the 32 others one of each four that differ by quarter turns, in all four quadrants."""

EIGHT = (0.0, 90.0, 180.0, 270.0, 10.0, 120.0, 230.0, 340.0)
"""The four right angles and one oblique angle in each quadrant, no two of which differ by quarter turns."""


def nothing() -> None:
    """What has to be registered for the networks of the package."""


ANY_ANGLE: Mapping[str, Any] = {"train_rotate": True, "train_degree": 180.0}
"""Options of a training whose images are turned by any angle."""

FLIPPED: Mapping[str, Any] = {"train_flip_p": 0.5}
"""Options of a training half of whose images are flipped."""


@dataclass(frozen=True)
class Network:
    """A network of a table, and how it is trained.

    Attributes:
        name: names its files and its row.
        options: of the training beside those of the table, as fields of its options.
        rates: learning rates to choose from on validation.
        equivariant: quarter turns of the input change nothing but rounding, so that angles that differ by quarter turns
            are one input: it is computed once and counted for each.
        reading: what it has in common with the networks that it is compared with, "equal steps" or "equal time".
        is_averaged: its probabilities are means over the 8 turns and flips in tests; see :mod:`.averaging`.
        trained_as: another network of the table with the same options, whose rate and trainings it shares.
        rate_as: another network of the table whose rate it takes; its own are not tried.
    """

    name: str
    options: Mapping[str, Any]
    rates: tuple[float, ...]
    equivariant: bool = False
    reading: str = "equal steps"
    is_averaged: bool = False
    trained_as: str | None = None
    rate_as: str | None = None

    @property
    def like(self) -> str | None:
        """The network of the table that its rate was chosen with; None where it has rates of its own."""
        return self.trained_as or self.rate_as


@dataclass(frozen=True)
class Evaluation:
    """What a trained network is tested on.

    Attributes:
        name: names it in files.
        title: what stands above its table.
        angles: degrees that the images are turned by; the first is upright.
        options: of the training that are others here (``test_crop``, ``data`` and the like). Places are names in the
            table's work folder.
        split: of the data, "all" for data that are not divided.
        axis: that volumes are turned about.
        step: degrees between two angles of the rotation test that ``angles`` stand for, over which means are taken.
        objects: of segmentation; whether F1 of connected components is measured, too; see :mod:`.objects`.
        disc: of segmentation; pixels across the disc on which answers that are turned back are scored, see
            :mod:`.turned_back`. None: answers as they are, against the turned mask.
    """

    name: str
    title: str
    angles: tuple[float, ...] = (0.0,)
    options: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    axis: str = "x"
    step: float = 10.0
    objects: bool = False
    disc: float | None = None


@dataclass(frozen=True)
class Table:
    """One table, all of its choices made.

    Attributes:
        name: of the folder of its results.
        title: above it on the page.
        protocol: Markdown; data, split, training, what was tried, and what was seen of the test set before.
        options: of every training.
        networks, seeds: all of which are trained.
        rate_options: of the short trainings that choose a rate, where they differ.
        rate_seed: of these; one of ``seeds`` only if they are whole, and are then not made twice.
        evaluations: each gives one table, those over many angles a figure, too. Without any, validation is shown.
        score: the main one.
        scores: the others that are shown.
        comparisons: pairs of networks whose difference is tested over images, the better one expected first.
        prepare: makes what the options name out of the data folder, in the work folder, which may be there already.
        references: what others reach on the same test images, for example a second observer: scores by evaluation.
        register: lets trainings of a process ask for networks by name that the package does not offer.
        photograph: what networks of segmentation are turned with, to see how exactly they turn; see :mod:`.symmetry`.
    """

    name: str
    title: str
    protocol: str
    options: RunOptions
    networks: Sequence[Network]
    seeds: Sequence[int]
    rate_options: Mapping[str, Any]
    evaluations: Sequence[Evaluation]
    score: str
    prepare: Callable[[Path, Path], None]
    rate_seed: int = 0
    scores: Sequence[str] = ()
    comparisons: Sequence[tuple[str, str]] = ()
    references: Callable[[Path, Path], Mapping[str, Mapping[str, float]]] = lambda data, work: {}
    register: Callable[[], None] = nothing
    photograph: Callable[[], Tensor] | None = None

    def __post_init__(self) -> None:
        names = [network.name for network in self.networks]
        if len(set(names)) != len(names):
            raise ValueError(f"networks of a table must have different names, got {names}")
        if len({len(network.rates) for network in self.networks}) > 1:
            raise ValueError("every network must have as many rates to try, else one is tuned better than another")
        if self.rate_seed in self.seeds and self.rate_options:
            raise ValueError(f"rate_seed must be none of the seeds {list(self.seeds)}, got {self.rate_seed}")
        for network in self.networks:
            if network.like is not None and network.like not in names:
                raise ValueError(f"{network.name} is like {network.like}, which the table has not")
            if network.trained_as and dict(self.network(network.trained_as).options) != dict(network.options):
                raise ValueError(
                    f"{network.name} has other options than {network.trained_as}, whose trainings it shares"
                )
        missing = {name for pair in self.comparisons for name in pair} - set(names)
        if missing:
            raise ValueError(f"comparisons name networks that the table has not: {sorted(missing)}")

    def network(self, name: str) -> Network:
        """The network of this name."""
        return next(network for network in self.networks if network.name == name)

    def built_as(self, network: Network) -> str:
        """The name of the network that it is built like, whose costs it has; its own where it is like none."""
        if network.like is None:
            return network.name
        built, other = (
            {name: value for name, value in one.options.items() if name in _BUILT}
            for one in (network, self.network(network.like))
        )
        return network.like if built == other else network.name

    def trained(self, network: Network, work: Path, **more: Any) -> RunOptions:
        """The options of a training, its places in the work folder."""
        return self._placed({**network.options, **more}, work)

    def tested(self, options: RunOptions, evaluation: Evaluation, work: Path) -> RunOptions:
        """The options of a training as an evaluation changes them."""
        return dataclasses.replace(options, **_in(work, evaluation.options))

    def _placed(self, more: Mapping[str, Any], work: Path) -> RunOptions:
        given = {name: getattr(self.options, name) for name in _PLACES if hasattr(self.options, name)}
        return dataclasses.replace(self.options, **_in(work, {**given, **more}))


_BUILT = ("model_type", "model_args", "invariants", "res_inplanes", "sre_conv_size", "sre_conv_size_list")
_PLACES = ("data", "data_root", "fov")


def _in(work: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: work / value if name in _PLACES and value is not None else value for name, value in options.items()}


def distinct_angles(angles: Sequence[float], equivariant: bool) -> list[float]:
    """The angles that have to be computed."""
    return list(dict.fromkeys(angle % 90 for angle in angles)) if equivariant else list(angles)


def at_all(angles: Sequence[float], computed: Sequence[float], values: Sequence[Any]) -> list[Any]:
    """What belongs to each of the angles, of values at those of :func:`distinct_angles`."""
    known = dict(zip(computed, values, strict=True))
    return [known[angle] if angle in known else known[angle % 90] for angle in angles]
