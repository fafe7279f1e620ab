"""The life of a layer: whatever is done to it, in whatever order, it computes what the dense convolution computes."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel

import sre_triton
from sre_triton import GMRConv2d, SREConv2d, SREConvTranspose2d
from sre_triton.layers import RingConvNd
from tests.oracle import BACKENDS, expand, ring_table

pytestmark = pytest.mark.filterwarnings("ignore")

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
STATE = ("weight", "bias", "log_sigmas")


class Scaled(nn.Module):
    """A parametrisation that every dtype computes exactly."""

    def forward(self, weight: Tensor) -> Tensor:
        return -2 * weight


# The truth ----------------------------------------------------------------------------------------------


def leaves(layer: RingConvNd) -> dict[str, Tensor]:
    """What the layer holds, in float64: to be differentiated with respect to."""
    named = (*layer.named_parameters(), *layer.named_buffers())
    return {name: value.detach().double().requires_grad_() for name, value in named}


def weight_of(state: dict[str, Tensor], name: str = "weight", absolute: bool = False) -> Tensor | None:
    """A tensor of a layer as its parametrisations or its pruning make it."""
    if f"{name}_orig" in state:
        return state[f"{name}_orig"] * state[f"{name}_mask"].detach()
    inner = f"parametrizations.{name}.original"
    if f"{inner}0" in state:  # weight normalisation: lengths and directions
        length, direction = state[f"{inner}0"], state[f"{inner}1"]
        norm = direction.flatten(1).norm(dim=1)[:, None, None]
        return length * direction / (norm.detach() if absolute else norm)
    if inner in state:
        return -2 * state[inner]
    return state.get(name)


def size_of(t: Tensor) -> Tensor:
    """The absolute value, with a derivative of one at 0 too, where weights are pruned."""
    return torch.where(t < 0, -t, t)


def dense(layer: RingConvNd, x: Tensor, state: dict[str, Tensor], absolute: bool = False) -> Tensor:
    """PyTorch's own convolution in float64; if absolute the sum of its terms' sizes, which roundings scale with.

    So are its derivatives then: in none of them do terms of one size and different signs meet.
    """
    weight, bias = weight_of(state, absolute=absolute), weight_of(state, "bias")
    assert weight is not None
    if absolute:
        x, weight, bias = size_of(x), size_of(weight), None if bias is None else size_of(bias)
    if isinstance(layer, GMRConv2d):
        numbers = torch.arange(layer.num_rings, dtype=torch.float64)
        widths = state["log_sigmas"].exp().clamp(1e-2, 2.0 * layer.num_rings)[:, None]
        exponent = (numbers - numbers[:, None]) ** 2 / (2 * widths**2)
        density = torch.exp(-exponent) / (widths * 2.5066)
        if absolute:
            density = density.detach() * (1 + exponent.detach() - exponent + widths.log() - widths.log().detach())
        weight = weight @ density
    k = layer.kernel_size[0]
    kernel = expand(weight, ring_table(k, 2, layer.num_rings, layer.circular, layer.antialias), k, 2)
    options = {"stride": layer.stride, "dilation": layer.dilation, "groups": layer.groups}
    if layer.transposed:
        return F.conv_transpose2d(
            x, kernel, bias, padding=layer.padding, output_padding=layer.output_padding, **options
        )
    if layer.padding_mode != "zeros":
        x = F.pad(x, [p for p in reversed(layer.padding) for _ in range(2)], mode=layer.padding_mode)
        return F.conv2d(x, kernel, bias, **options)
    return F.conv2d(x, kernel, bias, padding=layer.padding, **options)


def assert_close(found: Tensor, expected: Tensor, sizes: Tensor, dtype: torch.dtype, what: str) -> None:
    """Within some roundings of the terms, in the layer's dtype: those of the terms' factors, of sums and result."""
    assert found.dtype == dtype, what
    assert found.shape == expected.shape, what
    allowed = 8 * torch.finfo(dtype).eps * sizes + torch.finfo(dtype).tiny
    errors = (found.double() - expected).abs() / allowed
    worst = errors.max().item() if errors.numel() else 0.0
    assert worst <= 1, f"{what}: {8 * worst:.3g} roundings"


def give_directions(layer: nn.Module) -> None:
    """Weights that sums of bfloat16 made 0 get a length, without which weight normalisation has 0/0 for them."""
    parameters = dict(layer.named_parameters())
    direction = parameters.get("parametrizations.weight.original1", parameters.get("weight"))
    if direction is not None:
        with torch.no_grad():
            direction[direction.flatten(1).norm(dim=1) == 0] = 1


# Life ---------------------------------------------------------------------------------------------------


class LayerLife(RuleBasedStateMachine):
    """One layer, and everything that may be done to it. The layer is checked after every step."""

    layer: Any
    compiled: Any = None
    request: str = "auto"
    seed: int = 0

    @initialize(
        kind=st.sampled_from([SREConv2d, SREConv2d, GMRConv2d, SREConvTranspose2d]),
        kernel_size=st.sampled_from([1, 3, 5]),
        stride=st.integers(1, 2),
        padding=st.integers(0, 2),
        dilation=st.integers(1, 2),
        groups=st.integers(1, 2),
        bias=st.booleans(),
        rings=st.sampled_from([(True, False), (True, True), (False, False)]),
        padding_mode=st.sampled_from(["zeros", "zeros", "reflect", "circular"]),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 2**31),
    )
    def born(
        self, kind: Any, kernel_size: int, stride: int, padding: int, dilation: int, groups: int, bias: bool,
        rings: tuple[bool, bool], padding_mode: str, dtype: torch.dtype, seed: int,
    ) -> None:  # fmt: skip
        self.seed = seed
        torch.manual_seed(seed)
        self.layer = kind(
            2 * groups, groups, kernel_size, stride, padding, groups=groups, dilation=dilation, bias=bias,
            padding_mode="zeros" if kind is SREConvTranspose2d else padding_mode, circular=rings[0],
            antialias=rings[1], dtype=dtype,
        )  # fmt: skip
        self.parameters = sum(p.numel() for p in self.layer.parameters())

    # What it is asked for

    @property
    def dtype(self) -> torch.dtype:
        return next(self.layer.parameters()).dtype

    def input(self, batch: int | None = 2) -> Tensor:
        self.seed += 1
        size = (self.layer.in_channels, 11, 10)
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(size if batch is None else (batch, *size), generator=generator).to(self.dtype)

    @contextlib.contextmanager
    def requested(self) -> Iterator[None]:
        with sre_triton.backend(self.request):
            yield

    def check(self, layer: Any, x: Tensor, call: Any = None) -> None:
        """Output and all gradients, against the truth."""
        own = {name: p for name, p in layer.named_parameters() if p.requires_grad}
        x = x.detach().requires_grad_()
        with self.requested():
            y = (call or layer)(x)
            cotangent = torch.randn_like(y)
            found = torch.autograd.grad(y, [x, *own.values()], cotangent)
        state, exact_x = leaves(layer), x.detach().double().requires_grad_()
        exact = dense(layer, exact_x, state)
        wanted = [exact_x, *(state[name] for name in own)]
        gradients = torch.autograd.grad(exact, wanted, cotangent.double())
        sizes = dense(layer, exact_x, state, absolute=True)
        assert_close(y, exact, sizes, self.dtype, "output")
        scale = self._sizes_of_gradients(layer, x, cotangent, list(own))
        for name, gradient, truth, size in zip(("input", *own), found, gradients, scale, strict=True):
            assert_close(gradient, truth, size, self.dtype, f"gradient of {name}")

    def _sizes_of_gradients(self, layer: Any, x: Tensor, cotangent: Tensor, names: list[str]) -> list[Tensor]:
        """How large the terms of each gradient are. Those of a norm or of widths cancel: the largest scales them."""
        state, x = leaves(layer), x.detach().double().abs().requires_grad_()
        sizes = dense(layer, x, state, absolute=True)
        found = torch.autograd.grad(sizes, [x, *(state[name] for name in names)], cotangent.double().abs())
        mixed = isinstance(layer, GMRConv2d) or parametrize.is_parametrized(layer)
        factor = 4 if mixed else 1
        return [factor * (g.abs().max().expand_as(g) if i and mixed else g.abs()) for i, g in enumerate(found)]

    @invariant()
    def computes_the_dense_convolution(self) -> None:
        if not hasattr(self, "layer"):
            return
        self.check(self.layer, self.input())
        if self.compiled is not None:  # made long ago: its guards have to notice what has changed since
            with torch.no_grad(), self.requested():
                x = self.input()
                state = leaves(self.layer)
                sizes = dense(self.layer, x.double(), state, absolute=True)
                assert_close(self.compiled(x), dense(self.layer, x.double(), state), sizes, self.dtype, "compiled")

    # What is done to it

    @rule(mode=st.booleans())
    def train(self, mode: bool) -> None:
        assert self.layer.train(mode).training is mode

    @rule(request=st.sampled_from(["auto", *BACKENDS]))
    def ask_for(self, request: str) -> None:
        self.request = request

    @rule(dtype=st.sampled_from(DTYPES))
    def change_dtype(self, dtype: torch.dtype) -> None:
        self.layer.to(dtype)
        assert self.dtype == dtype

    @rule(shape=st.sampled_from([None, 0, 1, 3]), channels_last=st.booleans())
    def call(self, shape: int | None, channels_last: bool) -> None:
        x = self.input(shape)
        if channels_last and shape is not None:
            self.layer.to(memory_format=torch.channels_last)
            x = x.contiguous(memory_format=torch.channels_last)
        self.check(self.layer, x)

    @rule(assign=st.booleans())
    def to_meta_and_back(self, assign: bool) -> None:
        state = {name: value.clone() for name, value in self.layer.state_dict().items()}
        shape = self.layer(self.input()).shape
        self.layer.to("meta")
        y = self.layer(self.input().to("meta"))
        assert (y.device.type, y.shape) == ("meta", shape)
        if not assign:
            self.layer.to_empty(device="cpu")
        self.layer.load_state_dict(state, assign=assign)

    @rule(assign=st.booleans(), through_file=st.booleans())
    def load(self, assign: bool, through_file: bool) -> None:
        state = {
            name: value.clone() if name.endswith("_mask") else torch.randn_like(value)
            for name, value in self.layer.state_dict().items()
        }
        if through_file:
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        self.layer.load_state_dict(state, strict=True, assign=assign)
        for name, value in self.layer.state_dict().items():
            assert torch.equal(value, state[name]), name

    @rule()
    def refuse_another_state(self) -> None:
        state = self.layer.state_dict()
        with pytest.raises(RuntimeError, match="Unexpected key"):
            self.layer.load_state_dict({**state, "other": torch.zeros(1)})
        name = next(iter(state))
        with pytest.raises(RuntimeError, match="size mismatch"):
            self.layer.load_state_dict({**state, name: torch.zeros(7, 7, 7)})

    def _settle(self) -> None:
        """A pruned tensor that a call with gradients has made is no leaf, and PyTorch copies none."""
        with torch.no_grad():
            self.layer(self.input())

    @rule()
    def copy(self) -> None:
        self._settle()
        before, self.layer = self.layer, copy.deepcopy(self.layer)
        for ours, theirs in zip(self.layer.parameters(), before.parameters(), strict=True):
            assert torch.equal(ours, theirs)
            assert ours.data_ptr() != theirs.data_ptr() or ours.numel() == 0
        with torch.no_grad():
            for p in before.parameters():
                p.fill_(torch.nan)
        self.compiled = None

    # PyTorch pickles no parametrized module, nor one that ever had a weight norm: that leaves a local function behind.
    @precondition(
        lambda self: not parametrize.is_parametrized(self.layer) and not self.layer._load_state_dict_pre_hooks
    )
    @rule(whole=st.booleans())
    def pickle(self, whole: bool) -> None:
        self._settle()
        if whole:
            file = io.BytesIO()
            torch.save(self.layer, file)
            file.seek(0)
            self.layer = torch.load(file, weights_only=False)
        else:
            self.layer = pickle.loads(pickle.dumps(self.layer))
        self.compiled = None

    @rule()
    def compile(self) -> None:
        torch._dynamo.reset()
        self.compiled = torch.compile(self.layer, backend="eager")

    @precondition(lambda self: not parametrize.is_parametrized(self.layer) and not prune.is_pruned(self.layer))
    @rule(norm=st.booleans())
    def parametrize(self, norm: bool) -> None:
        if norm:
            give_directions(self.layer)
            parametrizations.weight_norm(self.layer)
        else:
            parametrize.register_parametrization(self.layer, "weight", Scaled())

    # PyTorch makes a buffer of a weight whose originals are frozen.
    @precondition(
        lambda self: (
            parametrize.is_parametrized(self.layer)
            and all(p.requires_grad for p in self.layer.parametrizations.parameters())
        )
    )
    @rule()
    def remove_parametrizations(self) -> None:
        parametrize.remove_parametrizations(self.layer, "weight")
        assert sum(p.numel() for p in self.layer.parameters()) == self.parameters

    @precondition(lambda self: not parametrize.is_parametrized(self.layer) and not prune.is_pruned(self.layer))
    @rule(name=st.sampled_from(["weight", "bias"]), amount=st.sampled_from([0.3, 0.5, 1.0]))
    def prune(self, name: str, amount: float) -> None:
        if getattr(self.layer, name) is not None:
            prune.l1_unstructured(self.layer, name, amount)

    @precondition(lambda self: prune.is_pruned(self.layer))
    @rule()
    def make_pruning_permanent(self) -> None:
        name = "weight" if hasattr(self.layer, "weight_orig") else "bias"
        prune.remove(self.layer, name)
        assert sum(p.numel() for p in self.layer.parameters()) == self.parameters

    @rule(which=st.sampled_from(["all", "none", "weight", "bias"]))
    def freeze(self, which: str) -> None:
        for name, p in self.layer.named_parameters():
            p.requires_grad_(not (which == "all" or which in name))

    @rule(kind=st.sampled_from([torch.optim.SGD, torch.optim.Adam]))
    def step(self, kind: Any) -> None:
        optimiser = kind(self.layer.parameters(), lr=1e-2)
        before = {name: p.detach().clone() for name, p in self.layer.named_parameters()}
        with self.requested():
            loss = self.layer(self.input()).square().mean()
            if not loss.requires_grad:
                return
            loss.backward()
        gradients = {name: p.grad for name, p in self.layer.named_parameters()}
        optimiser.step()
        for name, p in self.layer.named_parameters():
            assert (gradients[name] is not None) == p.requires_grad, name
            moves = p.requires_grad and bool(gradients[name].abs().max() > 1e-3)
            assert not torch.equal(p, before[name]) or not moves or self.dtype == torch.bfloat16, name
            if kind is torch.optim.SGD and p.requires_grad:
                terms = before[name].double(), -1e-2 * gradients[name].double()
                sizes = sum(map(torch.abs, terms)) / 4  # two roundings of the eight
                assert_close(p.detach(), sum(terms), sizes, self.dtype, f"step of {name}")
        optimiser.zero_grad()
        give_directions(self.layer)

    @rule()
    def average(self) -> None:
        self._settle()
        averaged = AveragedModel(self.layer)
        averaged.update_parameters(self.layer)
        first = {name: p.detach().clone().double() for name, p in self.layer.named_parameters()}
        with torch.no_grad():
            for p in self.layer.parameters():
                p.add_(torch.randn_like(p))
        averaged.update_parameters(self.layer)
        tolerance = 8 * torch.finfo(self.dtype).eps
        for name, p in averaged.module.named_parameters():
            middle = (first[name] + dict(self.layer.named_parameters())[name].double()) / 2
            torch.testing.assert_close(p.double(), middle, rtol=tolerance, atol=tolerance)
        give_directions(averaged.module)
        self.check(averaged.module, self.input(), averaged)
        self.layer, self.compiled = averaged.module, None

    @rule()
    def call_with_other_parameters(self) -> None:
        before = {name: p.detach().clone() for name, p in self.layer.named_parameters()}
        other = {name: torch.randn_like(p) for name, p in self.layer.named_parameters()}
        x = self.input()
        with torch.no_grad(), self.requested():
            y = torch.func.functional_call(self.layer, other, (x,))
        state = {**leaves(self.layer), **{name: value.double() for name, value in other.items()}}
        sizes = dense(self.layer, x.double(), state, absolute=True)
        assert_close(y, dense(self.layer, x.double(), state), sizes, self.dtype, "functional_call")
        for name, p in self.layer.named_parameters():
            assert torch.equal(p, before[name]), name

    @precondition(lambda self: not parametrize.is_parametrized(self.layer) and not prune.is_pruned(self.layer))
    @rule()
    def reset(self) -> None:
        self.layer.reset_parameters()

    @rule()
    def look(self) -> None:
        before = {name: value.clone() for name, value in self.layer.state_dict().items()}
        mode = self.layer.training
        assert str(self.layer.kernel_size) in repr(self.layer)
        sre_triton.explain(self.layer, self.input())
        assert self.layer.training is mode
        for name, value in self.layer.state_dict().items():
            assert torch.equal(value, before[name]), name

    def teardown(self) -> None:
        if self.compiled is not None:
            torch._dynamo.reset()


TestSample = LayerLife.TestCase
TestSample.settings = settings(max_examples=6, stateful_step_count=12, derandomize=True)


class TestMany(LayerLife.TestCase):  # type: ignore[name-defined, misc]
    settings = settings(max_examples=300, stateful_step_count=30)
    pytestmark = pytest.mark.fuzz
