"""A VGG network whose path back up is tied to the path down, for maps learned from image labels alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_flag, check_integer, check_tensor, complain
from perpixel.models.backbones import backbone_weights, fetching, vgg_layers


@torch.fx.wrap
def _check_images(images: Tensor, least: int) -> None:
    check_tensor("images", images, ndim=4, shape="(N, 3, H, W)", floating=True)
    if images.shape[1] != 3 or min(images.shape[-2:]) < least:
        expected = f"shape (N, 3, H, W) with H and W at least {least}"
        remedy = "Pass RGB images; enlarge small ones: the last pooling must find a pixel."
        raise ValueError(complain("images", expected, images, remedy))


@torch.fx.wrap
def _numbers(size: Any) -> list[int]:
    """A size that torch.jit.trace has made tensors of, which unpooling does not take, as numbers again."""
    return [int(n) if isinstance(n, Tensor) else n for n in size]


class DeconvolutionStack(nn.Module):
    """Images (N, 3, H, W) -> class maps (N, C, H, W). `deconvolution_stack` says how.

    layer_names: those of the convolutions, "conv1_1" to "conv5_3" or as many as there are.
    """

    classifier_layer = "classifier"  # for `perpixel.attach`

    def __init__(
        self, features: nn.Sequential, num_classes: int, *, layers: Sequence[str] | None, restore: bool, stride: int
    ) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, low=1)
        self.features, self.restore = features, check_flag("restore", restore)
        strides = [2**block for block in range(sum(isinstance(layer, nn.MaxPool2d) for layer in features))]
        if stride not in strides:
            expected = f"one of {', '.join(map(str, strides))}"
            raise ValueError(complain("stride", expected, stride, "Choose that of one of the blocks."))
        self.block, self.least = strides.index(stride) + 1, 2 * strides[-1]
        channels: dict[str, int] = {}
        block = number = 1
        for layer in features:
            if isinstance(layer, nn.MaxPool2d):
                block, number = block + 1, 1
            elif isinstance(layer, nn.Conv2d):
                channels[f"conv{block}_{number}"] = layer.out_channels
                number += 1
        self.layer_names = tuple(channels)
        self.layers = _check_layers(layers, self.layer_names)
        stacked = sum(channels[name] for name in self.layers)
        self.normalise = nn.BatchNorm2d(stacked)
        self.classifier = nn.Conv2d(stacked, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        _check_images(images, self.least)
        maps = self.feature_maps(images)
        logits = self.classifier(self.normalise(torch.cat([maps[name] for name in self.layers], 1)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def feature_maps(self, images: Tensor) -> dict[str, Tensor]:
        """The maps that are stacked, by the layer they are of or stand for, on one grid."""
        x, names, found, pools = images, iter(self.layer_names), {}, []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                size = x.shape[-2:]
                x, switches = F.max_pool2d(x, 2, 2, return_indices=True)
                pools.append((switches, size))
            else:
                x = layer(x)
                if isinstance(layer, nn.ReLU) and (name := next(names)) in self.layers:
                    found[name] = x
        grid = pools[self.block - 1][1]
        if self.restore:
            found = self._restored(x, pools)
        return {name: self._on_grid(name, found[name], grid) for name in self.layers}

    def _restored(self, x: Tensor, pools: list[tuple[Tensor, Any]]) -> dict[str, Tensor]:
        """From the last pooling back up: what the tied path has where the way down had the layers' outputs."""
        names, found, pools = iter(reversed(self.layer_names)), {}, list(pools)
        for layer in reversed(self.features):
            if isinstance(layer, nn.MaxPool2d):
                switches, size = pools.pop()
                x = F.max_unpool2d(x, switches, [2, 2], [2, 2], output_size=_numbers(size))
            elif isinstance(layer, nn.ReLU):
                if (name := next(names)) in self.layers:
                    found[name] = x
                if len(found) == len(self.layers):
                    break
            elif isinstance(layer, nn.BatchNorm2d):
                spread: Any = layer.running_var
                x = F.batch_norm(x, torch.zeros_like(spread), spread.clone(), layer.weight, None, eps=layer.eps)
            elif isinstance(layer, nn.Conv2d):
                x = F.relu(F.conv_transpose2d(x, layer.weight, padding=1))
        return found

    def _on_grid(self, name: str, maps: Tensor, grid: Any) -> Tensor:
        block = int(name[len("conv") :].split("_")[0])
        if block == self.block:
            return maps
        if block < self.block:
            return F.adaptive_max_pool2d(maps, (grid[0], grid[1]))
        return F.interpolate(maps, size=grid, mode="bilinear", align_corners=False)


def deconvolution_stack(
    num_classes: int,
    *,
    backbone: str = "vgg16",
    weights: Any = None,
    width: float = 1.0,
    blocks: int = 5,
    layers: Sequence[str] | None = None,
    restore: bool = True,
    stride: int = 4,
) -> DeconvolutionStack:
    """Deconvolutional feature stacking (Kim, Hwang 2016, arXiv 1602.04984): class maps for training with image labels.

    Behind the last pooling of VGG a path leads back up that mirrors it: *unpooling* puts every value back to where the
    pooling found it, zero elsewhere; *deconvolution* is the transposed convolution with the weights of its convolution,
    the very Parameters, which so get gradients from both paths; then ReLU. What arrives where the way down had a
    layer's output, after its ReLU, is that layer restored. Those of `layers` are brought to one grid, stacked,
    standardised (batch norm, since their scales differ by orders of magnitude) and mapped to classes by `classifier`, a
    1×1 convolution; the class maps are brought to image size, bilinear. `perpixel.ImageLabelLoss` trains them.

    The path has no biases: zero stays zero, so nothing comes back but what the switches let through. For a backbone
    with batch norm, deconvolution is the transpose of both: the scale γ/σ (running variance), then the weights.

    Args:
        num_classes: C.
        backbone: vgg11, vgg13, vgg16, vgg19, or one of these with _bn.
        weights: torchvision's weights of it, such as "DEFAULT"; None: random. They ask for width 1.
        width: share of VGG's channels.
        blocks: how many of VGG's five blocks there are, each with its pooling. Fewer for small images: the path starts
            from the last pooling, of stride 2^blocks.
        layers: which are stacked, by VGG's names ("conv3_1", ...); None: all.
        restore: False stacks the layers' own outputs instead of the restored ones: the same layers, channels, grid and
            parameters, without the path back. With the last layer alone that is the network of CAM (Zhou et al. 2016).
        stride: of the grid, that of one of the blocks: 1, 2, 4, 8, 16. Coarser maps are enlarged (bilinear), of finer
            ones each cell keeps its maximum. Memory goes with the stack: of all of vgg16, 4,224 channels.

    Raises:
        ValueError: an unknown backbone, layer or stride, each with the known ones; weights beside another width; in
            `forward`, images smaller than 2^blocks pixels a side.
    """
    features = vgg_layers(backbone, width=width)
    check_integer("blocks", blocks, low=1, high=5)
    if weights is not None:
        if width != 1:
            raise ValueError(complain("width", "1 with weights", width, "Leave width or weights out."))
        chosen = backbone_weights(backbone, weights)
        with fetching(chosen):
            state = chosen.get_state_dict(progress=False, check_hash=True)
        own = {name.removeprefix("features."): value for name, value in state.items() if name.startswith("features.")}
        features.load_state_dict(own)
    pools = [place for place, layer in enumerate(features) if isinstance(layer, nn.MaxPool2d)]
    features = features[: pools[blocks - 1] + 1]
    return DeconvolutionStack(features, num_classes, layers=layers, restore=restore, stride=stride)


def _check_layers(layers: Sequence[str] | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """In the order of the network."""
    if layers is None:
        return known
    listed, asked = ", ".join(known), [layers] if isinstance(layers, str) else list(layers)
    for name in asked:
        if name not in known:
            raise ValueError(complain("layers", f"names among {listed}", repr(name), "Choose some of these."))
    if not asked:
        raise ValueError(complain("layers", f"one or more of {listed}", "none", "Leave it out for all."))
    return tuple(name for name in known if name in asked)
