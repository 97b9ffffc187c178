"""The study of skip connections end to end at a tiny size, and its numbers against slow recomputation."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from model_state import assert_same
from recipe_jobs import CONFIGS, arguments, check_mistake, check_survives_its_file, draw_nothing, interrupted, table
from torch.nn import functional as F

from perpixel.evaluation import SegmentationScores, score_images
from perpixel.models import feature_maps, single_skip
from perpixel.report import character_chart, depth_chart
from recipes.kit.images import Images
from recipes.kit.job import run_recipe
from recipes.kit.settings import EvaluationSettings
from recipes.skip_connections.features import CachedNetwork, cache_features
from recipes.skip_connections.job import SkipStudyJob
from recipes.skip_connections.layers import BOTH, NONE, choose_arms
from recipes.skip_connections.results import Results
from recipes.skip_connections.settings import SkipStudySettings
from recipes.skip_connections.training import Trained
from recipes.training.checkpoints import load_checkpoint

TINY = {
    "data.train_images": "6",
    "data.eval_images": "4",
    "data.size": "[32,48]",
    "pretrain.epochs": "1",
    "pretrain.batch_size": "3",
    "train.epochs": "1",
    "train.batch_size": "2",
    "train.lr": "0.1",
    "seeds": "[0,1]",
    "model.options": "{backbone: mobilenet_v3_small}",
    "study.layers": "[features.3]",
    "study.fixation_images": "2",
    "study.timed_steps": "1",
    "evaluation.resamples": "100",
    "evaluation.pictures": "1",
    "evaluation.far": "4",
}
BACKBONE = "mobilenet_v3_small"
ARMS = (NONE, "features.3.add", BOTH)


def given(folder: Path, **changes: str) -> list[str]:
    return arguments({"folder": str(folder)}, TINY, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_recipe(SkipStudyJob, given(folder, study__memory="0", study__half="false")) == 0
    return folder


def head(folder: Path, arm: str, seed: int) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder / "heads" / arm / f"seed{seed}.pt")["result"]["weights"]


def rebuilt(folder: Path, arm: str, seed: int) -> torch.nn.Module:
    layers = [one.name for one in choose_arms(BACKBONE, ["features.3"])[arm][1:]]
    network = single_skip(11, backbone=BACKBONE, layer=layers)
    backbone = load_checkpoint(folder / "backbone" / "last.pt")["model"]
    kept = {name: value for name, value in backbone.items() if name.startswith("backbone.")}
    network.load_state_dict(kept | {f"head.{name}": value for name, value in head(folder, arm, seed).items()})
    return network.eval()


def test_a_run_leaves_what_it_promises(whole: Path) -> None:
    for name in ("summary.md", "index.html", "results.json", "gains.png", "character.png", "predictions.png"):
        assert (whole / name).stat().st_size > 0
    assert not (whole / "features").exists()  # kept as files only while it ran
    rows = {row["network"]: row for row in table(whole / "layers.csv")}
    assert tuple(rows) == ARMS
    assert (rows[ARMS[1]]["stride"], rows[ARMS[1]]["channels"], rows[BOTH]["channels"]) == (8, 24, 72)
    assert rows[ARMS[1]]["parameters"] == 11 * (576 + 1 + 24 + 1)
    text = (whole / "summary.md").read_text()
    assert "from 8 images and 5 seeds on" in text
    assert "times as long as on cached features" in text


def test_scores_are_those_of_the_whole_network(whole: Path) -> None:
    settings = SkipStudySettings()
    settings.data.train_images, settings.data.eval_images, settings.data.size = 6, 4, (32, 48)
    images = Images(settings.data)
    for arm, row in zip(ARMS, table(whole / "layers.csv")):
        batches = list(images.evaluation(batch_size=2, far=4.0))
        scores = [score_images(rebuilt(whole, arm, seed), batches, images.num_classes) for seed in (0, 1)]
        for name, of in (("mIoU", "miou"), ("boundary F", "boundary_f"), ("interior accuracy", "interior_accuracy")):
            assert row[name] == pytest.approx(100 * np.mean([getattr(one, of) for one in scores]), abs=0.01)


def test_heads_are_trained_as_the_network_with_a_frozen_backbone_would_be(whole: Path) -> None:
    """A plain loop over the images; every arm of a seed starts with the same score of the last map."""
    settings = SkipStudySettings()
    settings.data.train_images, settings.data.size, settings.data.eval_split = 6, (32, 48), "train"
    settings.data.eval_images = 6
    (_, images, labels, _), *_ = Images(settings.data).evaluation(batch_size=6, far=4.0)
    network = rebuilt(whole, ARMS[1], 0).requires_grad_(False)
    torch.manual_seed(1)
    start = single_skip(11, backbone=BACKBONE, layer="features.3").head
    torch.manual_seed(1)
    start.classifier.reset_parameters()
    network.head.load_state_dict(start.state_dict())
    network.head.requires_grad_(True)
    optimizer = torch.optim.AdamW(network.head.parameters(), lr=0.1, weight_decay=0.0)
    order = np.random.default_rng([1, 0]).permutation(6)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 3) ** 0.9
        places = order[2 * step : 2 * step + 2]
        optimizer.zero_grad()
        F.cross_entropy(network(images[places]), labels[places], ignore_index=255).backward()
        optimizer.step()
    for name, value in head(whole, ARMS[1], 1).items():
        torch.testing.assert_close(value, network.head.state_dict()[name], rtol=1e-3, atol=1e-3)


def test_cached_features_give_the_logits_of_the_network(tmp_path: Path) -> None:
    network = single_skip(3, layer=["layer1", "layer3"]).eval()
    torch.nn.init.normal_(network.head.skips[1].weight)
    images, labels = torch.randn(5, 3, 32, 48), torch.zeros(5, 32, 48, dtype=torch.int64)
    batches = [(torch.arange(5)[some], images[some], labels[some], None) for some in (slice(0, 3), slice(3, 5))]
    names = [one.name for one in network.head.maps]
    for half, most, tolerance in ((False, 10**9, 1e-5), (False, 0, 1e-5), (True, 0, 5e-2)):
        cached = cache_features(network, iter(batches), 5, torch.device("cpu"), half=half, where=(tmp_path / "f", most))
        logits = CachedNetwork(network.head, names, cached)(torch.tensor([4, 1]))
        torch.testing.assert_close(logits, network(images[[4, 1]]), rtol=1e-3, atol=tolerance)
        assert cached.bytes == 5 * (512 * 2 + 256 * 2 * 3 + 64 * 8 * 12) * (2 if half else 4)
        assert (tmp_path / "f").exists() == (most == 0)
        for file in (tmp_path / "f").glob("*"):
            file.unlink()
        if most == 0:
            (tmp_path / "f").rmdir()
    with torch.no_grad():
        network.backbone.get_submodule("conv1").weight.mul_(1e9)
    with pytest.raises(ValueError, match=r"expected finite features, .* Give --study.half false"):
        cache_features(network, iter(batches), 5, torch.device("cpu"), half=True, where=(tmp_path, 10**9))
    odd = [batches[0], (torch.tensor([3, 4]), images[3:, :, :16], labels[3:, :16], None)]
    with pytest.raises(ValueError, match=r"data.size: expected one size"):
        cache_features(single_skip(3).eval(), iter(odd), 5, torch.device("cpu"), half=True, where=(tmp_path, 10**9))


def scores_of(quality: float, seed: int, images: int = 10) -> SegmentationScores:
    """Of predictions that are right at a share of the pixels that differs from image to image."""
    rng = np.random.default_rng(seed)
    right = np.clip(quality + 0.05 * rng.standard_normal(images), 0, 1)
    confusion = np.stack([[[100 * r, 100 * (1 - r)], [100 * (1 - r), 100 * r]] for r in right])
    counts = torch.from_numpy(np.stack([100 * right, np.full(images, 100)], 1)).long()
    objects = torch.ones(images, 2, 3, 2, dtype=torch.float64)
    return SegmentationScores(torch.from_numpy(confusion).long(), torch.from_numpy(right), None, counts, objects)


def made_up(qualities: dict[str, float]) -> Results:
    arms = choose_arms("resnet18", ["layer1", "layer2", "layer3"])
    trained = {arm: {seed: Trained(scores_of(qualities[arm], seed), {}, 1.0) for seed in range(5)} for arm in qualities}
    evaluation = EvaluationSettings(resamples=200)
    return Results({arm: arms[arm] for arm in qualities}, trained, ("a", "b"), evaluation, {}, None)


def test_ranks_and_verdicts() -> None:
    names = ["layer1.1.relu_1", "layer2.1.relu_1", "layer3.1.relu_1"]
    results = made_up(dict(zip([NONE, *names, BOTH], (0.5, 0.6, 0.8, 0.7, 0.8))))
    assert results.best == names[1]
    assert [results.ranks[name].value for name in names] == [3, 1, 2]
    assert all(rank.low <= rank.value <= rank.high for rank in results.ranks.values())
    assert {one.verdict for some in results.gains.values() for one in some.values()} == {"helped"}
    assert results.character(names[0]) == "outline and meaning"
    assert [one.verdict for one in results.behind.values()] == ["helped", "helped"]
    assert results.against_both is not None
    assert results.against_both.verdict == "undecided"
    alike = made_up(dict(zip([NONE, *names, BOTH], (0.7, 0.7, 0.7, 0.7, 0.7))))
    assert {one.verdict for some in alike.gains.values() for one in some.values()} == {"undecided"}
    assert alike.character(names[0]) == "neither shown"
    assert [rank.high for rank in alike.ranks.values()] == [1, 1, 1]  # equal ones share the first place


def test_which_layers_are_compared() -> None:
    arms = choose_arms("vgg16", ["blocks"])
    assert [one.name for one in arms[BOTH]] == ["features.30", "features.23", "features.16"]  # pool5, pool4, pool3
    for backbone in ("resnet50", BACKBONE):
        arms = choose_arms(backbone, ["blocks"])
        assert 6 <= len(arms) - 2 <= 12
        depths = [maps[1].depth for arm, maps in arms.items() if arm not in (NONE, BOTH)]
        assert all(one <= other for one, other in pairwise(depths))
        assert {maps[1].stride for maps in list(arms.values())[1:-1]} >= {2, 4, 8, 16, 32}
    maps = feature_maps("resnet18")
    assert len(choose_arms("resnet18", ["all"])) == len(maps) - 1 + 2
    with pytest.raises(ValueError, match=r"layers: expected a layer before the last, layer4.1.relu_1"):
        choose_arms("resnet18", ["layer4"])


@pytest.mark.slow
def test_end_to_end_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)
    changes = {"study__end_to_end": "true", "seeds": "0", "study__fixation_images": "0", "train__lr": "0.001"}
    with monkeypatch.context() as patch:
        patch.setattr("recipes.skip_connections.job.Results", interrupted)
        assert run_recipe(SkipStudyJob, given(tmp_path / "run", **changes)) == 130
    states = [load_checkpoint(tmp_path / "run" / "seed0" / arm / "last.pt")["model"] for arm in ARMS]
    begun = load_checkpoint(tmp_path / "run" / "backbone" / "last.pt")["model"]
    assert not torch.equal(states[1]["backbone.features.0.0.weight"], begun["backbone.features.0.0.weight"])
    with monkeypatch.context() as patch:
        patch.setattr("recipes.training.trainer.Trainer.run", interrupted)
        assert run_recipe(SkipStudyJob, ["--resume", str(tmp_path / "run")]) == 0
    again = [load_checkpoint(tmp_path / "run" / "seed0" / arm / "last.pt")["model"] for arm in ARMS]
    for before, after in zip(states, again):
        assert_same(before, after)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["cost"] is None


def test_a_stopped_run_computes_only_what_is_missing(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    calls: list[str] = []
    monkeypatch.setattr("recipes.skip_connections.training.cache_features", lambda *_, **__: calls.append("features"))
    assert run_recipe(SkipStudyJob, ["--resume", str(whole)]) == 0
    assert calls == []
    (whole / "heads" / BOTH / "seed1.pt").unlink()
    monkeypatch.setattr("recipes.skip_connections.training.cache_features", interrupted)
    assert run_recipe(SkipStudyJob, ["--resume", str(whole)]) == 130
    assert not (whole / "features").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"study__layers": "[layer9]"}, "study.layers: expected a node of mobilenet_v3_small, got 'layer9'"),
        ({"study__layers": "[all,layer1]"}, "study.layers: expected blocks, all, or the names of nodes"),
        ({"model__options": "{backbone: resnet19}"}, "model.options.backbone: expected a classification network"),
        ({"model__name": "small_fcn"}, "model: expected single_skip with the option backbone alone"),
        ({"pretrain__epochs": "0"}, "pretrain.epochs: expected a training where no weights are given"),
        ({"train__ema": "0.9"}, "train: expected no ema"),
        ({"data__eval_images": "1"}, "data: expected at least two evaluation images"),
        ({"hardware__devices": "2"}, "hardware.devices: expected 1"),
    ],
)
def test_mistakes(changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_mistake(SkipStudyJob, given(tmp_path / "run", **changes), message, tmp_path / "run", capsys)


def test_settings_survive_their_file(tmp_path: Path) -> None:
    assert len(SkipStudySettings.matter) == 10
    check_survives_its_file(SkipStudyJob, given(tmp_path), tmp_path / "config.yaml")
    for name in ("tiny", "camvid", "clothing"):
        check_survives_its_file(SkipStudyJob, [f"--config={CONFIGS}/skip_study_{name}.yaml"], tmp_path / "config.yaml")


def test_charts_show_every_layer() -> None:
    gains = [(1.0, 0.5, 1.5), (2.0, 1.0, 3.0), (float("nan"),) * 3]
    panels = {"mIoU": gains, "boundary F": gains}
    figure = depth_chart(["a", "b", "c"], ["2", "4", "4"], panels, references={"mIoU": {"both": (2.0, 1.0, 3.0)}})
    assert [axis.get_ylabel() for axis in figure.axes] == ["mIoU", "boundary F"]
    assert [text.get_text() for text in figure.axes[-1].get_xticklabels()] == ["a", "b", "c"]
    assert [text.get_text() for text in figure.axes[0].texts] == ["2", "4"]
    with pytest.raises(ValueError, match=r"layers, groups, panels: expected equally many"):
        depth_chart(["a"], ["2", "4"], panels)
    figure = character_chart(["a", "b", "c"], gains, gains, order=[1, 2, 3], xlabel="x", ylabel="y", controls=["c"])
    assert {"a", "b"} <= {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(ValueError, match=r"names, across, up, order: expected equally many"):
        character_chart(["a"], gains, gains, order=[1], xlabel="x", ylabel="y")
