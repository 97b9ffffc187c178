"""Fully convolutional networks (Long, Shelhamer and Darrell 2015, arXiv 1411.4038) on torchvision's classifiers."""

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, check_number, complain
from perpixel.models.backbones import (
    alexnet_layers,
    as_convolution,
    classification_network,
    googlenet_layers,
    vgg_layers,
)
from perpixel.models.learnable_upsampling import LearnableUpsampling, cells_of, count_cells

SMALLEST = 32  # images: a cell of the coarse grid
_POOLS = {"pool4": 23, "pool3": 16}  # their places in VGG-16's features
_UPSCORES = {"pool4": "upscore2", "pool3": "upscore_pool4"}  # what brings the scores to their grids
_LAST = ("upscore32.weight", "upscore16.weight", "upscore8.weight")  # what brings them to the image
Start = nn.Module | Mapping[str, Tensor] | None


class FCN(nn.Module):
    """Images (N, 3, H, W), H and W at least 32 -> logits (N, C, H, W); what the functions of this file build.

    `features`: the classifier's layers. `fc6` and `fc7`: its fully connected layers as convolutions, where it has them.
    `score`, 1×1, on the grid of stride 32; `score_pool4` and `score_pool3`, 1×1, on those of stride 16 and 8, to which
    `upscore2` and `upscore_pool4` bring the sum so far; `upscore32`, `upscore16` or `upscore8` from there to the image,
    each a `LearnableUpsampling`. The paper (section 4.3) keeps the last one bilinear, the authors' published networks
    all of them; network.upscore8.requires_grad_(False) does.

    Every grid is read where its cells lie, (y - offset) / stride, with the offset that follows from kernels, strides
    and paddings: scores come out at the pixels they were computed for, whatever the size of the images. Poolings round
    up, so that no row or column of the image is left out. Skip scores start at zero; the paper's `score` does, too, but
    here it is drawn at random, so that a network with random weights, the usual control, says something.

    For `perpixel.attach` the classifier is `score`: its input, fc7's output, are the features of a term, its output the
    logits, and the label of a cell is that of the pixel at its centre (`classifier_cells`, stride and offset; void
    outside the image). The sum on the finest grid has no features of its own: it is linear in three maps of different
    channels, grids and scale, and the skips enter as corrections to what `score` says.
    """

    classifier_layer = "score"

    def __init__(
        self,
        num_classes: int,
        features: nn.Sequential,
        channels: int,
        *,
        fc6: nn.Conv2d | None = None,
        fc7: nn.Conv2d | None = None,
        skips: tuple[str, ...] = (),
        dropout: float = 0.5,
    ) -> None:
        """channels: those that `score` is given. skips: () or ("pool4",) or ("pool4", "pool3"), on VGG-16."""
        super().__init__()
        check_integer("num_classes", num_classes, low=1)
        layers = [getattr(layer, "conv", layer) for layer in features]
        layers += [] if fc6 is None else [fc6]
        self.smallest = next(size for size in count(SMALLEST) if count_cells(layers, size) > 0)
        self.classifier_cells = cells = cells_of(layers)
        self.features, self.fc6, self.fc7 = features, fc6, fc7
        self.dropout = nn.Dropout(check_number("dropout", dropout, low=0, high=1))
        self.score = _score(channels, num_classes, std=0.01)
        self.skips = tuple((pool, _POOLS[pool]) for pool in skips)
        for pool, place in self.skips:
            below = layers[: place + 1]
            finer = cells_of(below)
            self.add_module(f"score_{pool}", _score(_convolutions(below)[-1].out_channels, num_classes, std=0))
            self.add_module(_UPSCORES[pool], LearnableUpsampling(num_classes, *cells.seen_from(finer)))
            cells = finer
        self.last = f"upscore{cells.stride}"
        self.add_module(self.last, LearnableUpsampling(num_classes, *cells))

    def forward(self, images: Tensor) -> Tensor:
        _check(images)
        size, x, pooled = images.shape[-2:], images, {}
        if self.smallest > SMALLEST:
            x = F.pad(x, (0, _missing(size[1], self.smallest), 0, _missing(size[0], self.smallest)))
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in [taken for _, taken in self.skips]:
                pooled[place] = x
        if self.fc6 is not None and self.fc7 is not None:
            x = self.dropout(F.relu(self.fc6(x), inplace=True))
            x = F.relu(self.fc7(x), inplace=True)
        scores = self.score(self.dropout(x))
        for pool, place in self.skips:
            finer = getattr(self, f"score_{pool}")(pooled[place])
            scores = getattr(self, _UPSCORES[pool])(scores, finer.shape[-2:]) + finer
        return getattr(self, self.last)(scores, size)


def fcn32s_vgg16(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 4096,
    dropout: float = 0.5,
    padding: int | None = None,
) -> FCN:
    """FCN-32s on VGG-16: the scores of fc7, 32 pixels apart, brought to the image at once.

    Args:
        num_classes: C.
        weights: torchvision's of vgg16, such as "DEFAULT"; None: random (Kaiming). fc6 and fc7 are its classifier's
            first two layers, reshaped; they start at random where the weights have none (IMAGENET1K_FEATURES) or
            `fc_channels` is not 4096.
        width: Share of VGG-16's channels, for small trials; not with weights.
        fc_channels: Channels of fc6 and fc7.
        dropout: Behind fc6 and fc7.
        padding: None pads what fc6 is given by 3 cells, so that its grid is that of pool5. The original instead pads
            the images, in the first convolution, by 100 pixels, and fc6 not at all, so that the smallest image leaves
            something for a window of 7 cells, at the cost of 3.5 times the pixels (of a 224×224 image); 100 is for
            weights that were trained so. Scores lie where they belong in either case; beyond the outermost cells, where
            the original fades to zero, their value goes on.

    Raises:
        ValueError: weights that do not exist or another `width` with them; images under 32 pixels a side.
    """
    options: dict[str, Any] = {"fc_channels": fc_channels, "dropout": dropout, "padding": padding}
    return _vgg16(num_classes, (), weights, width=width, **options)


def fcn16s_vgg16(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 4096,
    dropout: float = 0.5,
    padding: int | None = None,
    start: Start = None,
) -> FCN:
    """FCN-16s on VGG-16: the scores of fc7, brought to the grid of pool4, and those of pool4, brought to the image.

    start: a trained `fcn32s_vgg16`, or its state dict, to go on from, without `weights` and of the same options. All it
        has is taken but `upscore32`. Since scores of pool4 start at zero, the logits are those of the 32s network at
        first, but for the corners of linear interpolation, which two steps cut: at a cell's centre by an eighth of how
        much its score differs from its neighbours' on either side, x[i-1] - 2 x[i] + x[i+1], along each axis.

    Other arguments and errors: `fcn32s_vgg16`; ValueError for a start of another network, which names what differs.
    """
    options: dict[str, Any] = {
        "width": width,
        "fc_channels": fc_channels,
        "dropout": dropout,
        "padding": padding,
        "start": start,
    }
    return _vgg16(num_classes, ("pool4",), weights, **options)


def fcn8s_vgg16(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 4096,
    dropout: float = 0.5,
    padding: int | None = None,
    start: Start = None,
) -> FCN:
    """FCN-8s on VGG-16: as `fcn16s_vgg16`, and the sum brought to the grid of pool3 and added to its scores.

    start: a trained `fcn16s_vgg16`, or `fcn32s_vgg16` to learn both skips at once.
    """
    options: dict[str, Any] = {
        "width": width,
        "fc_channels": fc_channels,
        "dropout": dropout,
        "padding": padding,
        "start": start,
    }
    return _vgg16(num_classes, ("pool4", "pool3"), weights, **options)


def fcn32s_alexnet(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 4096,
    dropout: float = 0.5,
    padding: int | None = None,
) -> FCN:
    """FCN-32s on AlexNet (torchvision's, without groups and response normalisation).

    The first convolution reaches 2 pixels beyond the image and its windows of 11 pixels lie 4 apart, those of the
    poolings overlap: cell 0 of pool5 is at pixel 31, of fc6, whose window is 6×6, at 15 (padding None) instead of 15.5,
    half a stride. Images under 35 pixels are filled up with zeros to that, at the bottom and the right.

    Arguments and errors: `fcn32s_vgg16`.
    """
    network = _classifier("alexnet", weights, width)
    features = alexnet_layers(width=width) if network is None else network.features
    linear = None if network is None else (network.classifier[1], network.classifier[4])
    options: dict[str, Any] = {"fc_channels": fc_channels, "dropout": dropout, "padding": padding}
    return _with_windows(num_classes, features, linear, 6, **options)


def fcn32s_googlenet(num_classes: int, *, weights: Any = None, dropout: float = 0.2) -> FCN:
    """FCN-32s on GoogLeNet: scores of its last layer before the mean over the image, which is left out.

    There is no window of fully connected layers to pad for, so no `padding`; 32 pixels are enough. The first cell is at
    pixel 22. The auxiliary classifiers are left out: torchvision's weights have no trained ones, and they score images.
    As with torchvision's, images are normalised as for any other network, whatever these weights want.

    Arguments and errors: `fcn32s_vgg16`; 5.6 million parameters, so there is no `width`.
    """
    return FCN(num_classes, googlenet_layers(weights), 1024, dropout=dropout)


def _vgg16(
    num_classes: int, skips: tuple[str, ...], weights: Any, start: Start = None, *, width: float, **options: Any
) -> FCN:
    if start is not None and weights is not None:
        raise ValueError(complain("start", "None beside weights", type(start).__name__, "Leave one of them out."))
    network = _classifier("vgg16", weights, width)
    features = vgg_layers("vgg16", width=width) if network is None else network.features
    linear = None if network is None else (network.classifier[0], network.classifier[3])
    fcn = _with_windows(num_classes, features, linear, 7, skips=skips, **options)
    if start is not None:
        _go_on_from(start, fcn)
    return fcn


def _classifier(backbone: str, weights: Any, width: float) -> Any:
    """The classification network with its weights, or None for random ones."""
    if weights is not None and width != 1:
        raise ValueError(complain("width", "1 with weights", width, "Leave one of them out."))
    return None if weights is None else classification_network(backbone, weights)


def _with_windows(
    num_classes: int,
    features: nn.Sequential,
    linear: tuple[nn.Linear, nn.Linear] | None,
    size: int,
    *,
    fc_channels: int,
    padding: int | None,
    dropout: float,
    skips: tuple[str, ...] = (),
) -> FCN:
    """The network with fc6, of windows of `size` cells, and fc7; their weights are those of `linear`, if they fit."""
    check_integer("fc_channels", fc_channels, low=1)
    for layer in features:
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
    first, last = (_convolutions(features)[place] for place in (0, -1))
    within = size // 2
    if padding is not None:
        first.padding, within = 2 * (check_integer("padding", padding, low=0),), 0
    if linear is not None and linear[0].out_features == fc_channels and bool(linear[0].weight.isfinite().all()):
        fc6, fc7 = as_convolution(linear[0], size, padding=within), as_convolution(linear[1])
    else:
        fc6 = nn.Conv2d(last.out_channels, fc_channels, size, padding=within)
        fc7 = nn.Conv2d(fc_channels, fc_channels, 1)
        for fc in (fc6, fc7):
            nn.init.kaiming_normal_(fc.weight, nonlinearity="relu")
            nn.init.constant_(cast(Tensor, fc.bias), 0)
    return FCN(num_classes, features, fc_channels, fc6=fc6, fc7=fc7, skips=skips, dropout=dropout)


def _go_on_from(start: nn.Module | Mapping[str, Tensor], network: FCN) -> None:
    """Give `network` the weights of one with fewer skips; ValueError that says what differs, and nothing is changed."""
    given = start.state_dict() if isinstance(start, nn.Module) else start
    own, new = network.state_dict(), set()
    for pool, _ in network.skips:
        new |= {f"score_{pool}.weight", f"score_{pool}.bias", f"{_UPSCORES[pool]}.weight"}
    given = {name: value for name, value in given.items() if name in own or name not in _LAST}
    missing = [name for name in own if name not in given and name not in {*new, f"{network.last}.weight"}]
    differ = [name for name in given if name not in own or given[name].shape != own[name].shape]
    if missing or differ:
        shapes = [f"{name} {tuple(given[name].shape)}" for name in differ]
        came = f"one without {missing[:3] or 'nothing'} and with {shapes[:3] or 'nothing'} besides or of another shape"
        expected = "the same network with as many skips or fewer, of the same options"
        raise ValueError(complain("start", expected, came, "Build both with the same options."))
    network.load_state_dict(given, strict=False)


def _score(channels: int, num_classes: int, std: float) -> nn.Conv2d:
    layer: Any = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def _convolutions(layers: Iterable[nn.Module]) -> list[nn.Conv2d]:
    return [layer for layer in layers if isinstance(layer, nn.Conv2d)]


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < SMALLEST:
        expected = f"shape (N, 3, H, W) with H and W at least {SMALLEST}"
        raise ValueError(complain("images", expected, images, "Pass a batch of RGB images, resized or padded."))


def _missing(length: int, smallest: int) -> int:
    """How much shorter than `smallest` it is."""
    return max(0, smallest - length)


for _name in ("_check", "_missing"):  # of sizes, which symbolic_trace does not know
    torch.fx.wrap(_name)
