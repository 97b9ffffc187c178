"""recipes.evaluate: the scores a run wrote, those of networks on other data by hand, and mistakes told in one line."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import put_mask
from finetune_runs import finetune, short
from PIL import Image
from recipe_jobs import arguments, check_not_overwritten, draw_nothing, interrupted, table

from perpixel.data import FolderSegmentation, eval_transforms
from perpixel.evaluation import SegmentationScores, compare_scores, confusion_matrices, predict_labels
from perpixel.models import small_fcn
from recipes.evaluating.job import EvaluateJob, select_examples
from recipes.evaluating.networks import find_candidates
from recipes.evaluating.results import Arm, compare_arms
from recipes.evaluating.settings import EvaluateSettings
from recipes.finetuning.job import FinetuneJob
from recipes.kit.job import run_recipe
from recipes.kit.settings import EvaluationSettings
from recipes.training.checkpoints import load_checkpoint, save_checkpoint

CLASSES = ("field", "wood", "water")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    draw_nothing(monkeypatch)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of recipes.finetune: two seeds on synthetic images."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        draw_nothing(patch)
        assert finetune(short(folder, seeds="[0,1]", data__eval_images="9", evaluation__resamples="100")) == 0
    return folder


def put_data(
    root: Path, split: str, sizes: Sequence[tuple[int, int]], values: Sequence[int], names: bool = True
) -> Path:
    noise = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / split / folder).mkdir(parents=True)
    for number, size in enumerate(sizes):
        image = noise.integers(0, 255, (*size, 3)).astype(np.uint8)
        Image.fromarray(image).save(root / split / f"images/{number}.png")
        put_mask(root / split / f"masks/{number}.png", noise.choice(values, size).astype(np.uint8))
    if names:
        (root / "classes.txt").write_text("\n".join(CLASSES))
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A test set and nothing else: images of different sizes, masks with void."""
    return put_data(tmp_path / "data", "test", [(32, 40), (36, 34), (33, 48)], [0, 1, 2, 255])


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    torch.save(small_fcn(3, width=8).state_dict(), tmp_path / "mine.pt")
    return tmp_path / "mine.pt"


def evaluate(*given: dict[str, str], **changes: str) -> int:
    return run_recipe(EvaluateJob, arguments(*given, **changes))


def of_file(checkpoint: Path, root: Path, folder: Path, **changes: str) -> list[str]:
    settings = {"model.checkpoint": str(checkpoint), "model.options": "{width: 8}", "data.name": "folder"}
    settings |= {"data.root": str(root), "data.eval_split": "test", "evaluation.resamples": "100"}
    return arguments(settings, {"folder": str(folder)}, **changes)


def printed_json(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def kept(folder: Path, part: str) -> dict[str, Any]:
    return load_checkpoint(folder / "scores" / f"{part}.pt")["result"]


def written(run: Path, part: str) -> SegmentationScores:
    found = load_checkpoint(run / part / "scores.pt")
    return SegmentationScores(**{name: found[name] for name in SegmentationScores.__dataclass_fields__})


def test_scores_on_its_own_images_are_those_the_run_wrote(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(run=str(run), folder=str(tmp_path / "all")) == 0
    lines = printed_json(capsys.readouterr().out)
    results = json.loads((tmp_path / "all/results.json").read_text())
    arms = {"control": ["seed0/control", "seed1/control"], "loss": ["seed0/loss", "seed1/loss"], "start": ["start"]}
    assert list(results["arms"]) == [line["arm"] for line in lines] == list(arms)
    for (arm, parts), line in zip(arms.items(), lines):
        for part in parts:
            now, then = kept(tmp_path / "all", part), vars(written(run, part))
            assert all(torch.equal(now[name], then[name]) for name in ("confusion", "far", "interior", "objects"))
            assert torch.equal(now["boundary"].nan_to_num(-1), then["boundary"].nan_to_num(-1))
        mean = 100 * sum(written(run, part).miou for part in parts) / len(parts)
        found = results["arms"][arm]
        assert line["miou"] == found["miou"] == found["metrics"]["mIoU"]["value"] == pytest.approx(mean)
        assert line["iou"] == found["iou"] == {name: one["value"] for name, one in found["classes"].items()}
        ious = 100 * torch.stack([written(run, part).iou for part in parts]).nanmean(0)
        known = [math.nan if value is None else value for value in line["iou"].values()]
        assert known == pytest.approx(ious.tolist(), nan_ok=True)
        rates = 100 * torch.stack([written(run, part).false_positive_rate for part in parts]).mean(0)
        assert [one["false_positive_rate"] for one in found["classes"].values()] == pytest.approx(rates.tolist())
        assert line["images"] == 9
        assert line["seeds"] == ([None] if arm == "start" else [0, 1])
        low, high = (found["metrics"]["mIoU"][end] for end in ("low", "high"))
        assert low < found["miou"] < high
    assert results["difference"] == []
    assert (tmp_path / "all/index.html").stat().st_size
    assert "accuracy far from the head" in (tmp_path / "all/summary.md").read_text()
    check_not_overwritten(EvaluateJob, arguments(run=str(run), folder=str(tmp_path / "all")), tmp_path / "all", capsys)


def test_two_arms_are_compared_and_a_start_stands_for_every_seed(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "two"
    assert evaluate(run=str(run), arm="[control,loss]", folder=str(folder), evaluation__pictures="0") == 0
    control, loss = ([written(run, f"seed{seed}/{arm}") for seed in (0, 1)] for arm in ("control", "loss"))
    expected = compare_scores(control, loss, resamples=100)
    found = json.loads((folder / "results.json").read_text())["difference"]
    assert [one["metric"] for one in found] == [one.metric for one in expected]
    assert [one["interval"]["value"] for one in found] == pytest.approx([one.interval.value for one in expected])
    assert [one["verdict"] for one in found] == [one.verdict for one in expected]
    assert "## loss against control" in (folder / "summary.md").read_text()
    seeds = [
        Arm(name, seeds, [], [control[0]] * len(seeds), (), EvaluationSettings(resamples=100))
        for name, seeds in (("a", [0, 1]), ("b", [0]), ("c", [0, 2]), ("d", [None]))
    ]
    assert compare_arms([seeds[0], seeds[1]]) == ([], "a has seeds [0, 1], b [0]")
    assert compare_arms([seeds[0], seeds[2]]) == ([], "a has seeds [0, 1], c [0, 2]")
    assert compare_arms(seeds) == ([], "")
    assert len(compare_arms([seeds[0], seeds[3]])[0]) == len(compare_arms([seeds[3], seeds[0]])[0]) == 4


def test_a_test_set_alone_of_images_of_different_sizes_by_hand(
    root: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_recipe(EvaluateJob, of_file(checkpoint, root, tmp_path / "run")) == 0
    (line,) = printed_json(capsys.readouterr().out)
    network = small_fcn(3, width=8).eval()
    network.load_state_dict(torch.load(checkpoint))
    total, shares = torch.zeros(3, 3), []
    for image, labels in FolderSegmentation(root, "test", eval_transforms()):
        with torch.no_grad():
            prediction = predict_labels(network, image[None].as_subclass(torch.Tensor))
        confusion = confusion_matrices(prediction, labels[None].as_subclass(torch.Tensor), 3)[0]
        total += confusion
        shares.append(float(confusion.diagonal().sum() / confusion.sum()))
    hits = total.diagonal()
    iou = 100 * hits / (total.sum(0) + total.sum(1) - hits)
    assert list(line["iou"].values()) == pytest.approx(iou.tolist())
    assert list(line["iou"]) == list(CLASSES)
    assert line["miou"] == pytest.approx(float(iou.mean()))
    assert line["arm"] == "mine"
    rows = table(tmp_path / "run/images.csv")
    assert [Path(row["image"]).name for row in rows] == ["0.png", "1.png", "2.png"]
    assert [row["pixel_accuracy"] for row in rows] == pytest.approx(shares, rel=1e-5)
    metrics = json.loads((tmp_path / "run/results.json").read_text())["arms"]["mine"]["metrics"]
    assert metrics["mIoU"]["low"] is None  # of three images nothing is known
    assert [row["images"] for row in table(tmp_path / "run/classes.csv")] == [3, 3, 3]


def test_a_binary_network_on_masks_of_0_and_255(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put_data(tmp_path / "data", "test", [(32, 40)] * 2, [0, 255], names=False)
    torch.save(small_fcn(1, width=8).state_dict(), tmp_path / "one.pt")
    given = of_file(tmp_path / "one.pt", root, tmp_path / "run", data__binary="true")
    assert run_recipe(EvaluateJob, given) == 0
    (line,) = printed_json(capsys.readouterr().out)
    assert list(line["iou"]) == ["background", "foreground"]


def test_what_was_scored_before_a_run_was_stopped_is_kept(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"run": str(run), "arm": "start", "evaluation.pictures": "0", "data.eval_images": "2"}
    assert evaluate(given, folder=str(tmp_path / "whole")) == 0
    with monkeypatch.context() as patch:
        patch.setattr("recipes.evaluating.job.compare_arms", interrupted)
        assert evaluate(given, folder=str(tmp_path / "run")) == 130
    with monkeypatch.context() as patch:
        patch.setattr("recipes.evaluating.job.score_images", interrupted)
        assert run_recipe(EvaluateJob, ["--resume", str(tmp_path / "run")]) == 0
    one, other = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "whole"))
    assert one == other


def test_a_folder_says_which_network_it_holds_and_what_differs_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where each arm of a run is another network; `last.pt` without scores is a training that has not ended."""
    trained = load_checkpoint(run / "start/last.pt")
    trained["model"], trained["ema"] = small_fcn(11, width=4).state_dict(), {}
    trained["origin"] |= {"model.options": {"width": 4}}
    mixed = tmp_path / "mixed"
    (mixed / "layer 3/seed0").mkdir(parents=True)
    save_checkpoint(mixed / "layer 3/seed0/last.pt", trained)
    (mixed / "config.yaml").write_text((run / "config.yaml").read_text())
    given = {"run": str(mixed), "data.size": "[40,48]", "evaluation.resamples": "100", "data.eval_images": "2"}
    assert evaluate(given, arm="layer 3", folder=str(tmp_path / "run")) == 0
    printed = capsys.readouterr().out
    assert printed_json(printed)[0]["seeds"] == [0]
    for note in (
        "note: images are brought to 40 x 48 pixels, in training to 32 x 48 pixels",
        "note: layer 3/seed0 has not been trained to its end",
    ):
        assert note in printed
        assert note[6:] in (tmp_path / "run/summary.md").read_text()


def test_arms_are_the_folders_of_a_run_without_their_seeds(tmp_path: Path) -> None:
    parts = ["start", "seed10/control", "seed2/control", "skip/conv3/seed0", "seed0", "seed1/x/seed2", "training"]
    for part in parts:
        (tmp_path / part).mkdir(parents=True)
        (tmp_path / part / "last.pt").touch()
    found = {(one.arm, one.seed, one.part) for one in find_candidates(EvaluateSettings(run=str(tmp_path)))}
    assert found == {
        ("start", None, "start"),
        ("control", 2, "seed2/control"),
        ("control", 10, "seed10/control"),
        ("skip/conv3", 0, "skip/conv3/seed0"),
        ("seed0", None, "seed0"),
        ("seed1/x/seed2", None, "seed1/x/seed2"),
        ("training", None, "training"),
    }
    seeds = [one.seed for one in find_candidates(EvaluateSettings(run=str(tmp_path), arm=["control"]))]
    assert seeds == [2, 10]


def told(given: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run_recipe(EvaluateJob, given) == 1
    line, nothing = capsys.readouterr().out.split("\n")
    assert not nothing
    return line.removeprefix("error: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"arm": "contrl"},
            "arm: expected one of control, loss, start, or a single network such as seed0/control, got c",
        ),
        ({"arm": "[loss,loss]"}, "arm: expected null, or one or more different names, got "),
        (
            {"model.name": "fcn_resnet50"},
            "model.name: expected small_fcn, as the run has it, got fcn_resnet50. Leave --m",
        ),
        (
            {"model.options": "{width: 9}"},
            "model.options: expected {'width': 8}, as the run has it, got {'width': 9}. L",
        ),
        ({"model.checkpoint": "x.pt"}, "run, model.checkpoint, model.weights: expected one of them, got "),
        ({"data.ignore_index": "254"}, "data.ignore_index: expected 255, as seed0/control of "),
        (
            {"data.eval_split": "test"},
            "data.train_split, data.eval_split: expected one of 'train', 'val', got str 'test'",
        ),
        ({"part": "start"}, "--part: expected a setting, got none of that name. "),
        ({"pretrain.epochs": "3"}, "--pretrain.epochs: expected a setting, got none of that name. "),
        ({"hardware.devices": "2"}, "hardware.devices: expected 1, got "),
    ],
)
def test_mistakes_beside_a_run_are_told_in_one_line(
    changes: dict[str, str], message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments({"run": str(run), "folder": str(tmp_path / "out")}, changes)
    assert told(given, capsys)[: len(message)] == message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.checkpoint": "null"},
            "run, model.checkpoint, model.weights: expected one of them, got none. Give --run",
        ),
        ({"arm": "control"}, "arm: expected nothing beside a single network, got "),
        ({"data.eval_split": "val"}, "data.train_split, data.eval_split: expected "),
        ({"model.options": "{width: 9}"}, "model.checkpoint: expected the network's entries, got "),
        (
            {"data.options": "{classes: [a,b,c,d]}"},
            "model.checkpoint: expected 4 classes, as the data has, got classifier.",
        ),
        ({"data.binary": "true"}, "data.binary: expected "),
    ],
)
def test_mistakes_beside_weights_are_told_in_one_line(
    changes: dict[str, str],
    message: str,
    root: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = [*of_file(checkpoint, root, tmp_path / "out"), *arguments(changes)]
    line = told(given, capsys)
    assert line[: len(message)] == message
    assert "replace_head" not in line  # nothing is trained here
    assert not (tmp_path / "out").exists()


def test_masks_of_void_alone_are_told(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = put_data(tmp_path / "void", "test", [(32, 40)], [255])
    assert run_recipe(EvaluateJob, of_file(checkpoint, root, tmp_path / "out")) == 1
    assert "error: data: expected labelled pixels in the masks, got none in 1. Void is 255: " in capsys.readouterr().out


def test_other_classes_than_those_of_the_training_are_refused(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(
        run=str(run), data__name="folder", data__root=str(root), data__eval_split="test", data__size="null"
    )
    line = told([*given, "--folder", str(tmp_path / "out")], capsys)
    assert line.startswith("data: classes: expected ['background', ")
    assert "got ['field', 'wood', 'water']" in line


def test_masks_whose_classes_nobody_names_have_those_of_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a class that the test set does not have, nothing is known; what is predicted as it is wrong."""
    part = tmp_path / "run/seed0/control"
    part.mkdir(parents=True)
    weights = {"model": small_fcn(3, width=8).state_dict(), "origin": {"data: classes": list(CLASSES)}}
    save_checkpoint(part / "last.pt", weights)
    parser = FinetuneJob.build_parser()
    given = arguments({"data.name": "folder", "data.root": str(tmp_path), "model.options": "{width: 8}"})
    (tmp_path / "run/config.yaml").write_text(parser.dump(parser.parse_args(given), skip_unset=False))
    test = put_data(tmp_path / "test", "test", [(32, 40)] * 2, [0, 1], names=False)
    changes = {"data.root": str(test), "data.eval_split": "test", "folder": str(tmp_path / "out")}
    assert evaluate({"run": str(tmp_path / "run"), "arm": "seed0/control", **changes}) == 0
    (line,) = printed_json(capsys.readouterr().out)
    assert list(line["iou"]) == list(CLASSES)
    assert line["iou"]["water"] in (0, None)
    (test / "classes.txt").write_text("sea\nsky\nsand")
    message = told(arguments({"run": str(tmp_path / "run"), **changes, "folder": str(tmp_path / "no")}), capsys)
    assert message.startswith("data: classes: expected ['field', 'wood', 'water'], as seed0/control of ")


def test_examples_are_the_median_the_best_and_the_worst_in_turns() -> None:
    right = torch.tensor([50, 90, 10, 70, 30])
    matrices = torch.zeros(6, 2, 2, dtype=torch.int64)
    matrices[:5, 0, 0], matrices[:5, 0, 1] = right, 100 - right  # the last image is all void
    scores = SegmentationScores(matrices, torch.ones(6), None)
    chosen = select_examples(scores, 9)
    assert [index for index, _ in chosen] == [0, 1, 2, 3, 4]
    assert [reason.split("\n") for _, reason in chosen[:2]] == [["typical", "50.0 % right"], ["best", "90.0 % right"]]
    assert select_examples(scores, 0) == []
