"""Options of the benchmark suite, and the parameters that they select."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bench.cases import cases


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("layers")
    group.addoption("--quick", action="store_true", help="one case of each kind, few rounds")
    group.addoption("--case", default="", help="only cases whose name contains this")
    group.addoption("--sizes", default="3,5,9", help="only these kernel sizes (a pointwise layer always runs)")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return
    option = metafunc.config.getoption
    sizes = {1, *map(int, option("--sizes").split(","))}
    chosen = cases(quick=option("--quick"), name=option("--case"))
    metafunc.parametrize(
        ("case", "k"),
        [pytest.param(case, k, id=f"{case}-k{k}") for case in chosen for k in case.kernel_sizes if k in sizes],
    )
    metafunc.parametrize("device", ["cpu", *(["cuda"] if torch.cuda.is_available() else [])])


@pytest.fixture
def quick(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--quick"))


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """The number of threads that the test runs with."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield torch.get_num_threads()
    torch.set_num_threads(before)
