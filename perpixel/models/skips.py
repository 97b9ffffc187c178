"""One skip connection from any node of a classification network to the prediction (Yim and Sohn, arXiv 1710.08192)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.checks import check_integer, complain
from perpixel.models.learnable_upsampling import Cells
from perpixel.models.nodes import FeatureMap, cut_backbone, inspected


def single_skip(
    num_classes: int,
    *,
    backbone: str = "resnet18",
    layer: str | Sequence[str] | None = None,
    weights: Any = None,
) -> "SkipNetwork":
    """torchvision's `backbone` with one skip connection from `layer` to the prediction.

    The last feature map is scored by a 1×1 convolution and brought to the grid of `layer`, where a second score, of
    that node and zero at first, is added; the sum is brought to the image. Units are placed where their receptive
    fields lie, whatever stride and padding made of them.

    Args:
        num_classes: C.
        backbone: A classification network of torchvision that takes images of any size.
        layer: A key of `feature_maps(backbone)`, or a module, whose last map is meant. None, or the last map itself:
            no skip. Several: a skip from each, coarse to fine, as of FCN-16s and FCN-8s.
        weights: torchvision's weights of the backbone.

    Raises:
        ValueError: an unknown backbone or layer, or one that gives no map; the choices are listed.
    """
    check_integer("num_classes", num_classes, low=1)
    known = inspected(backbone)
    *_, last = known.maps.values()
    names = () if layer is None else layer if isinstance(layer, (tuple, list)) else (layer,)
    found = {known.find(name) for name in names}
    maps = [last, *(one for one in reversed(known.maps.values()) if one in found and one != last)]
    network = cut_backbone(backbone, weights, [one.name for one in maps])
    return SkipNetwork(network, known.minimum, maps, num_classes)


def upsample(maps: Tensor, size: Sequence[int], cells: Cells) -> Tensor:
    """Maps (N, C, h, w) -> (N, C, H, W): at y the bilinear value at (y - offset) / stride, at the rim the nearest one.

    By a matrix per axis: F.interpolate knows no such offsets, and its gradient takes several times as long on a CPU.
    """
    return _between(cells, maps, 2, size[0]) @ maps @ _between(cells, maps, 3, size[1]).mT


@torch.fx.wrap
def _between(cells: Cells, maps: Tensor, axis: int, pixels: int) -> Tensor:
    """(pixels, units of the axis): how much of every unit a pixel has."""
    units = torch.arange(maps.shape[axis], device=maps.device)
    place = (torch.arange(pixels, device=maps.device) - cells.offset) / cells.stride
    place = place.clamp(0, maps.shape[axis] - 1)
    return (1 - (place[:, None] - units).abs()).clamp(min=0).to(maps.dtype)


@torch.fx.wrap
def _check_images(images: Tensor, minimum: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < minimum:
        expected = f"shape (N, 3, H, W) with H and W at least {minimum}"
        raise ValueError(complain("images", expected, images, "Pass a batch of RGB images, or larger ones."))


class SkipHead(nn.Module):
    """Scores of the last map and of the skips, summed from coarse to fine: maps -> logits (N, C, H, W)."""

    def __init__(self, maps: Sequence[FeatureMap], num_classes: int) -> None:
        super().__init__()
        self.maps = tuple(maps)
        self.classifier = nn.Conv2d(maps[0].channels, num_classes, 1)
        self.skips = nn.ModuleList(nn.Conv2d(skip.channels, num_classes, 1) for skip in maps[1:])
        for parameter in self.skips.parameters():
            nn.init.zeros_(parameter)

    def forward(self, maps: Sequence[Tensor], size: Sequence[int]) -> Tensor:
        """maps: of the last layer, then of the skips from coarse to fine; size: of the image."""
        logits, here = self.classifier(maps[0]), self.maps[0]
        for score, features, there in zip(self.skips, maps[1:], self.maps[1:]):
            cells = here.cells.seen_from(there.cells)
            logits, here = upsample(logits, features.shape[-2:], cells) + score(features), there
        return upsample(logits, size, here.cells)


class SkipNetwork(nn.Module):
    """Images (N, 3, H, W) -> logits (N, C, H, W): `backbone`, images -> its maps by name, and a `SkipHead`."""

    classifier_layer = "head.classifier"  # for `perpixel.attach`: the score of the last map

    def __init__(self, backbone: nn.Module, minimum: int, maps: Sequence[FeatureMap], num_classes: int) -> None:
        super().__init__()
        self.backbone, self.minimum = backbone, minimum
        self.head = SkipHead(maps, num_classes)
        self.classifier_cells = tuple(maps[0].cells)  # where the units of its grid lie

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images, self.minimum)
        found = self.backbone(images)
        return self.head([found[one.name] for one in self.head.maps], images.shape[-2:])
