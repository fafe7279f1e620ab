"""Layers of invariants, alone and in networks: life of a module, compilers, export, conversion, symmetry."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from sre_triton import models
from sre_triton.equivariance import equivariance_error
from sre_triton.invariants.layers import (
    AddInvariants2d,
    AddInvariants3d,
    DifferentialInvariants2d,
    DifferentialInvariants3d,
)
from sre_triton.models.profile import count_work
from tests.models.networks import as_if_trained, image, small

NETWORKS = ["sre_unet", "gmr_unet", "sre_unet_3d", "sre_resnet18", "gmr_resnet50", "sre_r3d_18"]
LAYERS = {
    "add": (lambda: AddInvariants2d(6, ("gradient", "anisotropy", "flow"), (1, 2)), (2, 6, 9, 12)),
    "add 3d": (lambda: AddInvariants3d(6), (1, 6, 5, 6, 7)),
    "maps": (lambda: DifferentialInvariants2d(), (2, 3, 9, 12)),
    "maps 3d": (lambda: DifferentialInvariants3d(3, pairing=(1, 2, 0)), (2, 3, 5, 6, 7)),
    "learned pairing": (lambda: DifferentialInvariants2d(3, "isophote", (1, 2), pairing="learned"), (2, 3, 9, 12)),
}


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


def test_symmetric(layer: tuple[nn.Module, Tensor]) -> None:
    module, x = layer
    assert equivariance_error(module, x) < 1e-5
    assert equivariance_error(module.double(), x.double()) < 1e-12


def test_copies_and_checkpoints(layer: tuple[nn.Module, Tensor]) -> None:
    module, x = layer
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(x), module(x))
        assert repr(twin) == repr(module)
    other = copy.deepcopy(module)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_folds_to_plain_operations(layer: tuple[nn.Module, Tensor]) -> None:
    module, x = layer
    folded = sre_triton.fold(module)
    assert not any(type(m).__module__.startswith("sre_triton") for m in folded.modules())
    torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["maps", *(pytest.param(name, marks=pytest.mark.slow) for name in LAYERS if name != "maps"), "small add"]
)
def test_compiles_whole_and_exports(name: str) -> None:
    make, shape = LAYERS.get(name, (lambda: AddInvariants2d(3), (1, 3, 6, 7)))
    module, x = make(), torch.randn(shape)
    expected = module(x)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x.requires_grad_()
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(expected)
    found, wanted = (torch.autograd.grad(f(x), x, direction)[0] for f in (compiled, module))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    program = torch.export.export(module, (x.detach(),))
    targets = {str(node.target) for node in program.graph.nodes}
    assert not any("sre_triton" in target or "pad" in target for target in targets)
    torch.testing.assert_close(program.module()(x.detach()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_trains_compiled() -> None:
    """With channels last, in which the backward pass of PyTorch's own padding cannot be compiled."""
    network = nn.Sequential(nn.Conv2d(3, 8, 1), AddInvariants2d(8, dilations=(1, 2)), nn.Conv2d(8, 2, 1))
    x = torch.randn(2, 3, 12, 13).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True)
    for one in (network, compiled):
        one(x).square().mean().backward()
    for found, wanted in zip(compiled.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-3, atol=1e-5)


def test_keeps_the_input_alone(layer: tuple[nn.Module, Tensor]) -> None:
    module, x = layer
    if "Add" not in type(module).__name__:
        return
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x.requires_grad_())
    assert {t.data_ptr() for t in kept} == {x.data_ptr(), *(p.data_ptr() for p in module.parameters())}


def test_channels_last_and_autocast() -> None:
    module, x = AddInvariants2d(8), torch.randn(2, 8, 10, 11).contiguous(memory_format=torch.channels_last)
    assert module(x).is_contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = nn.Sequential(sre_triton.SREConv2d(8, 8, 3, padding=1), module)(x)
    assert y.dtype == torch.bfloat16


def test_starts_as_large_as_its_input() -> None:
    z = torch.randn(8, 32, 32, 32)
    ratio = (AddInvariants2d(32)(z) - z).std() / z.std()
    assert 0.3 < ratio < 3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AddInvariants2d(0), "channels must be positive, got 0"),
        (lambda: AddInvariants2d(4, features=0), "features must be positive, got 0"),
        (lambda: AddInvariants2d(4, "curl"), "kinds must be some of"),
        (lambda: AddInvariants2d(4)(torch.rand(2, 3, 5, 5)), r"input must have 4 channels, got shape \(2, 3, 5, 5\)"),
        (lambda: AddInvariants2d(4)(torch.rand(4)), r"must be .* got shape \(4,\)"),
        (
            lambda: DifferentialInvariants2d(pairing="learned"),
            "channels must be a positive int where there is a pairing",
        ),
        (lambda: DifferentialInvariants2d(3, pairing="fixed"), "pairing must be 'learned', a sequence .*, got 'fixed'"),
        (lambda: DifferentialInvariants2d(3, pairing=(0, 1)), r"pairing must name one of 3 channels .*, got \(0, 1\)"),
        (lambda: models.sre_unet(invariants="yes"), "bool, one of gradient, .* or a mapping .*, got 'yes'"),
        (lambda: models.sre_unet(invariants={"level": 1}), "levels, convolutions, .*, got {'level': 1}"),
        (lambda: models.sre_unet(invariants={"levels": 0}), "levels of invariants must be a positive int, got 0"),
        (lambda: models.resnet18(invariants=True), "invariants are for ring networks"),
    ],
)
def test_errors_name_the_argument(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_a_kind_can_be_asked_for_by_its_name() -> None:
    network = models.sre_unet(invariants="gradient")
    kinds = [module.kinds for module in network.modules() if isinstance(module, AddInvariants2d)]
    assert kinds == [("gradient",)] * len(kinds)
    other = models.sre_unet(invariants={"kinds": ["gradient"]})
    other.load_state_dict(network.state_dict())
    assert sum(parameter.numel() for parameter in network.parameters()) == 261_550


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_stay_symmetric(name: str) -> None:
    network = as_if_trained(small(name, invariants=True)).eval()
    assert sum(isinstance(m, (AddInvariants2d, AddInvariants3d)) for m in network.modules()) >= 3
    size = (17, 18, 19)[: models.entry(name).ndim]
    x = image(name, *size)
    assert equivariance_error(network, x) < 1e-5
    assert equivariance_error(network.double(), x.double()) < 1e-12
    fused = network.fuse()
    torch.testing.assert_close(fused(x.double()), network(x.double()))
    torch.testing.assert_close(sre_triton.fold(network)(x.double()), network(x.double()))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_without_know_nothing_of_it(name: str) -> None:
    assert not any("invariants" in key for key in small(name).state_dict())


def test_where_they_stand() -> None:
    def where(**options: object) -> list[str]:
        network = models.sre_unet(features=(4, 4, 6, 8), invariants=options or True, device="meta")
        return [name for name, m in network.named_modules() if isinstance(m, AddInvariants2d)]

    finest = ["conv_0.conv_0", "down_1.convs.conv_0", "upcat_2.convs.conv_0", "upcat_1.convs.conv_0"]
    assert where() == [f"{name}.invariants" for name in finest]
    assert where(levels=1) == ["conv_0.conv_0.invariants", "upcat_1.convs.conv_0.invariants"]
    assert len(where(levels=4, convolutions=2)) == 14
    blocks = models.sre_resnet18(inplanes=8, invariants=True, device="meta")
    names = [name for name, m in blocks.named_modules() if isinstance(m, AddInvariants2d)]
    assert names == ["invariants", *(f"layer{i}.{j}.invariants1" for i in (1, 2) for j in (0, 1))]


def test_parameters_and_arithmetic() -> None:
    with_invariants, without = (models.sre_unet(invariants=on, device="meta") for on in (True, False))
    assert sum(p.numel() for p in with_invariants.parameters()) == 262_574 <= 275_000
    assert sum(p.numel() for p in without.parameters()) == 274_306
    layer, x = AddInvariants2d(32), torch.zeros(2, 32, 10, 12)
    products = 2 * 120 * (32 * 8 + 16 * 32)
    work = count_work(layer, x)
    assert (work.dense, work.ringwise) == (products, products)
    assert work.additions > 0


def test_training_options_reach_the_network() -> None:
    from sre_triton.training.options import SegmentOptions, TrainOptions
    from sre_triton.training.tasks.networks import classifier, segmenter

    for network in (
        segmenter(SegmentOptions(invariants=True)),
        classifier(TrainOptions(invariants=True, res_inplanes=8), 2, 1, 2),
    ):
        assert any(isinstance(m, AddInvariants2d) for m in network.modules())
    plain = classifier(TrainOptions(invariants=True, model_type="resnet18", res_inplanes=8), 2, 1, 2)
    assert not any(isinstance(m, AddInvariants2d) for m in plain.modules())


def test_reports_and_explanations_know_them() -> None:
    network = small("sre_unet", invariants=True)
    listed = [layer for layer in sre_triton.report(network).layers if layer.action == "invariants"]
    assert [layer.name for layer in listed][:1] == ["conv_0.conv_0.invariants"]
    assert len(listed) == 4
    words = sre_triton.explain(AddInvariants2d(8), torch.randn(1, 8, 9, 9))
    assert "AddInvariants2d(8, kinds=('gradient', 'anisotropy')" in words
    assert "native" in words or "PyTorch operations" in words
    assert sre_triton.explain(network, image("sre_unet", 16)).count("AddInvariants2d") == 4
