"""The table's numbers and words, and the images behind them."""

import html
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from perpixel.evaluation import SegmentationScores, compare_scores, mean_iou, t_interval
from recipes.finetuning.pictures import select_examples
from recipes.finetuning.results import Results
from recipes.kit.images import Images
from recipes.kit.progress import Progress
from recipes.kit.settings import DataSettings, EvaluationSettings
from recipes.kit.summary import Section, Summary
from recipes.kit.tables import markdown_table, markdown_text


def scores(accuracy: float, images: int = 40, seed: int = 0, far: int = False) -> SegmentationScores:
    """Two classes, 1000 pixels an image, about `accuracy` of them right, more or less so by image."""
    generator = torch.Generator().manual_seed(seed)
    right = (1000 * (accuracy + 0.05 * torch.randn(images, generator=generator))).long().clamp(0, 1000)
    half, rest = right // 2, (1000 - right) // 2
    confusion = torch.stack([torch.stack([half, rest], 1), torch.stack([rest, half], 1)], 1)
    return SegmentationScores(
        confusion=confusion,
        boundary=torch.full((images,), accuracy, dtype=torch.float64),
        far=torch.stack([right, torch.full_like(right, 1000)], 1) if far else None,
    )


def compared(control: list[float], loss: list[float], **options: int) -> Results:
    arms = {
        arm: {seed: scores(accuracy, **options) for seed, accuracy in enumerate(accuracies)}
        for arm, accuracies in (("control", control), ("loss", loss))
    }
    seconds, evaluation = {"control": [2.0, 1.0, 3.0], "loss": [4.0]}, EvaluationSettings(resamples=300)
    return Results({0: scores(0.5, **options)}, arms, ("a", "b"), seconds, evaluation, "template similarity", True)


@pytest.mark.parametrize(
    ("loss", "verdict", "words"),
    [
        (0.7, "better on these images", "excludes zero: the loss is better on these images."),
        (0.5, "worse on these images", "excludes zero: the loss is worse on these images."),
        (0.6, "undecided", "+0.00 points, 95 % interval [+0.00, +0.00] includes zero: undecided."),
    ],
)
def test_verdict_follows_from_the_interval(loss: float, verdict: str, words: str) -> None:
    results = compared([0.6], [loss])
    difference = results.differences[0]
    assert (difference.metric, difference.verdict) == ("mIoU", verdict)
    assert words in results.sentences()[0]
    assert "does not cover the luck of a training run" in results.sentences()[-1]
    control, treated = scores(0.6), scores(loss)
    assert difference.interval.value == pytest.approx(
        100 * float(mean_iou(treated.confusion.sum(0)) - mean_iou(control.confusion.sum(0)))
    )
    assert results.median_seconds == {"control": 2.0, "loss": 4.0}


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        ([0.7, 0.71, 0.69, 0.7, 0.7], "helped"),
        ([0.5, 0.51, 0.49, 0.5, 0.5], "hurt"),
        ([0.7, 0.71, 0.69, 0.7], "better on these images"),  # too few seeds
        ([0.9, 0.55, 0.55, 0.6, 0.65], "better on these images"),  # that disagree
        ([0.3, 0.65, 0.65, 0.6, 0.55], "worse on these images"),
    ],
)
def test_an_effect_is_claimed_from_five_seeds_that_agree(losses: list[float], verdict: str) -> None:
    results = compared([0.6] * len(losses), losses)
    assert results.differences[0].verdict == verdict
    assert verdict in results.sentences()[0]


def test_seeds_that_agree_claim_nothing_from_few_images() -> None:
    results = compared([0.6] * 5, [0.7, 0.71, 0.69, 0.7, 0.7], images=7)
    assert results.differences[0].verdict == "too few images"
    assert results.sentences()[0].endswith("excludes zero: too few images.")


def test_claims_are_corrected_for_the_metrics_of_the_table() -> None:
    losses = [0.62, 0.601, 0.615, 0.604, 0.61]  # p = 0.04 over these seeds: not enough for one of three metrics
    (miou, *_) = compared([0.6] * 5, losses).differences
    low, high = miou.seed_interval or (0, 0)
    assert 0 < low < high
    assert miou.interval.excludes_null
    assert miou.verdict == "better on these images"


def test_far_body_only_where_there_is_evidence() -> None:
    assert [d.metric for d in compared([0.6], [0.7]).differences] == ["mIoU", "pixel accuracy", "boundary F"]
    far = compared([0.6], [0.7], far=True).differences[-1]
    assert far.metric == "accuracy far from the head"
    assert far.interval.value == pytest.approx(far.treatment - far.control)


def test_seeds_are_averaged_and_their_disagreement_told() -> None:
    results = compared([0.6, 0.6, 0.6], [0.7, 0.59, 0.62])
    difference = results.differences[0]
    assert difference.interval.value == pytest.approx(sum(difference.per_seed) / 3)
    words = " ".join(results.sentences())
    assert "Better in 2 of 3 seeds" in words
    assert "which includes zero: another seed might tell another story" in words
    assert "neither covers the luck of pre-training" in words


def test_seed_interval_is_students() -> None:
    assert t_interval([1.0, 2.0]) is None
    low, high = t_interval([1.0, 2.0, 3.0], 0.95) or (0, 0)
    assert (low, high) == (pytest.approx(2 - 4.302653 / 3**0.5), pytest.approx(2 + 4.302653 / 3**0.5))


def test_scores_of_other_images_are_not_compared() -> None:
    for control, treatment in (([], []), ([scores(0.5)], [scores(0.5)] * 2), ([scores(0.5)], [scores(0.5, images=3)])):
        with pytest.raises(ValueError, match="control, treatment: expected equally many scores"):
            compare_scores(control, treatment)


def test_summary_and_json_are_written(tmp_path: Path) -> None:
    results = compared([0.6], [0.7])
    results.save(tmp_path)
    pictures = {"curves.png": "loss terms <by> epoch"}
    summary = results.summary("mine: did the loss help?", "small_fcn on x", pictures, {"results.json": "all numbers"})
    summary.save(tmp_path, Progress(Console()))
    text, page = ((tmp_path / name).read_text() for name in ("summary.md", "index.html"))
    assert "| mIoU | " in text
    assert "| seconds per epoch |  | 2.00 | 4.00 | +2.00 |" in text
    assert "Better on these images; whether the loss helps is not shown. mIoU: +" in text
    for part in ("<td>mIoU</td>", '<a href="curves.png"><img src="curves.png"', 'href="results.json"'):
        assert part in page
    assert "loss terms &lt;by&gt; epoch" in page
    assert "<title>mine: did the loss help?</title>" in page
    assert json.loads((tmp_path / "results.json").read_text())["lines"][0]["verdict"] == "better on these images"


def test_names_of_anyone_are_text_in_the_page(tmp_path: Path) -> None:
    name = "<script>alert(1)</script> [x](javascript:alert(2)) ![y](http://z/y.png) `a|b`"
    table = markdown_table(("class", "IoU"), [(name, "1")])
    pictures = {"p.png": name}
    summary = Summary(
        markdown_text(name), markdown_text(name), markdown_text(name), [Section("s", table, "", pictures)], {}
    )
    summary.save(tmp_path, Progress(Console(), shown=False))
    page = (tmp_path / "index.html").read_text()
    assert re.findall(r"<(?:script|iframe|link|object)|\son\w+=", page) == []
    assert set(re.findall(r'(?:src|href)="([^"]*)"', page)) == {"p.png"}
    assert html.unescape(re.findall(r"<td>(.*?)</td>", page)[0]) == name
    assert "alert(1)" in re.findall(r"<title>(.*?)</title>", page)[0]
    (tmp_path / "summary.md").unlink()


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (
            [0, 4, -3, 1, 2],
            [
                (1, "largest gain\n60.0 → 64.0 %"),
                (2, "largest loss\n60.0 → 57.0 %"),
                (3, "typical: gain\n60.0 → 61.0 %"),
                (4, "gain\n60.0 → 62.0 %"),
            ],
        ),
        (
            [-1, -4, -3, -2],
            [
                (0, "smallest loss\n60.0 → 59.0 %"),
                (1, "largest loss\n60.0 → 56.0 %"),
                (3, "typical: loss\n60.0 → 58.0 %"),
            ],
        ),
        ([2, 1], [(0, "largest gain\n60.0 → 62.0 %"), (1, "smallest gain\n60.0 → 61.0 %")]),
        ([0, 0], [(1, "no change\n60.0 → 60.0 %"), (0, "no change\n60.0 → 60.0 %")]),
        ([-1], [(0, "loss\n60.0 → 59.0 %")]),
    ],
)
def test_pictures_show_gain_and_loss_alike_and_call_them_so(
    changed: list[int], expected: list[tuple[int, str]]
) -> None:
    control, loss = scores(0.6, images=len(changed)), scores(0.6, images=len(changed))
    for image, pixels in enumerate(changed):
        control.confusion[image] = torch.tensor([[60, 40], [0, 0]])
        loss.confusion[image] = torch.tensor([[60 + pixels, 40 - pixels], [0, 0]])
    assert select_examples(control, loss, 4) == expected


TINY = DataSettings(train_images=10, eval_images=5, size=(32, 48), jitter=0.2, scale=(0.8, 1.2))


def epoch(images: Images, **options: int) -> list[torch.Tensor]:
    return [images for images, _ in images.training(**{"seed": 1, "epoch": 2, "batch_size": 4, **options})]


def test_data_order_and_augmentation_are_functions_of_seed_and_epoch() -> None:
    images, torch_state = Images(TINY), torch.get_rng_state()
    first = epoch(images)
    assert len(first) == 2
    assert torch.equal(torch.get_rng_state(), torch_state)  # nothing drawn from the global generator
    torch.manual_seed(99)
    again, skipped = epoch(Images(TINY)), epoch(images, skip=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert len(skipped) == 1
    assert torch.equal(skipped[0], first[1])
    assert not torch.equal(first[0], epoch(images, epoch=3)[0])
    assert not torch.equal(first[0], epoch(images, seed=2)[0])


def test_processes_share_a_batch_and_the_evaluation_images() -> None:
    images = Images(TINY)
    whole = epoch(images)
    parts = [epoch(images, rank=rank, world=2) for rank in (0, 1)]
    assert all(torch.equal(w, torch.cat([a, b])) for w, a, b in zip(whole, *parts))
    seen = [
        int(i) for r in (0, 1) for batch in images.evaluation(batch_size=2, far=4, rank=r, world=2) for i in batch[0]
    ]
    assert sorted(seen) == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="a multiple of the number of devices"):
        epoch(images, world=3)


def test_far_body_pixels_belong_to_confusable_classes_and_are_far() -> None:
    images = Images(TINY)
    near, far = (
        torch.cat([batch[3] for batch in images.evaluation(batch_size=5, far=f) if batch[3] is not None])
        for f in (1, 15)
    )
    labels = torch.cat([batch[2] for batch in images.evaluation(batch_size=5, far=1)])
    assert 0 < int(far.sum()) < int(near.sum())
    assert not bool((far & ~near).any())
    known = {c for pair in images.pairs if pair.kind == "confusable" for c in pair[:2]}
    assert set(labels[near].unique().tolist()) <= known
