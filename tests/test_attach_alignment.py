"""Logits, features and labels of one extent: what does not lie under the labels is refused, graph or no graph."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch, hooks
from model_state import assert_same, snapshot
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach

Finish = Callable[[Tensor], Tensor]
EITHER_WAY = pytest.mark.parametrize("grad", [True, False])


def resized(size: int, mode: str = "bilinear", **how: Any) -> Finish:
    return lambda logits: F.interpolate(logits, size=(size, size), mode=mode, **how)


# --- what the caller makes of the output

CHANGED: dict[str, Finish] = {
    "cropped": lambda logits: logits[..., :13, :13],
    "cropped by one": lambda logits: logits[..., 1:, :],
    "cropped and resized": lambda logits: resized(16)(logits[..., :13, :13]),
    "flipped": lambda logits: logits.flip(-1),
    "rolled": lambda logits: logits.roll(1, -1),
    "of images in another order": lambda logits: logits[torch.tensor([1, 0])],
    "of other channels": lambda logits: logits[:, torch.tensor([1, 0, 2, 3])],
}
WHOLE: dict[str, Finish] = {
    "to the labels' size": resized(16),
    "larger": resized(40),
    "aligned": resized(16, align_corners=True),
    "by a factor": lambda logits: F.interpolate(logits, scale_factor=2, mode="bicubic"),
    "smaller, antialiased": resized(12, antialias=True),
    "nearest": resized(16, "nearest-exact"),
    "cast": lambda logits: logits.to(torch.bfloat16).float(),
    "cast and resized": lambda logits: resized(24)(logits.double()),
    "copied": lambda logits: logits.clone(),
}


@EITHER_WAY
@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("change", CHANGED)
def test_a_part_of_the_output_is_refused(change: str, head: str | None, grad: bool) -> None:
    model, images, labels, criterion = attached(Net(), TemplateSimilarityLoss(), head=head)
    with torch.set_grad_enabled(grad):
        logits = CHANGED[change](model(images)["out"])
        with pytest.raises(RuntimeError, match=r"output: .*neither its output, \(2, 4, 16, 16\).*pad the labels"):
            criterion(logits, labels[:, : logits.shape[2], : logits.shape[3]])
        criterion(model(images), labels)


@EITHER_WAY
@pytest.mark.parametrize("head", [None, "classifier"])
@pytest.mark.parametrize("change", WHOLE)
def test_the_whole_output_resized_is_accepted(change: str, head: str | None, grad: bool) -> None:
    model, images, labels, criterion = attached(Net().eval(), TemplateSimilarityLoss(), head=head)
    with torch.set_grad_enabled(grad):
        criterion(model(images), labels)
        expected = criterion.terms["template_similarity"]
        criterion(WHOLE[change](model(images)["out"]), labels)
    assert torch.equal(criterion.terms["template_similarity"], expected)


# --- what the network itself makes of its head's output


class Ends(Net):
    """Stride 2; `end` makes the logits of what the head says; with `pad`, as on images padded to a multiple of it."""

    def __init__(self, end: Finish | nn.Module, pad: int = 1) -> None:
        super().__init__()
        self.end, self.pad = end, pad
        self.side = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Any:
        height, width = images.shape[-2:]
        x = self._neck(self.body(F.pad(images, (0, -width % self.pad, 0, -height % self.pad))))
        logits = self.end(self.classifier(x) + (self.side(x) if self.training else 0))
        return logits[..., :height, :width]


class TwoScores(Net):
    """Sums a score at the grid and a score at half of it, as FCN-16s and LRASPP do."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Any:
        x = self._neck(self.body(images))
        logits = F.interpolate(self.coarse(F.max_pool2d(x, 2)), x.shape[-2:], mode="bilinear") + self.classifier(x)
        return {"out": F.interpolate(logits, images.shape[-2:], mode="bilinear")}


def double(logits: Tensor) -> Tensor:
    return F.interpolate(logits, scale_factor=2, mode="bilinear")


PADDED: dict[str, Finish | nn.Module] = {
    "resized": double,
    "probabilities": lambda logits: double(logits).softmax(1),
    "aligned": lambda logits: F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=True),
    "transposed convolution": nn.ConvTranspose2d(CLASSES, CLASSES, 4, 2, 1),
    "nearest": lambda logits: F.interpolate(logits, scale_factor=2).log_softmax(1),
}
ENDS: dict[str, Finish | nn.Module] = {
    **PADDED,
    "dropout": nn.Sequential(nn.Dropout2d(0.5), nn.Upsample(scale_factor=2)),
    "transposed, of odd size": nn.ConvTranspose2d(CLASSES, CLASSES, 3, 2, 1, 1),
    "convolution and normalisation": nn.Sequential(
        nn.ConvTranspose2d(CLASSES, 8, 4, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, CLASSES, 1)
    ),
    "shuffled": nn.Sequential(nn.Conv2d(CLASSES, 4 * CLASSES, 3, padding=1), nn.PixelShuffle(2)),
    "centred": lambda logits: double(logits - logits.mean((2, 3), keepdim=True)),
    "a constant": lambda logits: double(logits) + 1.0,
}


def images_of(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, height, width), torch.randint(0, CLASSES, (2, height, width))


@EITHER_WAY
@pytest.mark.parametrize("end", ENDS)
def test_what_comes_after_the_head_may_be_anything_that_keeps_the_extent(end: str, grad: bool) -> None:
    model = Ends(ENDS[end])
    with torch.set_grad_enabled(grad), attach(model, TemplateSimilarityLoss(), head="classifier") as criterion:
        for _ in range(2):
            images, labels = images_of(32, 24)
            assert torch.isfinite(criterion(model(images), labels))


@EITHER_WAY
@pytest.mark.parametrize("head", ["coarse", "classifier"])
def test_scores_that_are_summed(head: str, grad: bool) -> None:
    model = TwoScores()
    images, labels = images_of(32, 24)
    with torch.set_grad_enabled(grad):
        assert torch.isfinite(attach(model, TemplateSimilarityLoss(), head=head)(model(images), labels))


@EITHER_WAY
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("end", PADDED)
def test_a_network_that_pads_its_input_and_crops_its_output_is_refused(end: str, training: bool, grad: bool) -> None:
    model = Ends(PADDED[end], pad=8).train(training)
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    with torch.set_grad_enabled(grad):
        for _ in range(2):
            images, labels = images_of(24, 32)  # a multiple: nothing is padded
            assert torch.isfinite(criterion(model(images), labels))
            for height, width, lines in ((24, 27, "columns"), (18, 24, "rows")):
                images, labels = images_of(height, width)
                with pytest.raises(ValueError, match=f"head: expected a grid that covers .*{lines}.*pad the images"):
                    criterion(model(images), labels)


@EITHER_WAY
def test_a_head_that_says_nothing_yet_hides_no_padding(grad: bool) -> None:
    model = Ends(double, pad=8).eval()
    nn.init.zeros_(model.classifier.weight)
    nn.init.zeros_(model.classifier.bias)
    images, labels = images_of(19, 24)
    for head in (None, "classifier"):
        criterion = attach(model, TemplateSimilarityLoss(), head=head)
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match="head: expected"):
            criterion(model(images), labels)


@EITHER_WAY
def test_a_head_of_several_layers_may_not_crop_either(grad: bool) -> None:
    class Block(nn.Module):
        def __init__(self, left: int) -> None:
            super().__init__()
            self.mix, self.left = nn.Conv2d(8, CLASSES, 3, padding=1), left

        def forward(self, x: Tensor) -> Tensor:
            return double(self.mix(x))[..., self.left :]

    images, labels = images_of(24, 24)
    for left in (0, 4):
        model = Net()
        model.classifier = Block(left)
        with torch.set_grad_enabled(grad), attach(model, TemplateSimilarityLoss(), head="classifier") as criterion:
            if left:
                with pytest.raises(ValueError, match="head's output, 20 columns"):
                    criterion(model(images), labels)
            else:
                criterion(model(images), labels)


def test_measuring_costs_once_for_every_size_and_leaves_no_trace() -> None:
    model, calls = Ends(PADDED["probabilities"]), []
    model.body.register_forward_pre_hook(lambda *_: calls.append(1))
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    for size in (16, 24, 16):
        images, labels = batch(size=size)
        output = model(images)
        before, random = snapshot(model), torch.get_rng_state()
        calls.clear()
        criterion(output, labels)
        assert_same(snapshot(model), before)
        assert torch.equal(torch.get_rng_state(), random)
        assert len(calls) == (0 if len(criterion._recorder.aligned) == 2 and size == 16 else 5)
    criterion.remove()
    assert len(list(hooks(model))) == 1


def test_a_small_grid_cannot_be_measured() -> None:
    model = Ends(PADDED["probabilities"])
    criterion = attach(model, TemplateSimilarityLoss(), head="classifier")
    images, labels = batch(size=6)
    with pytest.raises(ValueError, match=r"4 x 4 cells.*got one of \(3, 3\)"):
        criterion(model(images), labels)


@EITHER_WAY
@pytest.mark.parametrize("terms", [(), (TemplateSimilarityLoss(),)])
def test_an_output_larger_than_the_images_is_not_brought_to_their_size(terms: Any, grad: bool) -> None:
    class Pads(Net):
        def forward(self, images: Tensor) -> dict[str, Tensor]:
            return super().forward(F.pad(images, (0, -images.shape[3] % 8, 0, 0)))

    model, (images, labels) = Pads(), images_of(24, 27)
    criterion = attach(model, *terms)
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=r"labels: expected the output's size \(24, 32\) .*got \(24, 27\)"):
            criterion(model(images), labels)
        assert torch.isfinite(criterion(model(images), F.pad(labels, (0, 5), value=255)))
        output = F.interpolate(model(images)["out"], size=(24, 27), mode="bilinear")  # the caller knows better
        assert torch.isfinite(criterion(output, labels))


# --- which run of the head


@EITHER_WAY
def test_a_head_that_has_no_part_in_the_output_is_refused(grad: bool) -> None:
    model = Net(aux=True)
    images, labels = batch()
    criterion = attach(model, TemplateSimilarityLoss(), head="aux_classifier")
    with torch.set_grad_enabled(grad):
        with pytest.raises(ValueError, match=r"head: expected .*layer that the (logits|output)"):
            criterion(model(images), labels)
        assert torch.isfinite(criterion(model(images)["aux"], labels))


@EITHER_WAY
def test_a_layer_called_after_the_pass_does_not_count(grad: bool) -> None:
    model, images, labels, criterion = attached(Net().eval(), TemplateSimilarityLoss(), head="classifier")
    with torch.set_grad_enabled(grad):
        expected = criterion(model(images), labels)
        output = model(images)
        other = model.classifier(torch.randn(2, 8, 16, 16, requires_grad=True))
        assert torch.equal(criterion(output, labels), expected)
        model(images)
        other = model.classifier(torch.randn(2, 8, 16, 16, requires_grad=True))
        criterion(other, labels)
