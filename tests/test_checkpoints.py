"""State dicts: parameters alone, and those of the reference packages load as they are."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sre_triton
from tests.reference import gmr_conv_package, sre_conv_package

LAYERS = [
    *(f"SREConv{n}d" for n in (1, 2, 3)),
    *(f"SREConvTranspose{n}d" for n in (1, 2, 3)),
    *(f"GMRConv{n}d" for n in (1, 2, 3)),
    *("SRE_Conv1d", "SRE_Conv2d", "SRE_Conv3d", "SRE_ConvTranspose2d", "GMR_Conv1d", "GMR_Conv2d", "GMR_Conv3d"),
]
PEERS = [("SRE", 2), ("SRE", 3), ("GMR", 2), ("GMR", 3)]


def peer(kind: str, ndim: int, *args: Any, **kwargs: Any) -> nn.Module:
    package = sre_conv_package() if kind == "SRE" else gmr_conv_package()
    return getattr(package, f"{kind}_Conv{ndim}d")(*args, **kwargs)


def ours(kind: str, ndim: int, *args: Any, **kwargs: Any) -> nn.Module:
    return getattr(sre_triton, f"{kind}Conv{ndim}d")(*args, **kwargs)


class Network(nn.Module):
    """A convolution that is nested, one that is named, and one that is plain."""

    def __init__(self, conv: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict({"first": nn.Sequential(conv(3, 4, 7, padding=3), nn.BatchNorm2d(4))})
        self.second = conv(4, 4, 5, padding=2)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.layers["first"](x)))


# Our own state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_keys_are_the_parameters_in_train_and_eval(name: str) -> None:
    layer = getattr(sre_triton, name)(4, 4, 5)
    keys = ["weight", "bias", *(["log_sigmas"] if name.startswith("GMR") else [])]
    x = torch.randn(1, 4, *[7] * layer.ndim)
    for mode in (True, False, True):
        layer.train(mode)(x)
        assert list(layer.state_dict()) == keys
        assert [key for key, _ in layer.named_parameters()] == keys
        assert not list(layer.buffers())


@pytest.mark.parametrize("name", LAYERS)
def test_saved_and_loaded_as_weights_only(name: str, tmp_path: Path) -> None:
    layer, other = (getattr(sre_triton, name)(4, 4, 5) for _ in range(2))
    torch.save(layer.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    x = torch.randn(1, 4, *[7] * layer.ndim)
    assert torch.equal(other(x), layer(x))


def test_a_checkpoint_does_not_depend_on_ring_options() -> None:
    plain = sre_triton.SREConv2d(3, 4, 9)
    smooth = sre_triton.SREConv2d(3, 4, 9, antialias=True)
    smooth.load_state_dict(plain.state_dict(), strict=True)
    assert torch.equal(smooth.weight, plain.weight)


def test_other_keys_are_still_reported() -> None:
    layer = sre_triton.SREConv2d(3, 4, 5)
    with pytest.raises(RuntimeError, match=r'Missing key.*"bias"'):
        layer.load_state_dict({"weight": layer.weight})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"other"'):
        layer.load_state_dict({**layer.state_dict(), "other": torch.zeros(1)})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        layer.load_state_dict({**layer.state_dict(), "weight": torch.zeros(4, 3, 4)})
    # A ring layer has no means: to it the key of a GMR layer is unexpected.
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"mus"'):
        layer.load_state_dict({**layer.state_dict(), "mus": torch.arange(3.0)})


# The reference packages' state ------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bias": False, "groups": 2}], ids=str)
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(("kind", "ndim"), PEERS)
def test_loads_strictly(kind: str, ndim: int, mode: str, options: dict[str, Any]) -> None:
    source = peer(kind, ndim, 4, 6, 5, **options).train(mode == "train")
    state = source.state_dict()
    before = copy.deepcopy(state)
    assert "weight_index_mat" in state
    layer = ours(kind, ndim, 4, 6, 5, **options)
    result = layer.load_state_dict(state, strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    for key, value in layer.state_dict().items():
        assert torch.equal(value, before[key])
    assert set(layer.state_dict()) == {key for key, _ in source.named_parameters()}
    # The caller's dictionary is left as it was.
    assert list(state) == list(before)


def test_loads_other_ring_counts() -> None:
    state = peer("SRE", 2, 3, 4, 9, sre_k=4).state_dict()
    sre_triton.SREConv2d(3, 4, 9, num_rings=4).load_state_dict(state)
    state = peer("GMR", 2, 3, 4, 9, force_circular=False).state_dict()
    sre_triton.GMRConv2d(3, 4, 9, circular=False).load_state_dict(state)


def test_loads_widths_that_were_not_trained() -> None:
    state = peer("GMR", 2, 3, 4, 9, train_gaussian_sigma=False).state_dict()
    for trained in (True, False):
        layer = sre_triton.GMRConv2d(3, 4, 9, train_gaussian_sigma=trained)
        layer.load_state_dict(state)
        assert torch.equal(layer.log_sigmas, state["log_sigmas"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("kind", "ndim"), PEERS)
def test_loads_checkpoints_of_other_dtypes(kind: str, ndim: int, dtype: torch.dtype) -> None:
    source = peer(kind, ndim, 3, 4, 7).to(dtype)
    layer = ours(kind, ndim, 3, 4, 7)
    layer.load_state_dict(source.state_dict())
    assert layer.weight.dtype == torch.float32
    assert torch.equal(layer.weight, source.weight.float())


@pytest.mark.parametrize("kind", ["SRE", "GMR"])
def test_loads_nested_modules(kind: str, tmp_path: Path) -> None:
    package = sre_conv_package() if kind == "SRE" else gmr_conv_package()
    source = Network(getattr(package, f"{kind}_Conv2d"))
    torch.save(source.state_dict(), tmp_path / "state.pt")
    network = Network(getattr(sre_triton, f"{kind}Conv2d"))
    network.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=True)
    x = torch.randn(1, 3, 12, 12)
    expected = source(x)
    torch.testing.assert_close(network(x), expected, rtol=0, atol=3e-5 * expected.abs().max().item())
    assert not [key for key in network.state_dict() if "index_mat" in key or "mus" in key]


@pytest.mark.parametrize(("kind", "ndim"), PEERS)
def test_loads_by_assignment_onto_the_meta_device(kind: str, ndim: int) -> None:
    source = peer(kind, ndim, 3, 4, 7)
    state = source.state_dict()
    layer = ours(kind, ndim, 3, 4, 7, device="meta")
    layer.load_state_dict(state, assign=True)
    assert layer.weight.data_ptr() == state["weight"].data_ptr()
    assert not any(p.is_meta for p in layer.parameters())


def test_loads_when_not_strict() -> None:
    state = peer("SRE", 2, 3, 4, 7).state_dict()
    del state["bias"]
    state["other"] = torch.zeros(1)
    result = sre_triton.SREConv2d(3, 4, 7).load_state_dict(state, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["bias"], ["other"])


# What is refused --------------------------------------------------------------------------------------


def refused(layer: nn.Module, state: dict[str, Tensor], message: str) -> None:
    """Whether or not loading is strict: a wrong map is no matter of keys."""
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=f"(?s)Error.* in loading state_dict.*{message}"):
            layer.load_state_dict(state, strict=strict)


@pytest.mark.parametrize("buffer", ["weight_index_mat", "default_weight_index_mat"])
@pytest.mark.parametrize(("kind", "ndim"), PEERS)
def test_a_trained_map_is_refused(kind: str, ndim: int, buffer: str) -> None:
    state = dict(peer(kind, ndim, 3, 4, 7).state_dict())
    trained = state["weight_index_mat"].clone()
    trained[0, 0, 1, 10] += 1e-3
    state[buffer] = trained
    refused(ours(kind, ndim, 3, 4, 7), state, f'"{buffer}" is not the one-hot map of this layer')


def test_a_map_that_the_reference_trained_is_refused() -> None:
    source = peer("GMR", 2, 3, 4, 7, train_index_mat=True)
    sre_triton.GMRConv2d(3, 4, 7).load_state_dict(source.state_dict())  # as yet untrained
    source.dw_fwd = False
    source(torch.randn(1, 3, 9, 9)).square().sum().backward()
    torch.optim.SGD(source.parameters(), lr=1e-3).step()
    refused(sre_triton.GMRConv2d(3, 4, 7), source.state_dict(), '"weight_index_mat" is not the one-hot map')


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_map_that_is_not_finite_is_refused(value: float) -> None:
    state = peer("SRE", 2, 3, 4, 7).state_dict()
    state["weight_index_mat"] = torch.full((1, 1, 4, 49), value)
    refused(sre_triton.SREConv2d(3, 4, 7), state, '"weight_index_mat" is not the one-hot map')


def test_a_map_of_other_edges_is_refused() -> None:
    state = peer("GMR", 2, 3, 4, 7, num_rings=4).state_dict()
    refused(sre_triton.GMRConv2d(3, 4, 7, num_rings=4, circular=False), state, '"weight_index_mat" is not the one-hot')


def test_a_map_of_another_size_is_refused() -> None:
    # Both kernels have four rings, so the weights alone would fit.
    state = peer("SRE", 2, 3, 4, 7).state_dict()
    message = r'"weight_index_mat" has shape \(1, 1, 4, 49\), but .* is \(1, 1, 4, 81\): kernel_size'
    refused(sre_triton.SREConv2d(3, 4, 9, num_rings=4), state, message)


def test_a_map_of_hard_rings_is_refused_by_an_anti_aliased_layer() -> None:
    state = peer("SRE", 2, 3, 4, 7).state_dict()
    message = '"weight_index_mat" is a map of hard rings, but .* build it with antialias=False'
    refused(sre_triton.SREConv2d(3, 4, 7, antialias=True), state, message)


@pytest.mark.parametrize("means", [[0.0, 1, 2, 3.5], [1.0, 2, 3, 4], [0.0, 1, 2], [float("nan"), 1, 2, 3]], ids=str)
def test_moved_means_are_refused(means: list[float]) -> None:
    state = peer("GMR", 2, 3, 4, 7).state_dict()
    state["mus"] = torch.tensor(means)
    refused(sre_triton.GMRConv2d(3, 4, 7), state, '"mus" must be the ring numbers 0 to 3, got ')


@pytest.mark.parametrize("kind", ["SRE", "GMR"])
def test_refusal_names_the_buffer_with_its_prefix(kind: str) -> None:
    package = sre_conv_package() if kind == "SRE" else gmr_conv_package()
    state = Network(getattr(package, f"{kind}_Conv2d")).state_dict()
    state["layers.first.0.weight_index_mat"] = state["layers.first.0.weight_index_mat"].flip(2)
    network = Network(getattr(sre_triton, f"{kind}Conv2d"))
    refused(network, state, r'"layers\.first\.0\.weight_index_mat" is not the one-hot map')


def test_a_refused_checkpoint_of_a_trained_map_would_have_been_wrong() -> None:
    """Why it is refused: the reference's layer is no longer symmetric."""
    source = peer("SRE", 2, 1, 1, 7, padding=3)
    with torch.no_grad():
        source.weight_index_mat.copy_(torch.rand(1, 1, 4, 49))
    x = torch.randn(1, 1, 16, 16)
    assert sre_triton.equivariance_error(source, x, "rotations") > 0.1


def test_buffers_on_no_device_are_dropped() -> None:
    for kind in ("SREConv2d", "GMRConv2d"):
        layer = getattr(sre_triton, kind)(3, 4, 7, device="meta")
        state = layer.state_dict() | {"weight_index_mat": torch.empty(1, 1, 4, 49, device="meta")}
        if kind == "GMRConv2d":
            state["mus"] = torch.empty(1, 4, device="meta")
        layer.load_state_dict(state, assign=True)
        state["weight_index_mat"] = torch.empty(1, 1, 4, 25, device="meta")
        with pytest.raises(RuntimeError, match=r"weight_index_mat.* has shape"):
            layer.load_state_dict(state, assign=True)
