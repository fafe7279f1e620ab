"""State dicts of the reference packages' networks load as they are and give the same logits."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sre_triton import models
from sre_triton.models import load_reference_checkpoint
from tests.models.networks import as_if_trained, image
from tests.reference_networks import reference_network

SIZES = [9, 9, 5, 5]
# Name, arguments of the reference and ours where they are called otherwise, input size.
PEERS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "sre_resnet18": ({"sre_conv_size": SIZES, "skip_first_maxpool": True}, (3, 32, 32)),
    "sre_resnet34": ({"sre_conv_size": 3, "skip_first_maxpool": True, "inplanes": 16}, (3, 32, 32)),
    "sre_resnet50": ({"sre_conv_size": SIZES, "skip_first_maxpool": True, "inplanes": 16}, (3, 32, 32)),
    "gmr_resnet18": ({"gmr_conv_size": SIZES, "skip_first_maxpool": True}, (3, 32, 32)),
    # The GMR networks' stem is pooled by averages, which are the same at even sizes.
    "gmr_resnet34": ({"gmr_conv_size": 3, "inplanes": 16, "in_channels": 2}, (2, 64, 64)),
    "gmr_resnet50": ({"gmr_conv_size": SIZES, "inplanes": 16, "skip_first_maxpool": True}, (3, 32, 32)),
    "sre_r3d_18": ({"sre_conv_size": 5, "in_channels": 1}, (1, 16, 16, 16)),
    "gmr_r3d_18": ({"gmr_conv_size": 3}, (3, 16, 16, 16)),
}


def pair(name: str) -> tuple[nn.Module, nn.Module, Tensor]:
    """The reference's network as if trained, ours, and an image for both."""
    theirs, shape = PEERS[name]
    ours = {key.replace("gmr_conv_size", "sre_conv_size"): value for key, value in theirs.items()}
    reference = as_if_trained(reference_network(name, num_classes=7, **theirs)).eval()
    return reference, models.get_model(name, num_classes=7, **ours).eval(), torch.randn(2, *shape)


def assert_same_logits(network: nn.Module, reference: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        expected = reference(x)
        assert (network(x) - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("name", PEERS)
def test_logits_are_those_of_the_reference(name: str) -> None:
    reference, network, x = pair(name)
    state = reference.state_dict()
    keys = list(state)
    result = network.load_state_dict(state, strict=True)
    assert result.missing_keys == result.unexpected_keys == []
    assert list(state) == keys  # the caller's dictionary is left as it was
    assert_same_logits(network, reference, x)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in reference.parameters())


@pytest.mark.parametrize("name", ["sre_resnet18", "gmr_resnet50"])
def test_keys_in_2d_are_those_of_the_reference(name: str) -> None:
    reference, network, _ = pair(name)
    constants = ("weight_index_mat", "mus")
    assert list(network.state_dict()) == [key for key in reference.state_dict() if not key.endswith(constants)]
    assert {"layer1.0.conv1.weight", "layer2.0.downsample.1.weight"} < set(network.state_dict())


def test_pooling_of_the_reference_is_reproduced_at_odd_sizes() -> None:
    options: dict[str, Any] = {"sre_conv_size": 3, "inplanes": 16}
    reference = as_if_trained(reference_network("sre_resnet18", **options)).eval()
    for pooling, same in (("reference", True), ("centered", False)):
        network = models.sre_resnet18(pooling=pooling, **options).eval()
        network.load_state_dict(reference.state_dict())
        for n in (37, 64):
            x = torch.randn(1, 3, n, n)
            error = (network(x) - reference(x)).norm() / reference(x).norm()
            assert (error.item() < 1e-5) is same


# The 3-D networks' names and their stem ---------------------------------------------------------------


def small_3d(**options: Any) -> nn.Module:
    return models.sre_r3d_18(num_classes=7, **options).eval()


def test_blocks_in_3d_may_lack_the_identity() -> None:
    reference, network, x = pair("sre_r3d_18")
    state = OrderedDict()
    for key, value in reference.state_dict().items():
        block, dot, rest = key.partition(".conv1.")
        if (dot and not block.endswith(".0")) or (block == "layer1.0" and dot):
            place, _, name = rest.partition(".")
            key = f"{block}.conv1.{int(place) - 1}.{name}"
        state[key] = value
    assert {"layer1.0.conv1.0.weight", "layer1.0.conv1.1.running_mean", "layer2.0.conv1.1.weight"} < set(state)
    network.load_state_dict(state, strict=True)
    assert_same_logits(network, reference, x)


def test_our_own_names_in_3d_load_too() -> None:
    network, other = small_3d(), small_3d()
    assert network.state_dict().keys() == models.sre_resnet18().state_dict().keys()
    other.load_state_dict(network.state_dict())
    x = image("sre_r3d_18", 8).expand(-1, 3, -1, -1, -1)
    assert torch.equal(network(x), other(x))


def test_loads_within_another_network() -> None:
    reference, network, x = pair("gmr_r3d_18")
    outer = nn.Sequential(network, nn.ReLU())
    outer.load_state_dict({f"0.{key}": value for key, value in reference.state_dict().items()})
    assert_same_logits(outer[0], reference, x)


@pytest.mark.parametrize("tap", [0, 21, 73])
def test_a_stem_that_is_no_ball_is_refused_by_name(tap: int) -> None:
    reference, network, _ = pair("sre_r3d_18")
    state = reference.state_dict()
    state["stem.0.weight_index_mat"] = state["stem.0.weight_index_mat"].clone()
    state["stem.0.weight_index_mat"][0, 0, 1, tap] += 0.5
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r'"conv1.weight_index_mat" (has shape|is not the one-hot map)'):
            network.load_state_dict(state, strict=strict)


def test_missing_and_unknown_names_are_reported() -> None:
    reference, network, _ = pair("sre_r3d_18")
    state = reference.state_dict()
    state["stem.2.weight"] = torch.zeros(1)
    del state["layer1.0.conv2.0.weight"]
    with pytest.raises(
        RuntimeError, match=r'(?s)Missing key.*"layer1.0.conv2.weight".*Unexpected key.*"stem.2.weight"'
    ):
        network.load_state_dict(state)


# Files of the training script -------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module."])
def test_reads_what_the_training_script_writes(prefix: str, tmp_path: Path) -> None:
    reference, network, x = pair("sre_resnet18")
    reference.train()  # in eval mode it would go on with the kernels that it had before the step
    optimizer = torch.optim.SGD(reference.parameters(), lr=1e-4, momentum=0.9)
    for parameter in reference.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    reference.eval()
    path = tmp_path / "best.pth"
    state = {prefix + key: value for key, value in reference.state_dict().items()}
    torch.save({"state_dict": state, "optimizer": optimizer.state_dict(), "cur_ep": 12}, path)
    checkpoint = load_reference_checkpoint(path)
    assert checkpoint["cur_ep"] == 12
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] == 1e-4
    network.load_state_dict(checkpoint["state_dict"], strict=True)
    assert_same_logits(network, reference, x)
    # The optimizer goes on where it was: parameters come in the same order.
    ours = torch.optim.SGD(network.parameters(), lr=1.0, momentum=0.9)
    ours.load_state_dict(checkpoint["optimizer"])
    assert [name for name, _ in network.named_parameters()] == [name for name, _ in reference.named_parameters()]
    buffers = [ours.state[p]["momentum_buffer"].shape for p in network.parameters()]
    assert buffers == [p.shape for p in network.parameters()]


def test_reads_a_state_dict_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(models.sre_resnet18(inplanes=8).state_dict(), path)
    checkpoint = load_reference_checkpoint(path)
    assert checkpoint["optimizer"] is checkpoint["cur_ep"] is None
    models.sre_resnet18(inplanes=8).load_state_dict(checkpoint["state_dict"])


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"state_dict": {"a": 1}}, {"state_dict": []}, [1, 2]], ids=str)
def test_other_files_are_refused_by_name(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other.pth must hold .*dict"):
        load_reference_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"abc", b"\x80\x02X", b"\x80\x02hch"])
def test_bytes_that_are_no_checkpoint(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "other.pth").write_bytes(content)
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"other.pth is not a whole checkpoint|weights_only"):
        load_reference_checkpoint(tmp_path / "other.pth")


def test_nothing_in_a_file_is_executed(tmp_path: Path) -> None:
    torch.save({"state_dict": nn.Linear(1, 1)}, tmp_path / "module.pth")
    with pytest.raises(Exception, match="weights_only"):
        load_reference_checkpoint(tmp_path / "module.pth")
