"""The fixation recipe end to end at a tiny size, and its numbers against slow recomputation."""

import json
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from recipe_jobs import (
    CONFIGS,
    arguments,
    check_mistake,
    check_survives_its_file,
    draw_nothing,
    interrupted,
    settings_of,
    table,
)
from scipy.stats import spearmanr
from torch import nn

import perpixel
from perpixel.data import SyntheticEvidence
from perpixel.fixations import Share
from perpixel.models import small_fcn
from recipes.finetuning.job import FinetuneJob
from recipes.kit.evidence import BLOSSOM, FAR, FAR_RIGHT
from recipes.kit.images import Images
from recipes.kit.job import run_recipe
from recipes.kit.settings import DataSettings
from recipes.tracing.job import FixationJob
from recipes.tracing.network import rival_logits
from recipes.tracing.settings import SHIFTS
from recipes.tracing.shares import MEAN, RANK
from recipes.training.checkpoints import load_checkpoint

TINY = {
    "data.train_images": "8",
    "data.eval_images": "6",
    "data.size": "[32,48]",
    "model.options": "{width: 8}",
    "pretrain.epochs": "2",
    "pretrain.batch_size": "4",
    "measure.resamples": "100",
    "measure.far": "6",
    "measure.view": "null",
    "measure.random_seeds": "[0,1]",
    "measure.units": "8",
    "measure.batch_size": "2",
    "picture.image": "1",
    "picture.frames": "2",
    "picture.most": "1",
}
FILES = ["config.yaml", "flow.gif", "summary.md", "index.html", "results.json"]
FILES += [f"{name}.csv" for name in ("shares", "findings", "counts", "evidence")]
FILES += [f"{name}.png" for name in ("fixations", "density", "flow", "shares", "shifts", "counts", "evidence")]


def given(folder: Path, **changes: str) -> list[str]:
    return arguments({"folder": str(folder)}, TINY, **changes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of everything, with a network trained on the way."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert run_recipe(FixationJob, given(folder)) == 0
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of recipes.finetune."""
    folder = tmp_path_factory.mktemp("runs") / "trained"
    shared = {k: v for k, v in TINY.items() if k.split(".")[0] in ("data", "model", "pretrain")}
    changes = {"pretrain__epochs": "0", "train__epochs": "1", "train__batch_size": "4"}
    changes |= {"evaluation__resamples": "100", "evaluation__pictures": "0"}
    assert run_recipe(FinetuneJob, arguments({"folder": str(folder)}, shared, **changes)) == 0
    return folder


def network_of(folder: Path) -> nn.Module:
    network = small_fcn(11, width=8)
    network.load_state_dict(load_checkpoint(folder / "network" / "last.pt")["model"])
    return network.eval()


@pytest.mark.slow
def test_the_folder_holds_what_was_promised(whole: Path) -> None:
    assert [name for name in FILES if not (whole / name).stat().st_size] == []
    for name in (f for f in FILES if f.endswith(".png")):
        picture = np.asarray(Image.open(whole / name).convert("RGB"))
        assert min(picture.shape[:2]) > 150
        assert picture.std() > 5
    with Image.open(whole / "flow.gif") as animation:
        assert animation.n_frames == 2
        frames = []
        for number in range(2):
            animation.seek(number)
            frames.append(np.asarray(animation.convert("RGB"), int))
    assert all(np.abs(a - b).sum() for a, b in pairwise(frames))
    summary = (whole / "summary.md").read_text()
    for heading in (
        "## Does the mass lie on the obj",
        "## The three",
        "## How many",
        "## Does the mass lie on what",
        "## What this",
    ):
        assert heading in summary
    assert "nan" not in summary
    assert "a training of 2 epochs" in summary
    assert not list(whole.rglob(".*writing"))
    results = json.loads((whole / "results.json").read_text())
    assert {"network", "image", "shares", "counts", "evidence"} <= set(results)


@pytest.mark.slow
def test_shares_are_those_of_a_loop_over_images_and_points(whole: Path) -> None:
    network = network_of(whole)
    images = Images(DataSettings(train_images=8, eval_images=6, size=(32, 48)))
    mass, on, chance = (np.zeros((3, 11)) for _ in range(3))
    hits, predicted_as, truly, seen = (np.zeros(11) for _ in range(4))
    for _, image, labels, _ in images.evaluation(batch_size=1, far=0.0):
        found = network(image).argmax(1)
        for c in range(11):
            hits[c] += int(((found == c) & (labels == c)).sum())
            predicted_as[c] += int((found == c).sum())
            seen[c] += bool((found == c).any())
            truly[c] += int((labels == c).sum())
        for row, shift in enumerate(SHIFTS):
            fix = perpixel.fixations(network, image, shift=shift)
            share = fix.inside(labels)[0]
            for c in range(11):
                held = sum(float(m) for p, m in zip(fix.points, fix.mass) if int(p[1]) == c)
                mass[row, c] += held
                on[row, c] += held * float(share[c]) if held else 0.0
                chance[row, c] += held * int((labels == c).sum()) / labels.numel()
    rows = {(r["shift"], r["class"]): r for r in table(whole / "shares.csv")}
    assert len(rows) == 33
    for number, shift in enumerate(SHIFTS):
        for c, name in enumerate(images.classes):
            row = rows[shift, name]
            assert row["pixels"] == pytest.approx(mass[number, c], abs=1e-6)
            if mass[number, c] == 0:
                assert np.isnan(row["on_object_percent"])
                continue
            assert row["on_object_percent"] == pytest.approx(100 * on[number, c] / mass[number, c], rel=1e-5)
            assert row["chance_percent"] == pytest.approx(100 * chance[number, c] / mass[number, c], rel=1e-5)
            assert row["start_on_object_percent"] == pytest.approx(100 * hits[c] / predicted_as[c], rel=1e-5)
            assert row["iou_percent"] == pytest.approx(100 * hits[c] / (predicted_as[c] + truly[c] - hits[c]), rel=1e-5)
            if chance[number, c]:
                assert row["times_chance"] == pytest.approx(on[number, c] / chance[number, c], rel=1e-5)
        known = [c for c in range(11) if seen[c] > 1]
    finding = {(r["what"], r["shift"]): r for r in table(whole / "findings.csv")}
    mean = np.mean([100 * on[0, c] / mass[0, c] for c in known])
    assert finding[MEAN, "full"]["value"] == pytest.approx(mean, rel=1e-5)
    if len(known) > 2:
        iou = [hits[c] / (predicted_as[c] + truly[c] - hits[c]) for c in known]
        ranked = finding[f"{RANK}, mass on the object", "full"]
        expected = spearmanr(iou, [on[0, c] / mass[0, c] for c in known]).statistic
        assert ranked["value"] == pytest.approx(expected, rel=1e-5)
        assert ranked["classes"] == len(known)


@pytest.mark.slow
def test_evidence_is_that_of_a_loop_over_creatures(whole: Path) -> None:
    network = network_of(whole)
    data = SyntheticEvidence(6, split="val", size=(32, 48))
    images = Images(DataSettings(train_images=8, eval_images=6, size=(32, 48)))
    rivals = {a: b for p in data.pairs for a, b in ((p.first, p.second), (p.second, p.first))}
    asked = {"class": network, "rival": rival_logits(network, rivals)}
    for question, followed in asked.items():
        mass = on = pixels = expected = 0.0
        for index, image, _, _ in images.evaluation(batch_size=1, far=0.0):
            sample = data[int(index)]
            for number in range(1, int(sample.instances.max()) + 1):
                own = sample.instances == number
                if not own.any() or not 1 <= int(sample.labels[own][0]) <= 6:
                    continue
                head = own & sample.evidence
                heads = head.nonzero().double()
                start = torch.full((32, 48), -1)
                for y, x in own.nonzero().tolist() if len(heads) else ():
                    if float((heads - torch.tensor([y, x])).norm(dim=1).min()) >= 6:
                        start[y, x] = int(sample.labels[own][0])
                fix = perpixel.fixations(followed, image, start=start[None])
                pixels += int((start >= 0).sum())
                for (_, _, _, y, x), m in zip(fix.points.tolist(), fix.mass.tolist()):
                    mass, on = mass + m, on + m * bool(head[y, x])
                    expected += m * int(head.sum()) / (32 * 48)
        row = next(
            r
            for r in table(whole / "evidence.csv")
            if (r["network"], r["question"], r["pixels_asked"]) == ("trained", question, FAR)
        )
        assert row["pixels"] == pixels > 50
        assert row["on_evidence_percent"] == pytest.approx(100 * on / mass, rel=1e-5)
        assert row["chance_percent"] == pytest.approx(100 * expected / mass, rel=1e-5)
        assert row["times_chance"] == pytest.approx(on / expected, rel=1e-5)
    kinds = {(r["network"], r["pixels_asked"]) for r in table(whole / "evidence.csv")}
    assert {("trained", BLOSSOM), ("random weights", BLOSSOM), ("random weights", FAR)} <= kinds
    assert ("random weights", FAR_RIGHT) not in kinds  # whose labels mean nothing


@pytest.mark.slow
def test_stopped_run_continues_with_what_it_measured(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    for name in ("shares.csv", "evidence.csv", "summary.md", "measured/evidence-random-weights-1.pt"):
        (folder / name).unlink()
    damaged = folder / "measured" / "counts.pt"
    damaged.write_bytes(damaged.read_bytes()[:-30])
    (folder / "config.yaml").write_text((folder / "config.yaml").read_text().replace(str(whole), str(folder)))

    with monkeypatch.context() as patch:
        patch.setattr("recipes.tracing.evidence.measure_evidence", interrupted)
        assert run_recipe(FixationJob, ["--resume", str(folder)]) == 130
    printed = capsys.readouterr().out
    assert "damaged result" in printed
    assert f"python -m recipes.fixations --resume {folder}" in printed
    monkeypatch.setattr("recipes.tracing.shares.measure_shares", interrupted)  # measured already
    assert run_recipe(FixationJob, ["--resume", str(folder)]) == 0
    for name in ("shares.csv", "counts.csv", "evidence.csv", "findings.csv", "summary.md"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_finetuning_run_brings_its_data_and_model(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_nothing(monkeypatch)
    folder, picture = tmp_path / "run", tmp_path / "seen.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(picture)
    options = [f"--run={trained}", f"--folder={folder}", "--do=[image,shares]", f"--picture.image={picture}"]
    options += ["--part=seed0/loss", "--measure.resamples=100", "--measure.images=3", "--picture.backdrop=outlines"]
    options += ["--trace.question=rival", "--trace.k=0.5", "--picture.frames=3"]
    assert run_recipe(FixationJob, options) == 0
    printed = capsys.readouterr().out
    assert f"seed0/loss of {trained}" in printed
    assert "seen.png" in (folder / "summary.md").read_text()
    assert not (folder / "network").exists()
    assert not (folder / "counts.csv").exists()
    assert {r["images"] for r in table(folder / "findings.csv")} == {3}
    config = (folder / "config.yaml").read_text()
    assert "width: 8" in config
    assert "eval_images: 6" in config
    options = [f"--run={trained}", f"--folder={tmp_path / 'no'}", "--part=seed7/loss"]
    check_mistake(FixationJob, options, "part: expected one of", tmp_path / "no", capsys)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"run": "/nowhere"}, "run: expected a run folder, got /nowhere, not there"),
        ({"picture__image": "99"}, "picture.image: expected below 6"),
        ({"picture__image": "/nowhere.png"}, "picture.image: expected an image file"),
        ({"picture__classes": "[dragonfly]"}, "picture.classes: expected names among background"),
        ({"trace__rivals": "{viper: dragonfly}", "trace__question": "rival"}, "trace.rivals: expected names among"),
        ({"trace__rules": "seg-unravel", "trace__select": "element"}, "select: expected 'channel'"),
        ({"trace__k": "2.5"}, "trace.k: expected a whole number"),
        ({"trace__k": "0"}, "trace.k: expected"),
        ({"measure__images": "1"}, "measure.images: expected"),
        ({"measure__random_seeds": "[1,1]"}, "measure.random_seeds: expected one or more different integers"),
        ({"do": "[]"}, "do: expected at least one"),
        ({"hardware__devices": "2"}, "hardware.devices: expected 1"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(
    changes: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    check_mistake(FixationJob, given(folder, **changes), message, folder, capsys)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("fixations*.yaml")), ids=lambda path: path.stem)
def test_configurations_are_understood(path: Path) -> None:
    assert settings_of(FixationJob, ["--config", str(path)]).name == path.stem.replace("_", "-")


def test_every_setting_survives_its_file(tmp_path: Path) -> None:
    options = ["--trace.k=0.1", "--trace.rivals={car: bicyclist}", "--picture.image=3", "--measure.view=null"]
    options += ["--do=[counts]", "--data.size=null", "--picture.classes=[car]"]
    settings = check_survives_its_file(FixationJob, options, tmp_path / "config.yaml")
    assert settings.trace.count == Share(0.1)
    assert (settings.picture.image, settings.do, settings.measure.view) == (3, ["counts"], None)
