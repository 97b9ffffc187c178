"""A model that declares where the cells of its grid lie: terms get the labels of these places."""

import pytest
import torch
from attach_cases import CLASSES
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel import TemplateSimilarityLoss
from perpixel.attach.criterion import attach


class Overhanging(nn.Module):
    """Stride 4, the last cells partly outside the image; the output reads the grid where its cells lie."""

    classifier_layer, classifier_cells = "classifier", (4, 1.5)

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 4, stride=4)
        self.classifier = nn.Conv2d(8, CLASSES, 1)

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        grid = self.classifier(self.body(F.pad(images, (0, -width % 4, 0, -height % 4))))
        return F.interpolate(grid, scale_factor=4, mode="bilinear")[..., :height, :width]


class Seen(TemplateSimilarityLoss):
    """Keeps the labels it was given."""

    def forward(self, features: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        self.labels = labels
        return super().forward(features, logits, labels)


@pytest.mark.parametrize("factor", [1, 2])
def test_terms_get_the_labels_at_the_centres_of_declared_cells(factor: int) -> None:
    model, term = Overhanging(), Seen(ignore_index=9)
    images, labels = torch.rand(2, 3, 10, 9), torch.randint(0, CLASSES, (2, 10, 9))
    with attach(model, term) as criterion:
        logits = F.interpolate(model(images), scale_factor=factor, mode="nearest")
        criterion(logits, labels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)).backward()
    for image, row, column in ((i, y, x) for i in range(2) for y in range(3) for x in range(3)):
        y, x = 4 * row + 2, 4 * column + 2  # 1.5 is as near to 2 as to 1
        expected = labels[image, y, x] if y < 10 and x < 9 else 9
        assert term.labels[image, row, column] == expected
    assert model.body.weight.grad is not None
    assert float(model.body.weight.grad.abs().sum()) > 0


def test_another_layer_than_the_declared_one_is_measured_and_bad_declarations_are_refused() -> None:
    model = Overhanging()
    model.after = nn.Conv2d(CLASSES, CLASSES, 1)
    model.forward = lambda images: model.after(Overhanging.forward(model, images))  # type: ignore[method-assign]
    term = Seen()
    with attach(model, term, head="after") as criterion:
        criterion(model(torch.rand(2, 3, 10, 9)), torch.zeros(2, 10, 9, dtype=torch.long))
        assert term.labels.shape == (2, 10, 9)
    for cells in (4, (4, 1.5, 0), (0, 1.5), (4, float("nan")), ("4", 1)):
        model.classifier_cells = cells  # type: ignore[assignment]
        with pytest.raises(ValueError, match=r"Overhanging.classifier_cells: expected \(stride, offset\)"):
            attach(model, Seen())
