"""DeepLab: LargeFOV (Chen et al. 2015, arXiv 1412.7062) and version 2 with atrous pyramids (arXiv 1606.00915)."""

from collections import OrderedDict
from collections.abc import Callable
from functools import reduce
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from perpixel.checks import check_flag, check_integer, check_number, check_option, complain
from perpixel.models.backbones import backbone_weights, classification_network, vgg_layers
from perpixel.models.learnable_upsampling import Cells

Refine = Callable[[Tensor, Tensor], Tensor]

STRIDE = 8
RATES = (6, 12, 18, 24)
SCALES = {"scale_0.5": (1, 2), "scale_0.75": (3, 4)}  # beside 1
_FULLY_CONNECTED = 4096  # units of VGG's


class AtrousPyramid(nn.Module):
    """3×3 convolutions of several dilations on one input (N, D, h, w), their outputs summed or concatenated.

    Summed to C channels it is the ASPP classifier of DeepLab-v2 on ResNet-101: features in, logits out.
    """

    def __init__(
        self, inputs: int, outputs: int, rates: tuple[int, ...] = RATES, *, join: Literal["sum", "cat"] = "sum"
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=rate, dilation=rate) for rate in rates)
        self.join = check_option("join", join, ("sum", "cat"))

    def forward(self, features: Tensor) -> Tensor:
        maps = [branch(features) for branch in self.branches]
        return torch.cat(maps, 1) if self.join == "cat" else reduce(torch.add, maps)


class DeepLab(nn.Module):
    """Images (N, 3, H, W) -> logits (N, C, H, W); H and W at least 8, 16 with several scales.

    `features` bring the image to a grid of stride 8; `fc6` and `fc7`, where there are, widen the view; `classifier`
    gives the logits on the grid, of what `perpixel.attach` calls the features.

    Alignment: every layer of stride 2 has a window of odd size, padded by half of it, and so is centred on pixel 2i.
    Cell i of the grid, ⌈H/8⌉ long, therefore lies at pixel 8i, whatever the size; pixel p of the logits is read at
    p/8 (bilinear; the last cell goes on to the edge). On 8k + 1 pixels, the sizes of the papers (321, 513), that is
    resizing with align_corners=True; on others Caffe, which rounds sizes up in pooling, has a cell more.

    multi_scale: images at 1, 0.75 and 0.5 of their size (by align_corners=True, which keeps 8k + 1 pixels in step with
    the grid) through the same layers; their logits, brought to (H, W), are fused by the maximum. Returns {"out": fused,
    "scale_0.5", "scale_0.75", "scale_1"}, each (N, C, H, W). The paper trains all four alike: `attach(model, aux=1.0)`.
    The images' own scale runs last: terms are given its features and logits.

    refine: a function (images, logits) -> logits (N, C, H, W), applied in evaluation mode only, to "out" where there
    are several maps: a dense CRF, for which there are packages (pydensecrf, SimpleCRF). An attribute that may be set or
    be None; no part of `state_dict`, of copies or of pickles. `perpixel.evaluation` scores with it; fixations,
    attributions and losses are of the network without it.
    """

    classifier_layer, classifier_cells = "classifier", Cells(STRIDE, 0)  # for `perpixel.attach`
    refine: Refine | None

    def __init__(
        self,
        features: nn.Module,
        classifier: nn.Module,
        *,
        fc6: nn.Module | None = None,
        fc7: nn.Module | None = None,
        dropout: float = 0.5,
        multi_scale: bool = False,
        refine: Refine | None = None,
    ) -> None:
        super().__init__()
        self.features, self.fc6, self.fc7 = features, fc6, fc7
        self.dropout = nn.Dropout(check_number("dropout", dropout, low=0, high=1, open_high=True))
        self.classifier = classifier
        self.multi_scale = check_flag("multi_scale", multi_scale)
        self.refine, self.post_processing = refine, "refine"  # off where `perpixel` explains

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        _check_images(images, 2 * STRIDE if self.multi_scale else STRIDE)
        if not self.multi_scale:
            return self._refined(images, self._logits(images))
        height, width = images.shape[-2:]
        maps = {}
        for name, (part, whole) in SCALES.items():
            size = (height - 1) * part // whole + 1, (width - 1) * part // whole + 1
            smaller = F.interpolate(images, size=size, mode="bilinear", align_corners=True)
            logits = self._logits(smaller)
            maps[name] = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=True)
        maps["scale_1"] = self._logits(images)
        return {"out": self._refined(images, reduce(torch.maximum, maps.values())), **maps}

    def _logits(self, images: Tensor) -> Tensor:
        """Of one scale, at the size of the images given."""
        x = self.features(images)
        for layer in (self.fc6, self.fc7):
            if layer is not None:
                x = self.dropout(F.relu(layer(x), inplace=True))
        grid = F.pad(self.classifier(x), (0, 1, 0, 1), mode="replicate")
        height, width = images.shape[-2:]
        size = STRIDE * (grid.shape[-2] - 1) + 1, STRIDE * (grid.shape[-1] - 1) + 1
        return F.interpolate(grid, size=size, mode="bilinear", align_corners=True)[..., :height, :width]

    def _refined(self, images: Tensor, logits: Tensor) -> Tensor:
        if self.refine is None or self.training:
            return logits
        refined = self.refine(images, logits)
        if not isinstance(refined, Tensor) or refined.shape != logits.shape:
            expected = f"a function that gives logits {tuple(logits.shape)}"
            raise ValueError(complain("refine", expected, refined, "Give logits as they came, (N, C, H, W)."))
        return refined

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "refine":
            super().__setattr__(name, value)
        elif value is None or callable(value):
            object.__setattr__(self, name, value)  # a module would become a layer
        else:
            raise TypeError(complain("refine", "a function (images, logits) or None", value, "Pass one."))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "refine": None}


def deeplab_largefov_vgg16(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 1024,
    dropout: float = 0.5,
    multi_scale: bool = False,
    refine: Refine | None = None,
) -> DeepLab:
    """DeepLab LargeFOV on VGG-16 (arXiv 1412.7062), see `DeepLab`: fc6 3×3 of dilation 12, fc7 1×1, classifier 1×1.

    Pools are 3×3 with padding 1, of stride 1 from pool4 on, not torchvision's 2×2: so the original has them, whose
    weights are made for them, and so every cell lies on a pixel. conv5 has dilation 2; after pool5 there is a 3×3 mean,
    as in the original.

    Args:
        num_classes: C; 1 for a binary network.
        weights: torchvision's of vgg16. fc6 and fc7 then are samples of its fully connected layers: taps 0, 3, 6 of
            each axis of the 7×7, and filters spaced evenly (every fourth of 4096 for 1024), the same in the output of
            fc6 as in the input and the output of fc7; or random where the weights have none (IMAGENET1K_FEATURES).
            None: random (Kaiming). The classifier is drawn with deviation 0.01.
        width: share of VGG's channels, for small trials, without weights only.
        fc_channels: of fc6 and fc7.
        dropout: after fc6 and after fc7.
        multi_scale, refine: see `DeepLab`.
    """
    options = {"dropout": dropout, "multi_scale": multi_scale, "refine": refine}
    return _vgg16(num_classes, (12,), fc_channels, weights, width, options)


def deeplab_v2_vgg16(
    num_classes: int,
    *,
    weights: Any = None,
    width: float = 1.0,
    fc_channels: int = 1024,
    dropout: float = 0.5,
    multi_scale: bool = False,
    refine: Refine | None = None,
) -> DeepLab:
    """DeepLab-v2 on VGG-16 (arXiv 1606.00915): four branches fc6, fc7, fc8, of dilation 6, 12, 18, 24, summed.

    The features are those of the four branches side by side, (N, 4 · fc_channels, h, w): fc7 is one convolution of four
    groups, and the sum of the four fc8 is one 1×1 convolution of them all, `classifier`. Pools and options as in
    `deeplab_largefov_vgg16`, weights too, the same ones in every branch; without the mean after pool5.
    """
    options = {"dropout": dropout, "multi_scale": multi_scale, "refine": refine}
    return _vgg16(num_classes, RATES, fc_channels, weights, width, options)


def deeplab_v2_resnet101(
    num_classes: int,
    *,
    weights: Any = None,
    multi_scale: bool = False,
    refine: Refine | None = None,
) -> DeepLab:
    """DeepLab-v2 on ResNet-101 (arXiv 1606.00915), see `DeepLab`.

    Layers 3 and 4 keep stride 8 with dilation 2 and 4; 1 and 2 in their first blocks, as the stride they had asks for
    and torchvision does (the original dilates these as well). The classifier is an `AtrousPyramid` of dilation 6, 12,
    18, 24 on their 2048 channels, drawn with deviation 0.01. The paper keeps batch statistics fixed: put the
    normalisation layers in evaluation mode for small batches.

    Args:
        num_classes: C; 1 for a binary network.
        weights: torchvision's of resnet101; None: random.
        multi_scale, refine: see `DeepLab`.
    """
    check_integer("num_classes", num_classes, low=1)
    network = classification_network("resnet101", weights, replace_stride_with_dilation=[False, True, True])
    return resnet_with_pyramid(network, num_classes, multi_scale=multi_scale, refine=refine)


def resnet_with_pyramid(network: Any, num_classes: int, **options: Any) -> DeepLab:
    """DeepLab-v2 of torchvision's ResNet, built with stride 8."""
    layers = [(name, layer) for name, layer in network.named_children() if name not in ("avgpool", "fc")]
    classifier = AtrousPyramid(network.fc.in_features, num_classes)
    for branch in classifier.branches:
        _draw_classifier(branch)
    return DeepLab(nn.Sequential(OrderedDict(layers)), classifier, **options)


def _vgg16(
    num_classes: int, rates: tuple[int, ...], channels: int, weights: Any, width: float, options: dict[str, Any]
) -> DeepLab:
    check_integer("num_classes", num_classes, low=1)
    check_integer("fc_channels", channels, low=1)
    network: Any = None
    if backbone_weights("vgg16", weights) is not None:
        if width != 1 or channels > _FULLY_CONNECTED:
            name, value = ("width", width) if width != 1 else ("fc_channels", channels)
            expected = "1 with weights" if width != 1 else f"at most {_FULLY_CONNECTED} with weights"
            raise ValueError(complain(name, expected, value, "Leave it, or the weights, out."))
        network = classification_network("vgg16", weights)
    features = vgg_layers("vgg16", width=width) if network is None else network.features
    inputs = _dilate(features)
    if len(rates) == 1:
        features.append(nn.AvgPool2d(3, stride=1, padding=1))
    fc6: Any = AtrousPyramid(inputs, channels, rates, join="cat")
    units = len(rates) * channels
    fc7, classifier = nn.Conv2d(units, units, 1, groups=len(rates)), nn.Conv2d(units, num_classes, 1)
    for layer in (*fc6.branches, fc7):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    if network is not None and bool(network.classifier[0].weight.isfinite().all()):
        _sample(fc6.branches, fc7, network.classifier)
    _draw_classifier(classifier)
    return DeepLab(features, classifier, fc6=fc6 if len(rates) > 1 else fc6.branches[0], fc7=fc7, **options)


def _dilate(features: nn.Sequential) -> int:
    """Stride 8: VGG's pools 3×3, the last two of stride 1, and dilation 2 in between; the channels at the end."""
    pools, channels = 0, 3
    for place, layer in enumerate(features):
        if isinstance(layer, nn.MaxPool2d):
            pools += 1
            features[place] = nn.MaxPool2d(3, stride=2 if pools < 4 else 1, padding=1)
        elif isinstance(layer, nn.Conv2d):
            channels = layer.out_channels
            if pools == 4:
                layer.dilation = layer.padding = (2, 2)
    return channels


@torch.no_grad()
def _sample(fc6: Any, fc7: Any, classifier: Any) -> None:
    """Give each branch the same sample of VGG's fully connected layers."""
    first, second = classifier[0], classifier[3]
    channels = fc7.in_channels // len(fc6)
    chosen = torch.arange(channels) * _FULLY_CONNECTED // channels
    for layer in fc6:
        layer.weight.copy_(first.weight.unflatten(1, (-1, 7, 7))[:, :, ::3, ::3][chosen])
        layer.bias.copy_(first.bias[chosen])
    fc7.weight.copy_(second.weight[chosen][:, chosen, None, None].repeat(len(fc6), 1, 1, 1))
    fc7.bias.copy_(second.bias[chosen].repeat(len(fc6)))


def _draw_classifier(layer: Any) -> None:
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)


def _check_images(images: Tensor, minimum: int) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < minimum:
        expected = f"shape (N, 3, H, W) with H and W at least {minimum}"
        raise ValueError(complain("images", expected, images, "Pass a batch of RGB images of that size."))


fx.wrap("_check_images")
