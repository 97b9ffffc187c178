"""What influence refuses, and what it leaves as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from influence_cases import SIZE, Net, WritesIntoInput, images_of, scattered_labels, small, small_case
from model_state import assert_same, snapshot
from torch import Tensor, nn

from perpixel.attribution.influence.influence import influence
from perpixel.attribution.influence.result import Influence


@pytest.fixture(scope="module")
def found() -> Influence:
    return influence(*small_case(), patch=8, baselines="mean")


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


IMAGES = images_of(2, SIZE)
SEGMENTS = {"by": "segments"}


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
        (ValueError, "segments: expected None", {"patch": 8, "segments": torch.zeros(2, *SIZE).long()}),
        (ValueError, "segments: expected shape", SEGMENTS | {"segments": torch.zeros(2, 3, 3).long()}),
        (TypeError, "segments: expected an integer dtype", SEGMENTS | {"segments": torch.zeros(2, *SIZE)}),
        (ValueError, "segments: expected a segment", SEGMENTS | {"segments": torch.full((2, *SIZE), -1)}),
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


FLAT = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


@pytest.mark.parametrize(
    ("model", "images", "error", "message"),
    [
        (len, IMAGES, TypeError, r"model: expected a torch.nn.Module"),
        (small(), IMAGES[0], ValueError, "images: "),
        (small(), IMAGES[:0], ValueError, "images: expected at least one image"),
        (small(), IMAGES.long(), TypeError, "images: expected a floating-point dtype"),
        (FLAT, IMAGES, (TypeError, ValueError), "nothing dense"),
    ],
)
def test_bad_models_and_images(model: Any, images: Tensor, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        influence(model, images, patch=8)


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


def test_images_without_the_label_are_named_with_what_they_have() -> None:
    shown = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, *SIZE).float()

    class Predicts(nn.Module):
        """Label 0 to the left, and the image's own number to the right."""

        def forward(self, x: Tensor) -> Tensor:
            label = torch.where(torch.arange(x.shape[-1]) < 9, 0, x[:, 0].long())
            return nn.functional.one_hot(label, 12).movedim(3, 1).float()

    one = influence(Predicts(), shown[[3, 5]], patch=20, baselines=shown[[3, 5]])
    assert one.of(0).shape == (2, 2, 2)
    with pytest.raises(ValueError, match=r"none in image 0 of 2, .* \(image 0 has 0, 3, not 5\)\. Leave it out, ask"):
        one.of(5)
    with pytest.raises(ValueError, match=r"\(image 1 has 0, 5, not 3\)"):
        one.evidence(torch.tensor([3, 3]))
    many = influence(Predicts(), shown, patch=20, baselines=shown)
    with pytest.raises(ValueError, match=r"images 0, 1, 2, 3, 4 and 3 more of 8, .*image 4 has 0, 4, not 9\)\."):
        many.of(9)


SHAPE = torch.ones(SIZE, dtype=torch.bool)
LABELS = scattered_labels()


@pytest.mark.parametrize(
    ("read", "error", "message"),
    [
        (lambda found: found.on_pixel(-1, 0), ValueError, "y: expected an integer >= 0 <= 20"),
        (lambda found: found.on_pixel(21, 0), ValueError, "y: expected an integer >= 0 <= 20"),
        (lambda found: found.on_pixel(0, 26), ValueError, "x: expected an integer >= 0 <= 25"),
        (lambda found: found.on_pixel(1.5, 0), TypeError, "y: expected an integer"),
        (lambda found: found.on_pixel(0, 0, 4), ValueError, "label: expected a class in"),
        (lambda found: found.on_pixel(0, 0, 1, "best"), ValueError, "score: expected one of"),
        (lambda found: found.evidence(1, SHAPE, 0.0), ValueError, "share: "),
        (lambda found: found.evidence(1, SHAPE, 1.5), ValueError, "share: "),
        (lambda found: found.class_matrix(LABELS[:, :4]), ValueError, "labels: expected shape"),
        (lambda found: found.class_matrix(LABELS + 2), ValueError, "labels: expected values in"),
        (lambda found: found.class_matrix(LABELS.float()), TypeError, "labels: expected an integer dtype"),
        (lambda found: found.class_matrix(LABELS, least=1.0), ValueError, "least: "),
        (lambda found: found.class_matrix(LABELS, controls=-1), ValueError, "controls: "),
    ],
)
def test_bad_questions(found: Influence, read: Callable[[Influence], object], error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        read(found)
