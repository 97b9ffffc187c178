"""What faithfulness refuses, what it leaves as it was, and how it reports."""

import json
from typing import Any

import pytest
import torch
from attribution_nets import LABEL, Conv, GradientTimesInput, case
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attribution import explain
from perpixel.attribution.faithfulness.faithfulness import faithfulness


def test_low_precision_and_other_layouts() -> None:
    model, images, values, region = case()
    expected = faithfulness(model, images, values, LABEL, region=region, steps=4).deletion.scores["logit"]
    layout = images.contiguous(memory_format=torch.channels_last)
    transposed = values.transpose(2, 3).contiguous().transpose(2, 3)
    got = faithfulness(model, layout, transposed, LABEL, region=region, steps=4)
    torch.testing.assert_close(got.deletion.scores["logit"], expected)
    low = faithfulness(model.bfloat16(), images.bfloat16(), values.bfloat16(), LABEL, region=region, steps=4)
    assert low.deletion.scores["logit"].dtype == torch.float32
    torch.testing.assert_close(low.deletion.scores["logit"][:, 0].double(), expected[:, 0], rtol=0.1, atol=0.1)


def test_an_attribution_is_tested_on_the_images_it_explains() -> None:
    model, images, _, region = case()
    found = explain(model, images, LABEL, region=region, method="Saliency")
    how: dict[str, Any] = {"steps": 2, "stages": 0, "compare_baselines": ()}
    faithfulness(model, images.contiguous(memory_format=torch.channels_last), found, **how)
    for others in (images.flip(0), images + 1e-9):
        with pytest.raises(ValueError, match="images: expected those that were explained"):
            faithfulness(model, others, found, **how)
        faithfulness(model, others, found.values, LABEL, region=region, **how)


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "label": ({"label": 3}, ValueError, r"label: expected a class in \[0, 3\), got"),
    "no label": ({"label": None}, ValueError, "label: expected the label that plain values explain"),
    "labels": ({"label": torch.tensor([1, 1, 1])}, ValueError, "label: expected an int, or 2 ints"),
    "score": ({"score": "softmax"}, ValueError, "score: expected one of 'logit', 'margin'"),
    "empty region": ({"region": torch.zeros(2, 6, 6, dtype=torch.bool)}, ValueError, "region: expected at least one"),
    "region size": ({"region": torch.ones(2, 5, 6, dtype=torch.bool)}, ValueError, "region: expected"),
    "region dtype": ({"region": torch.ones(2, 6, 6)}, TypeError, "region: expected a bool tensor"),
    "all object": ({"region": torch.ones(2, 6, 6, dtype=torch.bool)}, ValueError, "region: expected some pixels"),
    "values size": ({"attribution": torch.zeros(2, 2, 5, 6)}, ValueError, r"attribution: expected shape"),
    "values count": ({"attribution": torch.zeros(1, 2, 6, 6)}, ValueError, r"attribution: expected shape"),
    "values dims": ({"attribution": torch.zeros(6, 6)}, ValueError, r"attribution: expected an attribution of shape"),
    "values type": ({"attribution": "IntegratedGradients"}, TypeError, r"attribution: expected an attribution"),
    "values dtype": ({"attribution": torch.zeros(2, 6, 6, dtype=torch.int64)}, TypeError, "attribution: expected a fl"),
    "values NaN": ({"attribution": torch.full((2, 6, 6), torch.nan)}, ValueError, r"NaN or infinity at .* \(0, 0, 0\)"),
    "patch zero": ({"patch": 0}, ValueError, "patch: expected an integer >= 1"),
    "patch large": ({"patch": 7}, ValueError, "patch: expected an integer >= 1 and <= 6|patch: expected"),
    "patch triple": ({"patch": (1, 2, 3)}, ValueError, "patch: expected an integer"),
    "patch type": ({"patch": 2.5}, TypeError, "patch: expected an integer"),
    "progress": ({"show_progress": 1}, TypeError, "show_progress: expected True or False"),
    "steps": ({"steps": 0}, ValueError, "steps: expected an integer >= 1"),
    "seeds": ({"seeds": 0}, ValueError, "seeds: expected an integer >= 1"),
    "no seeds": ({"seeds": []}, ValueError, "seeds: expected at least one"),
    "batch": ({"batch_size": 0}, ValueError, "batch_size: expected an integer >= 1"),
    "freeze": ({"freeze_object": 1}, TypeError, "freeze_object: expected True or False"),
    "border": ({"exclude_border": 20}, ValueError, "exclude_border: expected a border that leaves"),
    "baselines": ({"baselines": "black"}, ValueError, "baselines: expected one of 'zero'"),
    "images": ({"images": torch.zeros(2, 2, 6, 6, dtype=torch.uint8)}, TypeError, "images: expected"),
    "no images": ({"images": torch.zeros(0, 2, 6, 6)}, ValueError, "images: expected at least one image"),
    "model": ({"model": len}, TypeError, "model: expected a torch.nn.Module"),
    "explainer": ({"explainer": 3}, TypeError, "explainer: expected a callable"),
    "compare": ({"explainer": "call", "compare_baselines": ("zero",)}, ValueError, "baselines: expected two or more"),
    "compared": ({"explainer": "call", "compare_baselines": ("zero", "x")}, ValueError, "baselines: expected one of"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_leaves_the_model_as_it_was(name: str) -> None:
    model, images, values, region = case()
    changes, error, message = BAD[name]
    asked: dict[str, Any] = {"model": model, "images": images, "attribution": values, "label": LABEL, "region": region}
    asked |= {"steps": 2} | changes
    if asked.get("explainer") == "call":
        asked["explainer"] = GradientTimesInput(LABEL, region)
    before = snapshot(model)
    with pytest.raises(error, match=message):
        faithfulness(**asked)
    assert_same(snapshot(model), before)


class Classifier(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class Breaks(Conv):
    """NaN for images that are not as they came."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        out = super().forward(images)["out"]
        return {"out": torch.where((images == 7).any(), torch.nan, out)}


def test_networks_without_dense_or_finite_output_are_refused() -> None:
    _, images, values, region = case()
    with pytest.raises((TypeError, ValueError), match="model: expected a network that gives a logit map"):
        faithfulness(Classifier(), images, values, 1, region=region)
    model = Breaks().eval()
    with pytest.raises(ValueError, match="model: expected finite logits for perturbed images"):
        faithfulness(model, images, values, 1, region=region, baselines=7.0)


def test_model_and_inputs_are_left_as_they_were() -> None:
    model, images, values, region = case()
    model.train()
    model.norm.eval()
    model.first.weight.requires_grad_(False)
    model(images)["out"].sum().backward()
    handle = model.last.register_forward_hook(lambda *_: None)
    images.requires_grad_()
    values.requires_grad_()
    before, random = snapshot(model), torch.get_rng_state()
    kept = [t.detach().clone() for t in (images, values, region)]
    explainer = GradientTimesInput(LABEL, region)
    found = faithfulness(model, images, values, LABEL, region=region, explainer=explainer, steps=3)
    assert_same(snapshot(model), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert images.requires_grad
    assert images.grad is None
    assert all(torch.equal(now, then) for now, then in zip((images, values, region), kept))
    assert not any(t.requires_grad for t in (*found.deletion.scores.values(), found.context_share))
    with torch.no_grad():
        evaluated = model.eval()(images)["out"][:, LABEL]
    mean = torch.where(region, evaluated, 0).sum((1, 2)) / region.sum((1, 2))
    torch.testing.assert_close(found.deletion.scores["logit"][:, 0], mean)
    handle.remove()


def test_progress_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model, images, values, region = case()
    how: dict[str, Any] = {"region": region, "explainer": "Saliency", "steps": 2, "stages": 2, "patch": 2}
    quiet = faithfulness(model, images, values, LABEL, **how)
    assert capsys.readouterr().err == ""
    shown = faithfulness(model, images, values, LABEL, **how, show_progress=True)
    lines = capsys.readouterr().err
    for check in ("randomised weights", "curves", "object alone"):
        assert f"faithfulness, {check}: 100%" in lines
    assert shown.to_dict() == quiet.to_dict()


def test_summary_and_numbers() -> None:
    model, images, values, region = case()
    explainer = GradientTimesInput(LABEL, region)
    full = faithfulness(model, images, values, LABEL, region=region, explainer=explainer, steps=4, patch=2)
    bare = faithfulness(model, images, values, LABEL, region=region, steps=4)
    text, short = full.summary(), bare.summary()
    parts = ("Deletion", "Insertion", "random order", "Randomised weights", "reset", "Object alone", "Completeness")
    assert all(part in text for part in parts)
    assert "Randomised weights: not run" in short
    assert "nan" not in text + short
    numbers = json.loads(json.dumps(full.to_dict(), allow_nan=False))
    assert numbers["deletion"]["areas"]["margin"]["gain"].keys() == {"random", "nearest first", "reset network"}
    assert len(numbers["deletion"]["random"]["logit"]) == 5
    assert numbers["context_share_reset"] == pytest.approx(full.context_share_reset.tolist())
    assert "region" not in numbers
    assert bare.to_dict()["randomised"] is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_as_on_the_cpu() -> None:
    model, images, values, region = case()
    explainer = GradientTimesInput(LABEL, region)
    how: dict[str, Any] = {"steps": 4, "samples": 4}
    expected = faithfulness(model, images, values, LABEL, region=region, explainer=explainer, **how)
    images, values, region = images.cuda(), values.cuda(), region.cuda()
    how["explainer"] = GradientTimesInput(LABEL, region)
    found = faithfulness(model.cuda(), images, values, LABEL, region=region, **how)
    assert found.deletion.scores["logit"].is_cuda
    for name in ("logit", "margin", "iou"):
        for mine, theirs in ((found.deletion, expected.deletion), (found.insertion, expected.insertion)):
            torch.testing.assert_close(mine.scores[name].cpu(), theirs.scores[name])
            torch.testing.assert_close(mine.random[name].cpu(), theirs.random[name])
    torch.testing.assert_close(found.object_alone.kept_elsewhere.cpu(), expected.object_alone.kept_elsewhere)
