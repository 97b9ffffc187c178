"""A small dilated fully convolutional network, for trials that must finish on two CPU cores."""

from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.checks import check_integer, complain


def _block(inputs: int, outputs: int, *, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride=stride, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class SmallFCN(nn.Module):
    """Images (N, 3, H, W), H and W at least 4 -> logits (N, C, H, W).

    Two stride-2 blocks bring the image to a grid of stride 4; four 3×3 blocks of dilation 1, 2, 4, 8 widen the view to
    127 pixels without losing that grid; a 1×1 `classifier` over `width` feature channels gives the logits there, which
    are upsampled bilinearly. About 167 thousand parameters at width 64. The layout is that of a dilated front-end
    (DeepLab LargeFOV, arXiv 1412.7062; Yu and Koltun, arXiv 1511.07122), scaled down.
    """

    classifier_layer = "classifier"  # for `perpixel.attach`

    def __init__(self, num_classes: int, *, width: int = 64) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, low=1)
        check_integer("width", width, low=2)
        self.stem = nn.Sequential(_block(3, width // 2, stride=2), _block(width // 2, width, stride=2))
        self.context = nn.Sequential(*(_block(width, width, dilation=d) for d in (1, 2, 4, 8)))
        self.classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[-2:]) < 4:
            expected = "shape (N, 3, H, W) with H and W at least 4"
            raise ValueError(complain("images", expected, images, "Pass a batch of RGB images."))
        logits = self.classifier(self.context(self.stem(images)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


def small_fcn(num_classes: int, *, width: int = 64) -> SmallFCN:
    """`SmallFCN` with random weights."""
    return SmallFCN(num_classes, width=width)
