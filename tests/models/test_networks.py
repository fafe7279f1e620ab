"""What the networks take and give: arguments, counts, features, and the life of an ordinary PyTorch module."""

from __future__ import annotations

import copy
import inspect
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sre_triton
from sre_triton import models
from sre_triton.layers import RingConvNd
from sre_triton.models import entry, get_model, list_models
from tests.models.networks import PLAIN_NETWORKS, RESNETS, RING_NETWORKS, as_if_trained, image, small

PAPER: dict[str, Any] = {"sre_conv_size": [9, 9, 5, 5], "num_classes": 9}


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def tiny(name: str) -> tuple[int, ...]:
    return (16,) if entry(name).ndim == 2 else (6,)


# Names, counts and arguments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "count"),
    [
        ("sre_resnet18", PAPER, 3_996_105),
        ("sre_resnet18", {"num_classes": 9}, 2_628_041),
        ("sre_resnet34", PAPER, 7_517_897),
        ("sre_resnet50", PAPER, 16_128_457),
        ("gmr_resnet18", {**PAPER, "num_classes": 10}, 3_996_685),
        ("sre_r3d_18", {"sre_conv_size": 5, "num_classes": 11, "in_channels": 1}, 3_849_227),
        ("sre_unet", {}, 274_306),
    ],
)
def test_parameter_counts(name: str, options: dict[str, Any], count: int) -> None:
    assert parameters(get_model(name, device="meta", **options)) == count


@pytest.mark.parametrize(
    ("ring", "plain"), [("sre_unet", "plain_unet"), ("gmr_unet", "plain_unet"), ("sre_unet_3d", "plain_unet_3d")]
)
def test_the_plain_twin_of_a_u_net_differs_in_its_convolutions_alone(ring: str, plain: str) -> None:
    ours, theirs = small(ring), small(plain)
    conv = nn.Conv3d if ring.endswith("3d") else nn.Conv2d
    x, shapes = image(ring, *(12, 9, 8)[: entry(ring).ndim]), []
    for network in (ours, theirs):
        seen: list[tuple[str, torch.Size]] = []
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _, __, y, name=name, seen=seen: seen.append((name, y.shape)))
        network(x)
        shapes.append(seen)
    assert shapes[0] == shapes[1]  # the same modules, called in the same order, at the same resolutions and channels
    for name, module in ours.named_modules():
        other = theirs.get_submodule(name)
        if isinstance(module, RingConvNd):
            assert type(other) is conv
            assert (other.in_channels, other.out_channels) == (module.in_channels, module.out_channels)
        elif name:
            assert type(other) is type(module)


def test_a_plain_twin_is_torchvision_s_network_but_for_its_stem() -> None:
    with_stem_of_7 = parameters(models.resnet18(stem_size=7, device="meta"))
    assert with_stem_of_7 == 11_689_512
    assert parameters(models.resnet50(stem_size=7, device="meta")) == 25_557_032
    assert parameters(models.resnet50(stem_size=7, groups=32, width_per_group=4, device="meta")) == 25_028_904


def test_names() -> None:
    wanted = {"sre_resnet18", "sre_resnet34", "sre_resnet50", "sre_resnet101", "gmr_resnet18", "gmr_resnet34"}
    wanted |= {"gmr_resnet50", "sre_r3d_18", "sre_r3d_34", "gmr_r3d_18"}
    for name in wanted:
        assert getattr(sre_triton, name) is getattr(models, name) is entry(name).build
    assert wanted < set(list_models()) == {*RING_NETWORKS, *PLAIN_NETWORKS}
    assert sre_triton.SREUNet is models.SREUNet
    assert sre_triton.GMRUNet is models.GMRUNet
    with pytest.raises(ValueError, match="there is no network 'sre_resnet19'; there are gmr_r3d_18, "):
        get_model("sre_resnet19")


def test_reference_defaults() -> None:
    network = models.sre_resnet18(device="meta")
    assert network.fc.out_features == 1000
    assert network.conv1.kernel_size == (5, 5)
    assert network.layer1[0].conv1.kernel_size == network.layer4[1].conv2.kernel_size == (3, 3)
    assert isinstance(network.maxpool, sre_triton.CenteredMaxPool2d)
    assert isinstance(models.gmr_resnet18(device="meta").maxpool, sre_triton.CenteredAvgPool2d)
    volume = models.sre_r3d_18(device="meta")
    assert volume.fc.out_features == 400
    assert volume.conv1.kernel_size == (3, 3, 3)
    assert isinstance(volume.maxpool, nn.Identity)


@pytest.mark.parametrize("name", list_models())
def test_unknown_arguments_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'sre_conv_sizes'"):
        get_model(name, sre_conv_sizes=5)


def test_constructors_take_no_others() -> None:
    for network in (models.ResNet, models.SREUNet, models.GMRUNet):
        kinds = {p.kind for p in inspect.signature(network).parameters.values()}
        assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sre_resnet18", {"sre_conv_size": [3, 5]}, r"sre_conv_size must be one value or 4, got \[3, 5\]"),
        ("sre_resnet18", {"sre_conv_size": 4}, "size of a convolution must be odd and positive, got 4"),
        ("sre_resnet18", {"num_rings": [2, 2]}, r"num_rings must be one value or 4, got \[2, 2\]"),
        ("sre_resnet18", {"groups": 2}, "groups and width_per_group are for networks of bottleneck blocks"),
        ("sre_resnet18", {"pooling": "odd"}, "pooling must be one of 'centered', 'reference', got 'odd'"),
        ("sre_resnet18", {"global_pool": "sum"}, "global_pool must be 'avg' or 'max', got 'sum'"),
        ("sre_resnet18", {"in_channels": 0}, "in_channels must be positive, got 0"),
        ("sre_resnet18", {"num_classes": -1}, "num_classes must not be negative, got -1"),
        ("resnet18", {"num_rings": 2}, "num_rings=2 is for ring convolutions"),
        ("resnet18", {"antialias": True}, "antialias=True is for ring convolutions"),
        ("sre_unet", {"features": (32,)}, r"features must be two positive ints or more.*got \(32,\)"),
        ("sre_unet", {"features": 4}, "features must be two positive ints or more.*got 4"),
        ("sre_unet", {"features": (4, 0)}, r"features\[1\] must be positive, got 0"),
        ("sre_unet", {"out_channels": 0}, "out_channels must be positive, got 0"),
        ("sre_unet", {"sre_conv_size": (9, 9)}, r"sre_conv_size must be one value or 4, got \(9, 9\)"),
    ],
)
def test_values_that_make_no_network(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_model(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sre_resnet18", {"num_classes": "2"}, "num_classes must be an int, got '2'"),
        ("sre_resnet18", {"inplanes": 8.0}, r"inplanes must be an int, got 8\.0"),
        ("sre_resnet18", {"norm_layer": "batch"}, "norm_layer must make a normalisation of so many .*, got 'batch'"),
        ("sre_unet", {"features": (4, "8")}, r"features\[1\] must be an int, got '8'"),
    ],
)
def test_kinds_that_make_no_network(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        get_model(name, **options)


def test_features_may_be_an_array() -> None:
    assert models.SREUNet(features=np.array([2, 4]), sre_conv_size=3).depth == 1


def test_dimensions_that_no_network_has() -> None:
    with pytest.raises(ValueError, match="2 or 3 spatial dimensions, got 1"):
        models.SREUNet(1)


def test_arguments_arrive() -> None:
    network = small("sre_resnet18", num_rings=[None, 3, 2, 2], in_channels=2, antialias=True, dropout_p=0.25)
    assert [block.conv2.num_rings for block in (network.layer1[0], network.layer2[0], network.layer4[1])] == [5, 3, 2]
    assert network.conv1.in_channels == 2
    assert all(m.antialias for m in network.modules() if isinstance(m, sre_triton.SREConv2d))
    assert network.dropout.p == 0.25
    grouped = small("sre_resnet50", groups=4, width_per_group=32)
    assert grouped.layer1[0].conv2.groups == 4
    assert grouped.layer1[0].conv2.in_channels == 8 * 32 // 64 * 4
    normed = small("sre_resnet18", norm_layer=partial(nn.GroupNorm, 4), dtype=torch.float64)
    assert isinstance(normed.layer1[0].bn1, nn.GroupNorm)
    assert {p.dtype for p in normed.parameters()} == {torch.float64}


def test_residual_branches_that_start_at_zero() -> None:
    for name in ("sre_resnet18", "sre_resnet50"):
        network = small(name, zero_init_residual=True)
        assert all(block.last_norm.weight.eq(0).all() for block in network.layer2)
        assert network.layer2[0].bn1.weight.eq(1).all()


def test_rings_are_drawn_by_the_fan_out_of_the_dense_kernel() -> None:
    network = models.sre_resnet18(**PAPER)
    for module, size in ((network.layer1[0].conv2, 9), (network.layer4[1].conv1, 5)):
        std = (2 / (module.out_channels * size**2)) ** 0.5
        assert abs(module.weight.std().item() / std - 1) < 0.05


def test_the_classifier_of_a_unet_starts_with_small_logits() -> None:
    logits = models.SREUNet().train()(torch.randn(2, 3, 48, 48))
    assert logits.std() < 1


# What comes out ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RESNETS)
def test_features_and_head(name: str) -> None:
    network, x = small(name), image(name, *tiny(name), batch=2)
    with torch.no_grad():
        features = network.forward_features(x)
        assert torch.equal(network.forward_head(features), network(x))
        pooled = network.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, network.num_features)
        maps = small(name, features_only=True).eval()(x)
    assert [m.shape[1] for m in maps] == [info["num_chs"] for info in network.feature_info]
    assert [m.shape[-1] for m in maps] == [-(-x.shape[-1] // info["reduction"]) for info in network.feature_info]


def test_features_are_the_last_maps_of_the_same_network() -> None:
    whole, maps = small("sre_resnet18"), small("sre_resnet18", features_only=True)
    missing = maps.load_state_dict(whole.state_dict(), strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == ([], ["fc.weight", "fc.bias"])
    x = image("sre_resnet18", 21)
    assert torch.equal(maps(x)[-1], whole.forward_features(x))


def test_classifier_and_global_pooling() -> None:
    network, x = small("sre_resnet18"), image("sre_resnet18", 16)
    features = network.forward_features(x)
    assert torch.equal(network.forward_head(features), network.fc(features.mean((2, 3))))
    network.reset_classifier(3, "max")
    assert torch.equal(network(x), network.get_classifier()(features.amax((2, 3))))
    network.reset_classifier(0)
    assert torch.equal(network(x), features.amax((2, 3)))
    assert small("sre_resnet18", num_classes=0)(x).shape == (1, network.num_features)


def test_stem_pooling_halves_the_map() -> None:
    x = image("sre_resnet18", 33)
    assert small("sre_resnet18", skip_first_maxpool=False).forward_features(x).shape[-1] == 3
    assert small("sre_resnet18").forward_features(x).shape[-1] == 5
    assert small("sre_resnet18", stem_stride=2).forward_features(x).shape[-1] == 3


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (17, 24)])
def test_unets_keep_every_size(size: tuple[int, int]) -> None:
    assert small("sre_unet")(image("sre_unet", *size)).shape == (1, 2, *size)


# The life of a module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RING_NETWORKS)
def test_a_training_step_lowers_the_loss_and_keeps_the_keys(name: str) -> None:
    # Small maps leave so few pixels to a batch statistic that the loss is steep: a tiny step, which float64 can see.
    network = small(name).train().double()
    keys = list(network.state_dict())
    x = image(name, 32 if entry(name).ndim == 2 else 10, batch=4).double()
    y = network(x)
    target = torch.randint(0, y.shape[1], (4, *y.shape[2:]))
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-8)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(network(x), target)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    network.eval()(x)
    assert list(network.state_dict()) == keys


@pytest.mark.parametrize("name", ["sre_resnet18", "gmr_resnet50", "sre_r3d_18", "gmr_unet"])
def test_channels_last(name: str) -> None:
    network, x = as_if_trained(small(name)), image(name, *tiny(name))
    layout = torch.channels_last if entry(name).ndim == 2 else torch.channels_last_3d
    expected = network(x)
    actual = network.to(memory_format=layout)(x.contiguous(memory_format=layout))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["sre_resnet18", "gmr_resnet18", "sre_r3d_18", "sre_unet"])
def test_autocast(name: str) -> None:
    network, x = small(name).train(), image(name, *tiny(name), batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(x)
    y.float().square().mean().backward()
    assert y.dtype == torch.bfloat16
    assert all(p.dtype == p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("name", ["sre_resnet18", "gmr_resnet50", "sre_r3d_18", "sre_unet"])
def test_gradient_checkpointing_changes_nothing_but_memory(name: str) -> None:
    x = image(name, *tiny(name), batch=2)
    plain = small(name).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    kept = []
    for network in (plain, saving):
        sizes: list[int] = []

        def pack(t: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            loss = network(x).square().mean()
        loss.backward()
        kept.append(sum(sizes))
    assert kept[1] < kept[0]
    for a, b in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)
    # Running statistics included: a second forward pass must not count the batch twice.
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(saving.state_dict()[key], value, msg=key)
    saving.set_grad_checkpointing(False)
    assert not saving.grad_checkpointing


def test_copies_and_pickles() -> None:
    for name in ("sre_resnet18", "gmr_unet"):
        network, x = small(name), image(name, 16)
        for other in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
            assert torch.equal(other(x), network(x))


@pytest.mark.parametrize("name", ["sre_resnet18", "sre_unet"])
def test_compiles_without_graph_breaks(name: str) -> None:
    torch._dynamo.reset()
    network, x = as_if_trained(small(name)), image(name, *tiny(name))
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    assert torch.equal(compiled(x), network(x))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", RING_NETWORKS)
def test_every_network_compiles_for_training(name: str, dynamic: bool, request: pytest.FixtureRequest) -> None:
    if dynamic and "r3d" in name:
        # Inductor cannot compare strides that are cubes of a size. Strict, so that its mending is noticed.
        reason = "PyTorch: nn.Conv3d behind nn.AvgPool3d fails as well"
        error = torch._inductor.exc.InductorError
        request.applymarker(pytest.mark.xfail(strict=True, raises=error, reason=reason))
    torch._dynamo.reset()
    # In float64: normalisation over a batch of two makes float32 gradients of some networks wrong by a tenth.
    network = small(name, dtype=torch.float64).train()
    x = image(name, *tiny(name), batch=2, dtype=torch.float64)
    other = copy.deepcopy(network)
    compiled = torch.compile(other, fullgraph=True, dynamic=dynamic)
    for n, y in ((network, network(x)), (other, compiled(x))):
        y.square().mean().backward()
        assert all(p.grad is not None for p in n.parameters())
    largest = {key: p.grad.abs().max().item() for key, p in network.named_parameters()}
    # Biases in front of a normalisation have no gradient but what is rounded of the largest ones.
    rounding = 1e-14 * max(largest.values())
    for (key, a), b in zip(network.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-8 * largest[key] + rounding, msg=key)


# Folding of normalisations ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", list_models())
def test_fusing_changes_the_logits_by_rounding(name: str) -> None:
    network, x = as_if_trained(small(name, dtype=torch.float64)), image(name, *tiny(name), dtype=torch.float64)
    before = copy.deepcopy(network.state_dict())
    fused = network.fuse()
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in fused.modules())
    expected = network(x)
    assert (fused(x) - expected).norm() < 1e-12 * expected.norm()
    assert not fused.training
    # The network itself is as it was.
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert before.keys() == network.state_dict().keys()


def test_fusing_keeps_the_rings_and_the_symmetry() -> None:
    fused = as_if_trained(small("gmr_resnet18")).fuse()
    assert fused.layer1[0].conv2.weight.shape == (8, 8, 5)
    assert fused.layer1[0].conv2.bias is not None
    assert sre_triton.equivariance_error(fused, image("gmr_resnet18", 19)) < 1e-4


def test_fusing_is_for_inference() -> None:
    with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
        small("sre_resnet18").train().fuse()


def test_fusing_leaves_other_normalisations() -> None:
    network = small("sre_resnet18", norm_layer=partial(nn.GroupNorm, 4))
    x = image("sre_resnet18", 16)
    assert torch.equal(network.fuse()(x), network(x))


def test_folding_one_layer() -> None:
    norm = nn.BatchNorm2d(4, affine=False).eval()
    norm.running_mean.normal_()
    conv = sre_triton.SREConv2d(3, 4, 5)
    x = torch.randn(1, 3, 9, 9)
    expected = norm(conv(x))
    models.fold_batch_norm(conv, norm)
    torch.testing.assert_close(conv(x), expected)
    for transposed in (sre_triton.SREConvTranspose2d(4, 4, 5, groups=2), nn.ConvTranspose2d(4, 4, 2, 2, groups=4)):
        y = torch.randn(1, 4, 9, 9)
        expected = norm(transposed(y))
        models.fold_batch_norm(transposed, norm)
        torch.testing.assert_close(transposed(y), expected)
    with pytest.raises(TypeError, match="conv must be a convolution, got Linear"):
        models.fold_batch_norm(nn.Linear(3, 4), norm)
    with pytest.raises(ValueError, match="no running statistics"):
        models.fold_batch_norm(conv, nn.BatchNorm2d(4, track_running_stats=False))
