"""What is read off an influence: evidence, context, what classes lean on; where it is kept; what is refused."""

import gc
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_cases import Net, WritesIntoInput, images_of, small
from test_model_untouched import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attribution.influence import storage
from perpixel.attribution.influence.class_matrix import ClassMatrix
from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.patches import connected_segments
from perpixel.attribution.influence.result import Influence

SIZE = (21, 26)


@pytest.fixture
def found() -> Influence:
    return influence(small(double=True), images_of(2, SIZE).double(), patch=8, baselines="mean")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 1.0])
def test_evidence_is_the_smallest_set(share: float) -> None:
    images = images_of(2, SIZE).double()
    found = influence(small(double=True), images, patch=10, baselines="mean")
    region = torch.rand(2, *SIZE) > 0.5
    effect = found.of(1, region).flatten(1)
    evidence = found.evidence(1, region, share)
    assert evidence.units.shape == (2, *found.grid)
    for n in range(2):
        positive = effect[n].clamp(min=0)
        chosen = evidence.units[n].flatten()
        held = float(positive[chosen].sum() / positive.sum())
        assert held == pytest.approx(float(evidence.reached[n]))
        assert held >= share - 1e-12
        assert list(evidence.order[n]) == sorted(chosen.nonzero().flatten().tolist(), key=lambda i: -positive[i])
        count = int(evidence.counts[n])
        assert count == int(chosen.sum()) > 0
        for fewer in itertools.combinations(range(len(positive)), count - 1):
            assert float(positive[list(fewer)].sum()) < share * float(positive.sum()) + 1e-12


def test_no_positive_influence_no_evidence() -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2, *x.shape[-2:], dtype=x.dtype)

    found = influence(Fixed(), images_of(2, SIZE), patch=10)
    evidence = found.evidence(0)
    assert not evidence.units.any()
    assert evidence.order == ((), ())
    assert evidence.reached.isnan().all()
    assert found.context_share(0).isnan().all()


def test_context_leaves_out_what_touches_the_region(found: Influence) -> None:
    region = torch.zeros(2, *SIZE, dtype=torch.bool)
    region[0, 5:9, 5] = True
    region[1, 20, 25] = True
    whole, outside = found.of(1, region), found.context_only(1, region)
    for n in range(2):
        for number, (top, left, bottom, right) in enumerate(found.boxes.tolist()):
            touches = bool(region[n, top:bottom, left:right].any())
            assert bool(found.touching(region)[n].flatten()[number]) == touches
            assert float(outside[n].flatten()[number]) == (0.0 if touches else float(whole[n].flatten()[number]))
    torch.testing.assert_close(
        found.context_share(1, region), outside.abs().sum((1, 2)) / whole.abs().sum((1, 2)), rtol=1e-6, atol=0
    )
    left_out = found.context_only(1, region, fill=torch.nan)
    assert torch.equal(left_out.isnan(), found.touching(region))
    assert torch.equal(found.touching(region[0])[1], found.touching(region)[0])


def slow_class_matrix(
    model: nn.Module, images: Tensor, labels: Tensor, hidden: dict[tuple[int, int], Tensor], base: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean loss and count per (class read, class hidden), one pixel at a time."""
    sums, counts = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.int64)
    with torch.no_grad():
        before = model(images)
        for (n, k), mask in hidden.items():
            after = model(torch.where(mask, base[n], images[n])[None])[0]
            for y, x in itertools.product(range(SIZE[0]), range(SIZE[1])):
                c = int(labels[n, y, x])
                if c != 255 and not mask[y, x]:
                    sums[c, k] += before[n, c, y, x] - after[c, y, x]
                    counts[c, k] += 1
    return sums / counts, counts


def scattered_labels() -> Tensor:
    labels = torch.zeros(2, *SIZE, dtype=torch.int64)
    labels[0, 2:5, 3:12] = 1
    labels[0, 17:, 20:] = 2
    labels[1, :, 10:14] = 1
    labels[1, 4:6, 15:20] = 255
    return labels


@pytest.mark.parametrize("least", [0.0, 0.3])
def test_class_matrix_hides_each_class_at_once(least: float) -> None:
    model, images, labels = small(double=True), images_of(2, SIZE).double(), scattered_labels()
    found = influence(model, images, patch=5, baselines="mean", batch_size=3)
    matrix = found.class_matrix(labels, least=least)
    hidden = {}
    for n, k in itertools.product(range(2), range(4)):
        mask = torch.zeros(SIZE, dtype=torch.bool)
        for top, left, bottom, right in found.boxes.tolist():
            here = (labels[n, top:bottom, left:right] == k).double().mean()
            if here > least:
                mask[top:bottom, left:right] = True
        if mask.any():
            hidden[n, k] = mask
    base = images.mean((2, 3), keepdim=True)
    values, counts = slow_class_matrix(model, images, labels, hidden, base)
    torch.testing.assert_close(matrix.values, values, equal_nan=True)
    assert torch.equal(matrix.counts, counts)
    assert matrix.values[3].isnan().all()
    assert matrix.values[:, 3].isnan().all()
    assert matrix.images.tolist() == [sum((n, k) in hidden for n in range(2)) for k in range(4)]
    torch.testing.assert_close(matrix.hidden[1], (hidden[0, 1].double().mean() + hidden[1, 1].double().mean()) / 2)
    assert bool((matrix.control_counts.sum(0)[:3] > 0).all())
    torch.testing.assert_close(matrix.excess, matrix.values - matrix.control, equal_nan=True)


def test_class_matrix_of_segments_hides_the_class_itself() -> None:
    model, images, labels = small(double=True), images_of(2, SIZE).double(), scattered_labels()
    found = influence(model, images, by="segments", segments=connected_segments(labels))
    hidden = {(n, k): labels[n] == k for n in range(2) for k in range(3) if (labels[n] == k).any()}
    values, counts = slow_class_matrix(model, images, labels, hidden, torch.zeros_like(images))
    matrix = found.class_matrix(labels)
    torch.testing.assert_close(matrix.values, values, equal_nan=True)
    assert torch.equal(matrix.counts, counts)


def test_controls_hide_as_many_pixels_and_follow_the_seed(found: Influence) -> None:
    from perpixel.attribution.influence.class_matrix import _jobs

    for units in (found.units, influence(small(), images_of(2, SIZE), by="segments").units):
        jobs = list(_jobs(units, scattered_labels(), 4, 255, 0.0, 3, 7))
        for at in range(0, len(jobs), 4):
            image, mask, label, control = jobs[at]
            assert not control
            for other in jobs[at + 1 : at + 4]:
                assert (other[0], other[2], other[3]) == (image, label, True)
                assert int(other[1].sum()) == int(mask.sum())
        assert jobs[-4][2] > 0
        assert any(not torch.equal(jobs[-3][1], other[1]) for other in jobs[-2:])
    labels = scattered_labels()
    one, again, other = (found.class_matrix(labels, seed=seed).control for seed in (0, 0, 1))
    torch.testing.assert_close(one, again, equal_nan=True)
    assert not torch.equal(one.nan_to_num(), other.nan_to_num())
    without = found.class_matrix(labels, controls=0)
    assert without.control.isnan().all()
    assert not without.control_counts.any()
    torch.testing.assert_close(
        found.class_matrix().values, found.class_matrix(found.predictions).values, equal_nan=True
    )


def test_class_matrix_refuses_a_model_that_has_changed() -> None:
    model = small()
    found = influence(model, images_of(1, SIZE), patch=8)
    assert isinstance(found.class_matrix(), ClassMatrix)
    with torch.no_grad():
        model.classifier.weight.mul_(1.5)
    with pytest.raises(RuntimeError, match=r"model: expected the logits of before.*call influence again"):
        found.class_matrix()


def test_what_is_over_the_cap_goes_to_a_file_that_goes_with_it(tmp_path: Path) -> None:
    model, images = small(), images_of(2, SIZE)
    kept = influence(model, images, patch=8)
    size = kept.values.numel() * 4
    assert influence(model, images, patch=8, memory_cap=size, storage=tmp_path).file is None
    found = influence(model, images, patch=8, memory_cap=size - 1, storage=tmp_path)
    assert found.file is not None
    assert [found.file] == list(tmp_path.iterdir())
    assert found.file.stat().st_size == size
    assert torch.equal(found.values, kept.values)
    region = torch.rand(2, *SIZE) > 0.5
    for score in ("logit", "margin"):
        assert torch.equal(found.of(1, region, score), kept.of(1, region, score))
    torch.testing.assert_close(found.class_matrix().values, kept.class_matrix().values, equal_nan=True)
    view = found.values[0, 3]
    del found
    gc.collect()
    assert list(tmp_path.iterdir())
    assert torch.equal(view, kept.values[0, 3])
    del view
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "posix_fallocate", no_room, raising=False)
    with pytest.raises(OSError, match="No space left"):
        influence(small(), images_of(1, SIZE), patch=8, memory_cap=0, storage=tmp_path)
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="storage: expected room for"):
        storage.allocate((1 << 60,), torch.float32, torch.device("cpu"), 0, tmp_path)
    with pytest.raises(FileNotFoundError):
        influence(small(), images_of(1, SIZE), patch=8, memory_cap=0, storage=tmp_path / "none")


@pytest.mark.parametrize(("dtype", "slack"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float64, 1e-6)])
def test_other_types_to_keep(dtype: torch.dtype, slack: float) -> None:
    model, images = small(), images_of(2, SIZE)
    exact, found = influence(model, images, patch=8), influence(model, images, patch=8, dtype=dtype, device="cpu")
    assert found.values.dtype == dtype
    region = torch.rand(2, *SIZE) > 0.5
    for score in ("logit", "margin"):
        expected = exact.of(1, region, score)
        torch.testing.assert_close(
            found.of(1, region, score), expected, rtol=slack, atol=slack * float(expected.abs().max())
        )


def test_progress_is_shown_where_asked(capsys: pytest.CaptureFixture[str]) -> None:
    influence(small(), images_of(1, SIZE), patch=8, show_progress=True)
    assert "influence: 100%" in capsys.readouterr().err
    influence(small(), images_of(1, SIZE), patch=8)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("failing", [False, True])
def test_model_and_images_are_as_before(failing: bool) -> None:
    class Limited(WritesIntoInput):
        passes = 0

        def forward(self, images: Tensor) -> Tensor:
            self.passes += 1
            if failing and self.passes == 4:
                raise ZeroDivisionError
            return super().forward(images)

    torch.manual_seed(1)
    model, images = Limited().double().train(), images_of(2, SIZE).double().requires_grad_()
    model.body[1].eval()
    model.classifier.weight.requires_grad_(False)
    model.refine.weight.grad = torch.ones_like(model.refine.weight)
    own = model.classifier.register_forward_hook(lambda *_: None)
    before, pixels, state = snapshot(model), images.detach().clone(), torch.get_rng_state()
    version = images._version
    if failing:
        with pytest.raises(ZeroDivisionError) as error:
            influence(model, images, patch=8)
        del model.passes
        assert_same(snapshot(model), before)
        del error
    else:
        found = influence(model, images, patch=8)
        found.of(1)
        found.on_pixel(3, 4, score="margin")
        found.class_matrix()
        del model.passes
        assert_same(snapshot(model), before)
        assert not found.values.requires_grad
        assert not found.of(1).requires_grad
    assert images.requires_grad
    assert images.grad is None
    assert images._version == version
    assert torch.equal(images, pixels)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    own.remove()


def test_inside_inference_mode_under_autocast_and_channels_last() -> None:
    model, images = small(), images_of(2, SIZE)
    expected = influence(model, images, patch=8)
    region = torch.rand(2, *SIZE) > 0.5
    with torch.inference_mode():
        inside = influence(model, images * 1.0, patch=8)
        torch.testing.assert_close(inside.values, expected.values)
        torch.testing.assert_close(inside.of(1, region), expected.of(1, region))
        torch.testing.assert_close(inside.on_pixel(3, 4, 1, "margin"), expected.on_pixel(3, 4, 1, "margin"))
    last = influence(model, images.to(memory_format=torch.channels_last), patch=8)
    torch.testing.assert_close(last.values, expected.values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = influence(model, images, patch=8)
    assert half.logits.dtype == torch.float32
    assert half.values.dtype == torch.float32
    assert half.of(1, region, "margin").dtype == torch.float32
    torch.testing.assert_close(half.of(1, region), expected.of(1, region), rtol=0.1, atol=3.0)


IMAGES = images_of(2, SIZE)


@pytest.mark.parametrize(
    ("error", "message", "settings"),
    [
        (ValueError, "patch: expected a patch no larger than the images, 21 x 26", {"patch": 22}),
        (ValueError, "patch: expected a patch no larger", {"patch": (21, 27)}),
        (ValueError, "patch: expected a patch no larger", {}),
        (ValueError, "patch: expected an integer >= 1", {"patch": 0}),
        (ValueError, "patch: expected an integer >= 1", {"patch": (3, -1)}),
        (TypeError, "patch: expected an integer", {"patch": 2.5}),
        (TypeError, "patch: expected an integer", {"patch": None}),
        (ValueError, r"patch: expected an integer or \(height, width\)", {"patch": (1, 2, 3)}),
        (ValueError, "stride: expected an integer >= 1", {"patch": 8, "stride": 0}),
        (ValueError, "stride: expected at most the patch", {"patch": 8, "stride": (8, 9)}),
        (ValueError, "baselines: ", {"patch": 8, "baselines": "grey"}),
        (ValueError, "baselines: ", {"patch": 8, "baselines": torch.zeros(2, 3, 5, 5)}),
        (ValueError, "batch_size: expected an integer >= 1", {"patch": 8, "batch_size": 0}),
        (ValueError, "by: expected one of 'patches', 'segments'", {"patch": 8, "by": "pixels"}),
        (ValueError, "segments: expected None", {"patch": 8, "segments": torch.zeros(2, *SIZE, dtype=torch.int64)}),
        (
            ValueError,
            "segments: expected shape",
            {"by": "segments", "segments": torch.zeros(2, 3, 3, dtype=torch.int64)},
        ),
        (TypeError, "segments: expected an integer dtype", {"by": "segments", "segments": torch.zeros(2, *SIZE)}),
        (ValueError, "segments: expected a segment", {"by": "segments", "segments": torch.full((2, *SIZE), -1)}),
        (ValueError, "dtype: expected None or one of", {"patch": 8, "dtype": torch.int32}),
        (ValueError, "memory_cap: expected an integer >= 0", {"patch": 8, "memory_cap": -1}),
        (TypeError, "show_progress: expected True or False", {"patch": 8, "show_progress": 1}),
    ],
)
def test_bad_arguments(error: type[Exception], message: str, settings: dict[str, Any]) -> None:
    model = small()
    before = snapshot(model)
    with pytest.raises(error, match=message):
        influence(model, IMAGES, **settings)
    assert_same(snapshot(model), before)


def test_bad_models_and_images() -> None:
    with pytest.raises(TypeError, match=r"model: expected a torch.nn.Module"):
        influence(lambda x: x, IMAGES, patch=8)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="images: "):
        influence(small(), IMAGES[0], patch=8)
    with pytest.raises(ValueError, match="images: expected at least one image"):
        influence(small(), IMAGES[:0], patch=8)
    with pytest.raises(TypeError, match="images: expected a floating-point dtype"):
        influence(small(), IMAGES.long(), patch=8)
    flat = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises((TypeError, ValueError), match="nothing dense"):
        influence(flat, IMAGES, patch=8)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_numbers(bad: float) -> None:
    images = IMAGES.clone()
    images[1, 0, 3, 3] = bad
    with pytest.raises(ValueError, match="logits: expected finite values"):
        influence(small(), images, patch=8)

    class Divides(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / x[:, :, 10:11, 12:13]

    model = Divides()
    with pytest.raises(ValueError, match="NaN or infinity in image 0 with patch 5 hidden"):
        influence(model, IMAGES, patch=8)
    assert model.training
    with pytest.raises(ValueError, match=r"logits: expected finite values, in torch.float16.*a wider one"):
        influence(Net(lambda z, x: 1e6 * z), IMAGES, patch=8, dtype=torch.float16)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "label: expected a class in", (4,)),
        (ValueError, "label: expected an integer >= 0", (-1,)),
        (TypeError, "label: expected an integer", ("road",)),
        (ValueError, "label: expected an int, or 2 ints", (torch.tensor([1, 1, 1]),)),
        (ValueError, "score: expected one of", (1, None, "iou")),
        (ValueError, "region: expected at least one pixel", (1, torch.zeros(2, *SIZE, dtype=torch.bool))),
        (ValueError, "region: expected the output's size", (1, torch.ones(2, 6, 7, dtype=torch.bool))),
        (ValueError, "region: ", (1, torch.ones(3, *SIZE, dtype=torch.bool))),
        (TypeError, "region: expected a bool tensor", (1, torch.ones(2, *SIZE))),
    ],
)
def test_bad_targets(found: Influence, error: type[Exception], message: str, arguments: tuple[Any, ...]) -> None:
    for read in (found.of, found.context_only, found.context_share):
        with pytest.raises(error, match=message):
            read(*arguments)
    if len(arguments) < 3:
        with pytest.raises(error, match=message):
            found.evidence(*arguments)


def test_bad_readings(found: Influence) -> None:
    for y, x in ((-1, 0), (21, 0), (0, 26)):
        with pytest.raises(ValueError, match=r"[yx]: expected an integer >= 0 <= 2"):
            found.on_pixel(y, x)
    with pytest.raises(TypeError, match="y: expected an integer"):
        found.on_pixel(1.5, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="label: expected a class in"):
        found.on_pixel(0, 0, 4)
    with pytest.raises(ValueError, match="score: expected one of"):
        found.on_pixel(0, 0, 1, "best")
    region = torch.ones(SIZE, dtype=torch.bool)
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share: "):
            found.evidence(1, region, share)
    labels = scattered_labels()
    with pytest.raises(ValueError, match="labels: expected shape"):
        found.class_matrix(labels[:, :4])
    with pytest.raises(ValueError, match="labels: expected values in"):
        found.class_matrix(labels + 2)
    with pytest.raises(TypeError, match="labels: expected an integer dtype"):
        found.class_matrix(labels.float())
    with pytest.raises(ValueError, match="least: "):
        found.class_matrix(labels, least=1.0)
    with pytest.raises(ValueError, match="controls: "):
        found.class_matrix(labels, controls=-1)
