"""Other projects' networks, converted: their sizes and functions are kept, their symmetry is what the report says,
and they train, compile, fold and export."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sre_triton
from sre_triton.layers import RingConvNd
from tests.swap.networks import NETWORKS, Network, pretrained_like, tensor_of

pytestmark = [
    pytest.mark.swap,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> Network:
    return NETWORKS[request.param]


class Logits(nn.Module):
    """A network that returns its main tensor, as exporters and losses like it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return tensor_of(self.network(x))


def relative(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@torch.no_grad()
def test_a_kernel_that_is_symmetric_already_keeps_the_function(network: Network) -> None:
    before = pretrained_like(network.build(), noise=0).eval()
    kept = sre_triton.convert(before, strides="keep")
    # In 3-D the corners of a 3x3x3 kernel, which carry no weight, lie in a ring of the larger kernels but 5x5x5.
    # A kernel that is larger already would shrink, which keeps no function.
    size = 9 if len(network.sizes[0]) == 2 else 5
    grown = sre_triton.convert(
        before,
        strides="keep",
        kernel_size=size,
        filter_fn=lambda module, _: not isinstance(module, nn.Conv3d) or max(module.kernel_size) <= size,
    )
    pooled = sre_triton.convert(before)
    assert any(isinstance(m, RingConvNd) for m in kept.modules())
    for shape in network.sizes:
        x = network.sample(shape)
        expected = tensor_of(before(x))
        assert relative(tensor_of(kept(x)), expected) < 1e-4
        assert relative(tensor_of(grown(x)), expected) < 1e-4
        assert tensor_of(pooled(x)).shape == expected.shape


@pytest.mark.parametrize("weights", ["random", "pretrained-like"])
def test_the_report_is_right_about_the_symmetry(network: Network, weights: str) -> None:
    before = network.build().eval()
    if weights == "pretrained-like":
        pretrained_like(before, noise=0.3)
    after = sre_triton.convert(before)
    # The report measures in float64; what users run is measured apart from it.
    for size in network.symmetric:
        x = network.sample(size, batch=1)
        symmetry = sre_triton.report(after, x, group="all" if x.dim() == 4 else "rotations").symmetry
        assert symmetry is not None
        assert symmetry.symmetric, symmetry
        assert symmetry.first_break is None
        assert symmetry.error < 1e-11
        group = "rotations" if x.dim() == 4 else "flips"
        assert sre_triton.equivariance_error(after, x, group) < 1e-5
        if weights == "random":
            assert sre_triton.equivariance_error(before, x, "flips") > 1e-3
    for size, culprit in network.asymmetric:
        x = network.sample(size, batch=1)
        symmetry = sre_triton.report(after, x, group="flips").symmetry
        assert symmetry is not None
        assert not symmetry.symmetric
        assert symmetry.first_break == culprit, symmetry
        assert sre_triton.equivariance_error(after, x, "flips") > 1e-3


def test_every_layer_is_accounted_for(network: Network) -> None:
    before = network.build()
    after = sre_triton.convert(before)
    report = sre_triton.report(after)
    assert report.parameters_before == sum(p.numel() for p in before.parameters())
    assert report.parameters_after == sum(p.numel() for p in after.parameters()) < report.parameters_before
    layers = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool2d)
    names = [name for name, module in before.named_modules() if isinstance(module, layers)]
    assert [layer.name for layer in report.layers] == names
    for layer in report.left:
        assert layer.note.startswith(("even kernel", "a single tap is symmetric", "at stride 1")), layer


def test_trains_compiles_and_folds(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    # MONAI's BasicUNet asks torch.jit.isinstance, which torch.compile does not follow, converted or not.
    monkeypatch.setattr(torch.jit, "isinstance", isinstance)
    torch._dynamo.reset()
    # In float64: batch normalisation over the few pixels of small images makes much of rounding.
    model = Logits(sre_triton.convert(network.build())).train().double()
    x = network.sample(network.sizes[0], batch=4).double()
    before = copy.deepcopy(model)
    with torch.no_grad():
        target = torch.randn_like(before(x))
    before.load_state_dict(model.state_dict())  # batch statistics too
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    def loss_of(run: Callable[[Tensor], Tensor]) -> Tensor:
        torch.manual_seed(0)  # some have dropout
        return F.mse_loss(run(x), target)

    loss = loss_of(compiled)
    torch.testing.assert_close(loss, loss_of(before), rtol=1e-9, atol=0)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    # A hundredth of the step that would lead to zero loss if the loss were linear.
    square = sum(g.square().sum().item() for g in gradients.values() if g is not None)
    torch.optim.SGD(model.parameters(), lr=0.01 * loss.item() / square).step()
    assert loss_of(compiled) < loss

    model.eval().float()
    folded = sre_triton.fold(model, fuse_batchnorm=True)
    assert not any(type(m).__module__.startswith("sre_triton") for m in folded.modules())
    with torch.no_grad():
        for size in network.sizes:
            x = network.sample(size)
            expected = model(x)
            assert relative(folded(x), expected) < 1e-4


def test_exports_to_onnx(network: Network, tmp_path: Path) -> None:
    import onnxruntime

    model = Logits(sre_triton.convert(pretrained_like(network.build(), noise=0.3))).eval()
    x = network.sample(network.sizes[-1])
    folded = sre_triton.fold(model, fuse_batchnorm=True)
    path = tmp_path / "model.onnx"
    torch.onnx.export(folded, (x,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        assert relative(torch.from_numpy(result), model(x)) < 1e-4
    assert b"sre_triton" not in pickle.dumps(folded.network)
