"""What one sees when the results of `perpixel.attribution` are printed: a few lines, whatever their size."""

import torch
from attribution_nets import LABEL, case
from influence_cases import SIZE, images_of, small, small_case

from perpixel.attribution import Attribution
from perpixel.attribution.faithfulness.faithfulness import faithfulness
from perpixel.attribution.influence.class_matrix import ClassMatrix
from perpixel.attribution.influence.influence import influence


def test_attribution() -> None:
    values, region = torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.bool)
    region[:, 0, 0] = True
    values[:, 0, 0, 0], values[:, 1, 3, 3] = 3.0, -1.0
    found = Attribution(values, region, 9, "LayerGradCam", torch.tensor([0.1, -0.25]), "backbone.layer4", "margin")
    assert repr(found).splitlines() == [
        "Attribution of the margin of label 9 in 2 images of 4x5, by LayerGradCam on 'backbone.layer4'",
        "  values from -1 to 3",
        "  region: 5.0% of the pixels; context share, outside it: 25.0% of |values|",
        "  left unexplained (delta): at most 0.25",
    ]


def test_attribution_of_many_labels_without_a_region_and_without_values() -> None:
    many = Attribution(torch.zeros(300, 1, 2, 2), torch.zeros(300, 2, 2).bool(), torch.arange(300), "Saliency")
    assert repr(many).splitlines() == [
        "Attribution of the logit of labels 0, 1, 2, 3, 4 and 295 more in 300 images of 2x2, by Saliency",
        "  values from 0 to 0",
    ]
    blank = Attribution(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2).bool(), 0, "Saliency")
    assert "context share, outside it: undefined" in repr(blank)


def test_influence() -> None:
    model, images = small(), images_of(2, SIZE)
    found = influence(model, images, patch=8)
    low, high = (float(end) for end in found.logits.aminmax())
    assert repr(found).splitlines() == [
        "Influence of 3x4 patches on 4 classes, in 2 images of 21x26",
        f"  logits from {low:.3g} to {high:.3g}, on a grid of 6x7",
        "  values: 0.0161 MB of torch.float32 in cpu",
    ]
    halves = (torch.arange(SIZE[1]) > 9).long().expand(2, *SIZE)
    assert repr(influence(model, images, by="segments", segments=halves)).startswith("Influence of up to 2 segments on")


def test_class_matrix_shows_the_largest_losses_with_their_counts() -> None:
    values = torch.full((3, 3), torch.nan).double()
    values[0, 1], values[2, 0], values[1, 1] = 0.5, -12.25, 0.0
    counts = torch.zeros(3, 3).long()
    counts[0, 1], counts[2, 0], counts[1, 1] = 7, 123456, 3
    matrix = ClassMatrix(values, counts, values / 4, counts, torch.ones(3).double(), torch.tensor([2, 1, 0]))
    assert repr(matrix).splitlines() == [
        "ClassMatrix of 3 classes, 2 of them in the images; the largest 3 of 3 losses",
        "  class  hidden       loss  at random   pixels",
        "      2       0      -12.2      -3.06   123456",
        "      0       1        0.5      0.125        7",
        "      1       1          0          0        3",
    ]


def test_class_matrix_of_hundreds_of_classes_and_of_none() -> None:
    values = torch.arange(90000).view(300, 300).double()
    many = ClassMatrix(values, values.long(), values * torch.nan, values.long(), values[0], torch.ones(300).long())
    lines = repr(many).splitlines()
    assert len(lines) == 7
    assert lines[0].endswith("300 of them in the images; the largest 5 of 90000 losses")
    assert lines[2].split() == ["299", "299", "9e+04", "nan", "89999"]
    assert len({len(line) for line in lines[1:]}) == 1
    none = ClassMatrix(values * torch.nan, values.long(), values, values.long(), values[0], torch.zeros(300).long())
    assert repr(none) == "ClassMatrix of 300 classes, 0 of them in the images"
    assert len(repr(influence(*small_case(), patch=8).class_matrix()).splitlines()) <= 7


def test_faithfulness_shows_its_areas_beside_those_of_random_orders() -> None:
    model, images, values, region = case()
    found = faithfulness(model, images, values, LABEL, region=region, steps=4)
    rows = []
    for kind, curve in (("deletion ", found.deletion), ("insertion", found.insertion)):
        for score in ("logit", "iou"):
            if not bool(curve.scores[score].isnan().all()):
                own = f"{float(curve.area(score).nanmean()):.3g}"
                drawn = [float(area.nanmean()) for area in curve.area(score, "random")]
                rows.append(f"  {kind}  {score:6}  {own:>11}  {min(drawn):.3g} to {max(drawn):.3g}")
    kept, share = float(found.object_alone.kept.nanmean()), float(found.context_share.mean())
    assert repr(found).splitlines() == [
        f"Faithfulness of an attribution of the logit of label {LABEL} in 2 images; .summary() says it in words",
        "  area under        attribution  5 random orders   (baseline 'mean')",
        *rows,
        f"  context share {share:.1%}; object alone: {kept:.0%} of the region keeps the label",
    ]
    assert len(rows) >= 2
