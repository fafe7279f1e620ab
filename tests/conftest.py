"""Settings and fixtures that every test shares."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# No profile minds the clock: neither a deadline nor "data generation is too slow", which a busy machine meets.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("default", settings.get_profile("unhurried"), max_examples=25, derandomize=True)
settings.register_profile("seeded", settings.get_profile("unhurried"), max_examples=25)
settings.register_profile("fuzz", settings.get_profile("unhurried"), max_examples=2000)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        help="draw other inputs, parameters and examples than the default run, which always draws the same",
    )
    parser.addoption("--threads", type=int, default=1, help="threads of PyTorch's operations and the native kernel's")


@pytest.hookimpl(tryfirst=True)  # before Hypothesis reads its own options
def pytest_configure(config: pytest.Config) -> None:
    chosen = config.getoption("seed")
    if chosen is not None:
        config.option.hypothesis_seed = chosen
        config.option.hypothesis_profile = config.option.hypothesis_profile or "seeded"


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {seed_of(config)} (--seed N draws anew, `make fuzz` draws much)"


def seed_of(config: pytest.Config) -> int:
    """What every source of random numbers starts from."""
    chosen: int | None = config.getoption("seed")
    return chosen or 0


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory() -> Iterator[None]:
    """Fresh memory is NaN: whatever reads a value that was never written shows it in its result.

    PyTorch fills what ``empty`` returns, to Python and to its own C++ callers alike, while deterministic
    algorithms are on. ``warn_only`` keeps operations without a deterministic version usable.
    """
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


@pytest.fixture(autouse=True, scope="session")
def threads(pytestconfig: pytest.Config) -> Iterator[None]:
    """One thread, unless asked: tensors of this size lose more to the meeting of threads than they win from them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(pytestconfig.getoption("threads"))
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The seed that the header of the run shows."""
    return seed_of(pytestconfig)


@pytest.fixture(autouse=True)
def seeded(seed: int) -> None:
    """Every test draws the same parameters and inputs whichever tests ran before it."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


@pytest.fixture
def generator(seed: int) -> torch.Generator:
    """A source of random numbers of the test's own."""
    return torch.Generator().manual_seed(seed)
