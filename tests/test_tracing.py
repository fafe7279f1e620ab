"""Tracers older than ``torch.export``, and what is built on them: FX, TorchScript, quantisation, ExpandedWeights."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import (
    DeQuantStub,
    QuantStub,
    convert,
    get_default_qat_qconfig,
    get_default_qat_qconfig_mapping,
    get_default_qconfig_mapping,
    prepare_qat,
)
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx, prepare_qat_fx
from torch.nn.utils import prune
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads
from torch.utils.checkpoint import checkpoint

import sre_triton
from tests.oracle import BACKENDS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = sre_triton.SREConv2d(3, 8, 5, padding=2, padding_mode="reflect")
        self.body = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), sre_triton.GMRConv2d(8, 8, 3, padding="same"))
        self.up = sre_triton.SREConvTranspose2d(8, 4, 3, stride=2, output_padding=1)
        self.head = sre_triton.SRE_Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return self.head(self.up(self.body(stem) + stem))


RINGS = ["stem", "body.2", "up", "head"]


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def rings(graph: fx.Graph) -> list[str]:
    return [str(n.target) for n in graph.nodes if n.op == "call_module" and str(n.target) in RINGS]


# torch.fx ---------------------------------------------------------------------------------------------


def test_layers_are_leaves() -> None:
    net, x = Net(), torch.randn(2, 3, 9, 8)
    traced = fx.symbolic_trace(net)
    assert rings(traced.graph) == RINGS
    assert {n.op for n in traced.graph.nodes} == {"placeholder", "call_module", "call_function", "output"}
    assert isinstance(traced.get_submodule("stem"), sre_triton.SREConv2d)
    torch.testing.assert_close(traced(x), net(x), rtol=0, atol=0)
    expected = gradients(net, x)
    torch.testing.assert_close(gradients(traced, x), expected, rtol=0, atol=0)
    assert len(expected) == len(list(net.parameters()))
    assert traced.state_dict().keys() == net.state_dict().keys()


def test_a_traced_network_follows_requests() -> None:
    net, x = Net().double(), torch.randn(1, 3, 9, 8, dtype=torch.float64)
    traced = fx.symbolic_trace(net)
    with sre_triton.backend("dense"):
        dense = traced(x)
    with sre_triton.backend("ringwise"):
        ringwise = traced(x)
    torch.testing.assert_close(dense, ringwise)
    assert not torch.equal(dense, ringwise)


def test_an_output_size_is_part_of_the_call() -> None:
    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = sre_triton.SREConvTranspose2d(3, 2, 3, stride=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.up(x, output_size=(16, 16))

    net, x = Up(), torch.randn(1, 3, 7, 7)
    traced = fx.symbolic_trace(net)(x)
    assert traced.shape[2:] == (16, 16)
    torch.testing.assert_close(traced, net(x), rtol=0, atol=0)


def test_a_network_of_this_package_is_traced() -> None:
    net, x = sre_triton.sre_resnet18(num_classes=3).eval(), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(fx.symbolic_trace(net)(x), net(x), rtol=0, atol=0)


def test_parametrized_layers_are_leaves() -> None:
    net, x = (
        nn.Sequential(nn.utils.parametrizations.weight_norm(sre_triton.SREConv2d(3, 4, 3))),
        torch.randn(1, 3, 8, 8),
    )
    traced = fx.symbolic_trace(net)
    assert [n.op for n in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(traced(x), net(x), rtol=0, atol=0)


def test_forward_hooks_would_run_twice_and_are_refused() -> None:
    net = nn.Sequential(sre_triton.SREConv2d(3, 4, 3))
    net[0].register_forward_hook(lambda module, inputs, output: 2 * output)
    with pytest.raises(RuntimeError, match=r"cannot trace SREConv2d\(3, 4, .* has forward hooks"):
        fx.symbolic_trace(net)
    pruned = nn.Sequential(prune.l1_unstructured(sre_triton.SREConv2d(3, 4, 3), "weight", 0.5))
    with pytest.raises(RuntimeError, match=r"cannot trace SREConv2d\(3, 4, .*prune\.remove"):
        fx.symbolic_trace(pruned)
    x = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(fx.symbolic_trace(nn.Sequential(prune.remove(pruned[0], "weight")))(x), pruned(x))


def test_a_layer_alone_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"SREConv2d layers, not one alone: put it into nn\.Sequential"):
        fx.symbolic_trace(sre_triton.SREConv2d(3, 4, 3))


# Quantisation -----------------------------------------------------------------------------------------


def test_fx_quantisation_aware_training_reaches_every_layer() -> None:
    net, x = Net().train(), torch.randn(2, 3, 9, 8)
    prepared = prepare_qat_fx(copy.deepcopy(net), get_default_qat_qconfig_mapping("x86"), (x,))
    assert rings(prepared.graph) == RINGS
    found = gradients(prepared, x)
    assert found.keys() == dict(prepared.named_parameters()).keys()
    assert all(gradient.abs().sum() > 0 for gradient in (found["stem.weight"], found["body.2.log_sigmas"]))
    assert convert_fx(prepared.eval())(x).shape == net(x).shape


def test_fx_quantisation_after_training() -> None:
    net, x = (
        nn.Sequential(sre_triton.SREConv2d(3, 8, 5), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval(),
        torch.randn(2, 3, 16, 16),
    )
    prepared = prepare_fx(copy.deepcopy(net), get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    quantised = convert_fx(prepared)
    assert "quantized" in type(quantised.get_submodule("2")).__module__
    assert (quantised(x) - net(x)).abs().max() < 0.05 * net(x).abs().max()


def test_eager_quantisation_trains_layers_between_stubs_and_refuses_quantised_images() -> None:
    x = torch.randn(2, 3, 9, 8)

    def converted(ring: nn.Module) -> nn.Module:
        net = nn.Sequential(QuantStub(), ring, nn.Conv2d(4, 2, 3), DeQuantStub()).train()
        net.qconfig = get_default_qat_qconfig("x86")
        prepared = prepare_qat(net)
        assert gradients(prepared, x).keys() == dict(prepared.named_parameters()).keys()
        return convert(prepared.eval())

    with pytest.raises(RuntimeError, match=r"Input type \(torch\.quint8\) and weight type \(torch\.float32\)"):
        converted(sre_triton.SREConv2d(3, 4, 3))(x)
    between = nn.Sequential(DeQuantStub(), sre_triton.SREConv2d(3, 4, 3), QuantStub())
    assert converted(between)(x).shape == (2, 2, 5, 4)


# torch.jit.trace --------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_traced_script_works_at_other_sizes_trains_and_is_saved(backend: str) -> None:
    net, x = Net().eval(), torch.randn(2, 3, 9, 8)
    with warnings.catch_warnings(), sre_triton.backend(backend):
        warnings.simplefilter("error", torch.jit.TracerWarning)
        script = torch.jit.trace(net, x)
        other = torch.randn(1, 3, 14, 11)
        torch.testing.assert_close(script(other), net(other), rtol=0, atol=0)
        torch.testing.assert_close(gradients(script, other), gradients(net, other))
        assert len(gradients(script, other)) == len(list(net.parameters()))
        file = io.BytesIO()
        torch.jit.save(script, file)
        file.seek(0)
        torch.testing.assert_close(torch.jit.load(file)(other), net(other), rtol=0, atol=0)


def test_images_without_a_batch_are_traced() -> None:
    net, x = Net().eval(), torch.randn(3, 9, 8)
    net.body[0] = nn.Identity()
    torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x), rtol=0, atol=0)


def test_a_network_of_this_package_becomes_a_script() -> None:
    net, x = sre_triton.sre_resnet18(num_classes=3).eval(), torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(torch.jit.trace(net, x)(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_traced_function_says_what_to_use(transposed: bool) -> None:
    function = sre_triton.sre_conv_transpose2d if transposed else sre_triton.sre_conv2d
    weight = torch.randn(3, 3, 2)
    with pytest.raises(RuntimeError, match=r"no call of sre_conv.*2d .*a layer, torch\.export\.export, or .*fold"):
        torch.jit.trace(lambda x: function(x, weight, kernel_size=3), torch.randn(1, 3, 8, 8))


def test_layers_are_as_they_were_after_a_trace() -> None:
    net, x = nn.Sequential(sre_triton.SREConv2d(3, 4, 3)), torch.randn(1, 3, 8, 8)
    torch.jit.trace(net, x)
    y = checkpoint(net, x, use_reentrant=False)
    torch.testing.assert_close(y, net(x), rtol=0, atol=0)
    with pytest.raises(RuntimeError, match="channels"):
        net(torch.randn(1, 2, 8, 8))


# torch.jit.script -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RINGS)
def test_a_script_is_refused_and_what_to_use_works(path: str) -> None:
    layer = Net().get_submodule(path)
    for net in (layer, nn.Sequential(nn.ReLU(), nn.Sequential(layer))):
        refusal = (
            rf"cannot compile {type(layer).__name__}\(\d.*: use torch\.jit\.trace or torch\.export\.export, or .*fold"
        )
        with pytest.raises(RuntimeError, match=refusal):
            torch.jit.script(net)
        x = torch.randn(2, layer.in_channels, 9, 8)
        torch.testing.assert_close(torch.jit.script(sre_triton.fold(net.eval()))(x), net(x))


# Gradients per sample ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [sre_triton.SREConv2d, sre_triton.SREConvTranspose2d, sre_triton.GMRConv2d])
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_expanded_weights_are_refused_and_what_to_use_works(kind: type[nn.Module], frozen: str | None) -> None:
    layer, x = kind(3, 4, 3), torch.randn(2, 3, 8, 8)
    if frozen is not None:
        layer.get_parameter(frozen).requires_grad_(False)
    with pytest.raises(RuntimeError, match=r"takes no ring convolutions: use torch\.func\.vmap"):
        call_for_per_sample_grads(layer)(x)

    def loss(parameters: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(layer, parameters, (sample[None],)).square().sum()

    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, sample in enumerate(x):
        for name, gradient in gradients(layer, sample[None]).items():
            torch.testing.assert_close(found[name][i], gradient)
