"""Networks with one channel, masks of 0 and 1, and one mask per class."""

from typing import Any

import pytest
import torch
from attach_cases import CLASSES, Net, attached, batch, gradients
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import DiscriminativeRegionLoss, FixationWeightedLoss, TemplateSimilarityLoss
from perpixel.attach.criterion import attach
from perpixel.outputs import class_logits

FORMS = {
    "int": lambda masks: masks.long(),
    "bytes": lambda masks: masks.byte(),
    "float": lambda masks: masks.float(),
    "bool": lambda masks: masks,
    "int, a channel": lambda masks: masks.long()[:, None],
    "float, a channel": lambda masks: masks.float()[:, None],
    "bool, a channel": lambda masks: masks[:, None],
}
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


class Binary(Net):
    """One channel; `both` gives the two classes' logits that it stands for."""

    def __init__(self, aux: bool = False, both: bool = False) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(8, 1, 1)
        self.aux_classifier = nn.Conv2d(8, 1, 1) if aux else None
        self.both = both
        if both:
            self.classifier = Both(self.classifier)
            self.aux_classifier = Both(self.aux_classifier) if aux else None


class Both(nn.Module):
    """(-z/2, z/2) of a layer's one channel z, as one convolution."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.one = layer

    def forward(self, x: Tensor) -> Tensor:
        return class_logits(self.one(x))


def images_and_masks() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 16, 16), torch.rand(2, 16, 16) > 0.6


@EVERY_FORM
@pytest.mark.parametrize("void", [False, True])
@pytest.mark.parametrize("aux", [False, True])
def test_one_channel_is_two_classes(aux: bool, void: bool, form: str) -> None:
    binary, both = Binary(aux), Binary(aux, both=True)
    for one, other in zip(both.parameters(), binary.parameters(), strict=True):
        one.data.copy_(other.data)
    images, masks = images_and_masks()
    labels, classes = FORMS[form](masks), masks.long()
    if void and labels.dtype != torch.bool:
        labels[..., :3], classes[..., :3] = 255, 255
    terms = (TemplateSimilarityLoss, DiscriminativeRegionLoss, lambda: FixationWeightedLoss(cell=4))
    criterion = attach(binary, *(make() for make in terms))
    expected = attach(both, *(make() for make in terms), head="classifier")
    criterion(binary(images), labels).backward()
    expected(both(images), classes).backward()
    assert criterion.head == "classifier"
    for name, value in expected.terms.items():
        torch.testing.assert_close(criterion.terms[name], value, msg=lambda m, name=name: f"{name}: {m}")
    for (name, one), other in zip(gradients(binary).items(), gradients(both).values(), strict=True):
        torch.testing.assert_close(one, other, msg=lambda m, name=name: f"{name}: {m}")
    logits, valid = binary(images)["out"][:, 0], classes != 255
    by_hand = F.binary_cross_entropy_with_logits(logits[valid], classes[valid].float())
    torch.testing.assert_close(criterion.base(logits[:, None], labels), by_hand)


@EVERY_FORM
@pytest.mark.parametrize("loss", ["Dice", "Jaccard", "Focal", "Tversky", "Lovasz", "SoftBCEWithLogits", "torch"])
def test_binary_losses_of_the_libraries_take_masks_of_any_form(loss: str, form: str) -> None:
    if loss == "torch":
        base: Any = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0))
    else:
        losses = pytest.importorskip("segmentation_models_pytorch").losses
        base = getattr(losses, f"{loss}Loss")(**({} if loss == "SoftBCEWithLogits" else {"mode": "binary"}))
    model, (images, masks) = Binary(aux=True), images_and_masks()
    criterion = attach(model, TemplateSimilarityLoss(weight=0.3), base=base)
    output = model(images)
    criterion(output, FORMS[form](masks)).backward()
    target = masks.float()[:, None]
    torch.testing.assert_close(criterion.terms["base"], base(output["out"], target).detach())
    torch.testing.assert_close(criterion.terms["aux"], base(output["aux"], target).detach())
    assert model.aux_classifier.weight.grad.any()


@EVERY_FORM
def test_a_base_of_ones_own_gets_the_masks_as_they_are(form: str) -> None:
    given: list[Tensor] = []

    def base(logits: Tensor, labels: Tensor) -> Tensor:
        given.extend((logits, labels))
        return logits.mean()

    model, (images, masks) = Binary(), images_and_masks()
    labels = FORMS[form](masks)
    attach(model, TemplateSimilarityLoss(), base=base)(model(images[..., ::2, ::2]), labels[..., ::2, ::2])
    assert torch.equal(given[1], labels[..., ::2, ::2])
    assert given[1].dtype == labels.dtype
    assert given[0].shape == (2, 1, 8, 8)


def test_what_fits_no_binary_network_is_refused() -> None:
    model, images, _, criterion = attached(Binary(), TemplateSimilarityLoss())
    for labels, message in (
        (torch.full((2, 16, 16), 2), "labels.*2 at position"),
        (torch.full((2, 16, 16), 0.5), "labels"),
        (torch.zeros(2, 2, 16, 16), "labels: expected class numbers"),
    ):
        with pytest.raises(ValueError, match=message):
            criterion(model(images), labels)
    with pytest.raises(ValueError, match=r"base: expected a loss of one channel.*BCEWithLogitsLoss\(\)"):
        attach(model, base=nn.CrossEntropyLoss())(model(images), torch.zeros(2, 16, 16, dtype=torch.long))


def test_one_mask_per_class_is_for_a_base_that_takes_it() -> None:
    model, (images, _) = Net(aux=True), batch()
    masks = (torch.rand(2, CLASSES, 16, 16) > 0.5).float()
    base = nn.BCEWithLogitsLoss()
    criterion = attach(model, base=base)
    output = model(images)
    loss = criterion(output, masks)
    torch.testing.assert_close(loss, base(output["out"], masks) + 0.5 * base(output["aux"], masks))
    for terms, own, named in (((), None, "base"), ((TemplateSimilarityLoss(),), base, "template_similarity")):
        with pytest.raises(ValueError, match=rf"labels: .*for {named}, got one mask per class.*BCEWithLogitsLoss\(\)"):
            attach(model, *terms, base=own)(model(images), masks)
