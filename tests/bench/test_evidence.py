"""The framework of the evidence, on a table of drawn vessels; no score means anything here."""

from __future__ import annotations

import dataclasses
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("lightning")
from bench.evidence import running
from bench.evidence.averaging import OverSymmetries
from bench.evidence.canonical import Canonical, CanonicalMap, direction
from bench.evidence.digit_networks import DigitNet
from bench.evidence.objects import object_f1
from bench.evidence.pages import Angles, write_page
from bench.evidence.protocol import EIGHT, EVERY_TEN, TWELVE, Evaluation, Network, Table, at_all, distinct_angles
from bench.evidence.registry import TABLES
from bench.evidence.rotated_mnist import by_own_direction
from bench.evidence.running import Runner, _told
from bench.evidence.turned_back import TurnedBack, disc, each_scored_turned_back
from sre_triton.models import registry
from sre_triton.training.data import warp
from sre_triton.training.options import SegmentOptions
from sre_triton.training.tasks.networks import classifier, segmenter

SMALL = '{"features": [2, 2], "sre_conv_size": 3}'
PLAIN = {"model_type": "monai:UNet", "model_args": '{"channels": [2, 2], "strides": [2]}'}
TABLE = Table(
    name="drawn",
    title="Drawn",
    protocol="**Data.** Drawn.",
    options=SegmentOptions(
        vessels_size=64,
        vessels_count=[1, 1, 2],
        crop_size=16,
        crops_per_image=2,
        batch_size=1,
        epochs=1,
        window_size=64,
        threads=1,
        quiet=True,
    ),
    networks=(
        Network("ring", {"model_args": SMALL}, (1e-3, 1e-2), equivariant=True),
        Network("plain", PLAIN, (1e-3, 1e-2)),
        Network("averaged", PLAIN, (1e-3, 1e-2), equivariant=True, is_averaged=True, trained_as="plain"),
        Network("longer", {**PLAIN, "crops_per_image": 4}, (1e-3, 1e-2), reading="equal time", rate_as="plain"),
    ),
    seeds=(1,),
    rate_options={"crops_per_image": 1},
    evaluations=(
        Evaluation("whole", "whole"),
        Evaluation("turned", "turned", EIGHT, {"test_crop": 16}, objects=True),
        Evaluation("back", "back", EIGHT, objects=True, disc=40),
    ),
    score="dice",
    scores=("auc",),
    comparisons=(("ring", "plain"),),
    prepare=lambda data, work: None,
    references=lambda data, work: {"whole": {"dice": 0.5}},
    photograph=lambda: torch.rand(1, 3, 80, 80),
)


def test_a_table_is_made_from_its_trainings_to_its_page_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "peak_training_memory", lambda *_: None)  # which starts processes
    said: list[str] = []
    runner = Runner(TABLE, tmp_path, tmp_path / "results", tmp_path / "work", said.append)
    runner.result(TABLE.network("ring"), 1)
    folder = tmp_path / "results" / "drawn"
    first = (folder / "ring-seed1.json").read_bytes()
    runner.everything()
    assert (folder / "ring-seed1.json").read_bytes() == first
    result = json.loads(first)
    tried = {json.loads(path.read_text())["rate"]: path for path in (folder / "rates").glob("ring-*.json")}
    scores = {rate: json.loads(path.read_text())["score"] for rate, path in tried.items()}
    assert scores[result["rate"]] == max(scores.values())
    turned = result["evaluations"]["turned"]
    assert [row["angle"] for row in turned["rows"]] == distinct_angles(EIGHT, equivariant=True)
    assert turned["images"]["dice"]["first"] != turned["images"]["dice"]["mean"]
    plain, averaged = (json.loads((folder / f"{name}-seed1.json").read_text()) for name in ("plain", "averaged"))
    assert len(plain["evaluations"]["turned"]["rows"]) == 8
    assert "object_f1" in plain["evaluations"]["back"]["rows"][0]
    assert plain["evaluations"]["back"]["rows"] != plain["evaluations"]["turned"]["rows"]
    assert len(averaged["evaluations"]["turned"]["rows"]) == 5
    assert averaged["evaluations"] != plain["evaluations"]
    assert averaged["validation"] == plain["validation"]  # of the same training
    longer = json.loads((folder / "longer-seed1.json").read_text())
    assert longer["rate"] == plain["rate"]
    assert not list((folder / "rates").glob("longer-*"))
    assert longer["options"] == {**plain["options"], "crops_per_image": 4}
    costs = json.loads((folder / "costs.json").read_text())["networks"]
    assert set(costs) == {"ring", "plain"}
    assert str(tmp_path) not in first.decode()
    page = write_page([TABLE], tmp_path / "results").read_text(encoding="utf-8")
    assert "| second observer |" in page
    assert "| network | reading | seeds | object F1 at 0° | mean |" in page.partition("### Objects: turned")[2]
    assert f"| `longer` | {costs['plain']['parameters']:,} |" in page
    errors = json.loads((folder / "symmetry.json").read_text())
    assert errors["ring-seed1"]["logits"]["rotate 90"] < 1e-5 < errors["plain-seed1"]["logits"]["rotate 90"]
    assert "| `ring` | " in page.partition("How exactly the trained networks turn")[2]
    assert f"| `ring` | equal steps | 1 | {100 * result['evaluations']['whole']['rows'][0]['dice']:.2f} |" in page
    assert (folder / "turned.svg").is_file()
    longer = dataclasses.replace(TABLE, options=dataclasses.replace(TABLE.options, crops_per_image=3))
    with pytest.raises(ValueError, match="crops_per_image 2, not 3: remove it"):
        Runner(longer, tmp_path, tmp_path / "results", tmp_path / "work").result(TABLE.network("ring"), 1)


def test_some_networks_and_seeds_can_be_made_alone(tmp_path: Path) -> None:
    runner = Runner(TABLE, tmp_path, tmp_path / "results", tmp_path / "work")
    with pytest.raises(ValueError, match="table drawn has not 2, other"):
        runner.everything(["ring", "other"], [1, 2])
    assert not list((tmp_path / "results").rglob("*.json"))


def test_objects_are_found_where_more_than_half_of_both_is_common() -> None:
    true, found = np.zeros((2, 20, 20), dtype=bool)
    true[2:6, 2:6] = true[10:14, 10:14] = true[6, 6] = True  # the last one touches the first by its corner
    found[2:6, 2:6] = True
    found[10:14, 12:16] = True  # half of each, a third of both
    assert object_f1(found, true) == 2 * 1 / (2 + 2)
    found[10:14, 10:12] = True  # 16 of 24 in common
    assert object_f1(found, true) == 1
    found[18, 18] = True
    assert object_f1(found, true) == 2 * 2 / (2 + 3)
    nothing = np.zeros_like(true)
    assert (object_f1(nothing, nothing), object_f1(nothing, true), object_f1(true, nothing)) == (1, 0, 0)


@pytest.mark.parametrize("options", [{}, {"stem_pool": "avg"}, {"stem_pool": None, "sizes": [3, 3]}])
def test_networks_of_digits_do_not_see_right_angles(options: dict[str, Any]) -> None:
    invariants = {"features": 2, "levels": 2, "convolutions": 2, "dilations": [1, 2]}
    shape = {"widths": [4, 6], "depths": [1, 1], "sizes": [5, 3]}
    network = DigitNet(num_classes=3, in_channels=1, invariants=invariants, **{**shape, **options}).double()
    x = torch.randn(4, 1, 13, 18, dtype=torch.float64)
    y = network(x)
    for turned in (x.rot90(1, (2, 3)), x.flip(3)):
        torch.testing.assert_close(network(turned), y, rtol=1e-9, atol=1e-9)
    assert y.std(dim=0).min() > 1e-3


@pytest.mark.parametrize(("shape", "side"), [({"depths": (1, 1)}, 4), ({"depths": (2, 1), "stem_pool": False}, 8)])
def test_the_steerable_rival_does_not_see_right_angles_and_is_kept_whole(shape: dict[str, Any], side: int) -> None:
    pytest.importorskip("e2cnn")
    from bench.evidence.steerable import steerable_net

    network = steerable_net(3, 1, fields=(1, 2), size=3, pooled_fields=4, **shape)
    assert len(network.blocks) == sum(shape["depths"])
    sides: set[int] = set()
    network.last.register_forward_pre_hook(lambda _, maps: sides.add(maps[0].tensor.shape[-1]))
    names = set(network.state_dict())
    x = torch.randn(2, 1, 16, 16)
    network(x)
    network.eval()
    assert set(network.state_dict()) == names
    torch.testing.assert_close(network(x.rot90(1, (2, 3))), network(x), rtol=1e-4, atol=1e-5)
    assert sides == {side}
    other = steerable_net(3, 1, fields=(1, 2), size=3, pooled_fields=4, **shape).eval()
    other.load_state_dict(network.state_dict())
    torch.testing.assert_close(other(x), network(x))


def test_the_steerable_u_net_turns_with_the_image() -> None:
    pytest.importorskip("e2cnn")
    from bench.evidence.steerable import steerable_unet

    network = steerable_unet(out_channels=3, fields=(1, 2, 2), size=3).eval()
    names = set(network.state_dict())
    x = torch.randn(2, 3, 21, 30)
    y = network(x)
    assert y.shape == (2, 3, 21, 30)
    for quarters in (1, 2):
        turned = network(x.rot90(quarters, (2, 3)))
        torch.testing.assert_close(turned, y.rot90(quarters, (2, 3)), rtol=1e-4, atol=1e-5)
    assert set(network.train().state_dict()) == names


@pytest.mark.parametrize("maps", [False, True])
def test_an_average_over_the_symmetries_turns_with_the_image(maps: bool) -> None:
    network = nn.Conv2d(1, 3, 3, padding=1) if maps else nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    x = torch.randn(2, 1, 8, 8)
    averaged = OverSymmetries(network)
    for turn in (lambda y: y.rot90(1, (2, 3)), lambda y: y.flip(2)):
        expected = turn(averaged(x)) if maps else averaged(x)
        torch.testing.assert_close(averaged(turn(x)), expected)
        assert not torch.allclose(network(turn(x)), turn(network(x)) if maps else network(x), atol=1e-3)
    torch.testing.assert_close(averaged(x).exp().sum(dim=1), torch.ones_like(averaged(x)[:, 0]))


def test_what_turns_with_its_image_answers_alike_when_it_is_turned_back() -> None:
    rows = torch.linspace(-1, 1, 65)
    spots = torch.exp(-4 * ((rows - 0.2) ** 2 + (rows[:, None] + 0.3) ** 2)).expand(1, 2, 65, 65) * torch.tensor(
        [[[[-2.0]], [[2.0]]]]
    )
    blind = nn.Conv2d(2, 2, 1)
    seeing = nn.Conv2d(2, 2, 7, padding=3)
    inside = disc((65, 65), 60)
    assert abs(inside.sum() / (torch.pi * 30**2) - 1) < 0.01
    for angle in (10.0, 90.0, 200.0):
        differences = []
        for network in (blind, seeing):
            y = network(spots).softmax(dim=1)
            back = TurnedBack(network, angle)(spots)
            assert back.shape == y.shape
            differences.append((back.exp() - y)[..., inside].abs().max())
        assert differences[0] < 2e-3 < differences[1]


class _Answers:
    """A task that answers with its network what it is shown, and has one photograph."""

    def __init__(self, network: nn.Module, mask: torch.Tensor) -> None:
        self.network, self.mask, self.description = network, mask, {"threshold": 0.5}

    def answered(self, *_: object) -> Any:
        image = torch.stack([1 - self.mask, self.mask])[None].float()
        yield self.network(20 * (image - 0.5)), self.mask, torch.ones_like(self.mask)

    def scored(self, logits: torch.Tensor, labels: torch.Tensor, field: torch.Tensor) -> dict[str, float]:
        found = logits[0].argmax(dim=0)
        return {"dice": float(2 * (found * labels).sum() / (found + labels).sum()), "pixels": float(field.sum())}


def test_answers_that_are_turned_back_are_scored_on_the_disc_alone() -> None:
    mask = torch.zeros(64, 64)
    mask[20:35, 30:42] = mask[2:9, 2:9] = 1  # one on the disc, one in a corner
    task, options = _Answers(nn.Identity(), mask), SegmentOptions()
    for angle in (0.0, 10.0, 50.0, 120.0):
        scores, table = each_scored_turned_back(task, "test", warp.Symmetry(angle), options, 50)
        assert scores["pixels"] == disc((64, 64), 50).sum()
        assert scores["dice"] > 0.97
        assert scores["object_f1"] == 1
        assert table == [scores]
    assert isinstance(task.network, nn.Identity)


def test_results_name_no_place_of_the_machine(tmp_path: Path) -> None:
    options = SegmentOptions(data=str(tmp_path / "set.csv"))
    assert _told(options, tmp_path)["data"] == "set.csv"


def test_a_network_shares_the_trainings_of_another_with_its_options_alone() -> None:
    other = Network("other", {}, (1e-3, 1e-2), trained_as="plain")
    with pytest.raises(ValueError, match="other has other options than plain"):
        dataclasses.replace(TABLE, networks=[*TABLE.networks, other])


def test_a_network_is_like_one_of_its_table() -> None:
    with pytest.raises(ValueError, match="other is like none, which the table has not"):
        dataclasses.replace(TABLE, networks=[Network("other", PLAIN, (1e-3, 1e-2), rate_as="none")], comparisons=())


def test_the_mean_is_over_36_angles_whichever_of_them_are_computed() -> None:
    values = {angle: float(angle % 90 == 0) for angle in EVERY_TEN}
    some = [Angles(angles, [values[angle] for angle in angles]) for angles in (EVERY_TEN, TWELVE, (0.0, 40.0, 90.0))]
    assert {one.mean for one in some} == {4 / 36}
    assert {one.drop for one in some} == {1.0}


def test_what_differs_by_quarter_turns_is_computed_once() -> None:
    computed = distinct_angles(TWELVE, equivariant=True)
    assert sorted(computed) == [0, 10, 20, 30, 40, 50, 60, 70, 80]
    assert at_all(TWELVE, computed, computed) == [angle % 90 for angle in TWELVE]
    assert distinct_angles(TWELVE, equivariant=False) == list(TWELVE)


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_every_network_of_a_table_is_tuned_alike(table: Table) -> None:
    assert len({len(network.rates) for network in table.networks}) == 1
    with pytest.raises(ValueError, match="as many rates"):
        dataclasses.replace(
            table, networks=[dataclasses.replace(table.networks[0], rates=(1.0,) * 9), *table.networks[1:]]
        )


CLASSES = {
    "vessels": (2, 3, 2),
    "rotated-mnist": (10, 1, 2),
    "nuclei": (2, 3, 2),
    "breastmnist": (2, 1, 2),
    "pneumoniamnist": (2, 1, 2),
    "adrenalmnist3d": (2, 1, 3),
}  # with channels and dimensions of the images


@pytest.mark.parametrize("name", CLASSES)
def test_a_protocol_tells_the_parameters_of_every_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))  # which other tests sweep
    table, about = TABLES[name], CLASSES[name]
    table.register()
    for network in table.networks:
        options = dataclasses.replace(table.options, **network.options)
        if options.model_type.startswith("steerable") and find_spec("e2cnn") is None:
            continue
        segments = isinstance(options, SegmentOptions)
        built = segmenter(options, about[0]) if segments else classifier(options, *about)
        assert f"{sum(p.numel() for p in built.parameters()):,}" in table.protocol, network.name


def test_images_are_laid_by_where_they_grow_brighter() -> None:
    steps = torch.linspace(-1, 1, 32)
    ramps = torch.stack([steps.expand(32, 32), -steps[:, None].expand(32, 32)])[:, None]  # to the right, and up
    torch.testing.assert_close(direction(ramps), torch.tensor([0.0, 90.0]))
    torch.testing.assert_close(direction(ramps + 5), torch.tensor([0.0, 90.0]), atol=1e-3, rtol=0)
    bumps = torch.exp(-8 * ((steps - 0.2) ** 2 + (steps[:, None] + 0.3) ** 2)).expand(1, 3, 32, 32)
    laid = Canonical(nn.Identity())
    for angle in (30, 90, 200):
        turned = warp.turn(bumps, angle, interpolation="bilinear")
        assert (direction(turned) - direction(bumps) - angle).remainder(360).sub(180).abs().sub(180).abs() < 0.5
        torch.testing.assert_close(*(warp.middle(laid(x), 20) for x in (turned, bumps)), atol=0.03, rtol=0)


@pytest.mark.parametrize("space", [(40, 40), (41, 30)])
def test_a_map_of_laid_images_turns_with_them(space: tuple[int, int]) -> None:
    rows, columns = (torch.linspace(-1, 1, length) for length in space)
    spots = torch.exp(-4 * ((columns - 0.3) ** 2 + (rows[:, None] + 0.2) ** 2)).expand(1, 2, *space)
    shapes: list[torch.Size] = []
    conv = nn.Conv2d(2, 3, 5, padding=2)
    conv.register_forward_pre_hook(lambda _, seen: shapes.append(seen[0].shape[2:]))
    laid = CanonicalMap(conv)
    y = laid(spots)
    assert y.shape == (1, 3, *space)
    assert min(shapes[0]) >= np.hypot(*space)
    for quarters in (1, 2, 3):
        turned = spots.rot90(quarters, (2, 3))
        torch.testing.assert_close(laid(turned), y.rot90(quarters, (2, 3)), atol=1e-4, rtol=1e-4)
        assert not torch.allclose(conv(turned), conv(spots).rot90(quarters, (2, 3)), atol=0.05)
    torch.testing.assert_close(CanonicalMap(nn.Identity())(spots), spots, atol=0.02, rtol=0)  # corners, too


def test_digits_are_laid_by_their_own_direction() -> None:
    digits = np.zeros((3, 28, 28), dtype=np.uint8)
    digits[0, 8:20, 12:15] = digits[1, 10:13, 6:22] = digits[2, 6:22, 13:16] = 200
    digits[0, 16:20, 12:20] = digits[1, 10:18, 6:10] = digits[2, 6:9, 10:19] = 200
    laid = by_own_direction(digits)
    for turns in range(4):
        assert np.abs(by_own_direction(np.rot90(digits, turns, (1, 2)).copy()).astype(int) - laid).max() <= 1
    weights = laid / laid.sum((1, 2), keepdims=True)
    x = np.arange(28) - (weights.sum(1) @ np.arange(28))[:, None]
    y = np.arange(28) - (weights.sum(2) @ np.arange(28))[:, None]
    assert ((weights.sum(1) * x**2).sum(1) > (weights.sum(2) * y**2).sum(1)).all()  # level
    assert ((weights.sum(1) * x**3).sum(1) > 0).all()  # the heavier tail to the right
