"""Small networks, images, regions and options for the tests of captum's methods."""

from types import SimpleNamespace
from typing import Any

import captum.attr as ca
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.captum.methods import NAMES as ALL_NAMES

SIZE = (12, 16)


class Net(nn.Module):
    """A small FCN in float64; `form`: how its logits come, `grid`: whether they stay at a quarter of the size."""

    def __init__(self, form: str = "tensor", *, grid: bool = False, classes: int = 4) -> None:
        super().__init__()
        self.form, self.grid = form, grid
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 8, 3, padding=1),
            nn.ReLU(),
        )
        self.classifier = nn.Conv2d(8, classes, 1)
        self.double().eval()

    def forward(self, images: Tensor) -> Any:
        logits = self.classifier(self.features(images))
        if not self.grid:
            logits = F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
        forms: dict[str, Any] = {
            "tensor": logits,
            "out": {"aux": logits * 0, "out": logits},
            "logits": {"logits": logits},
            "object": SimpleNamespace(logits=logits),
            "tuple": (logits.flatten(), logits),
        }
        return forms[self.form]


class Linear(nn.Module):
    """Logits that are linear in the image, without bias: z = W x at every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.double().eval()

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images)


def images(count: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def regions(count: int = 3) -> Tensor:
    found = torch.zeros(count, *SIZE, dtype=torch.bool)
    for n in range(count):
        found[n, 1 + 2 * n : 6 + 2 * n, 2 + n : 9 + 2 * n] = True
    return found


LABELS = torch.tensor([0, 3, 1])


def squares(side: int = 4) -> Tensor:
    rows, columns = torch.arange(SIZE[0]) // side, torch.arange(SIZE[1]) // side
    return (rows[:, None] * (SIZE[1] // side) + columns)[None, None]


METHODS = [name for name in ALL_NAMES if hasattr(ca, name)]  # of this captum
WINDOW = {"sliding_window_shapes": (3, 4, 4), "strides": (3, 3, 3)}
DRAWN = torch.randn(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
QUICK: dict[str, dict[str, Any]] = {
    "IntegratedGradients": {"n_steps": 3},
    "LayerIntegratedGradients": {"n_steps": 3},
    "LayerConductance": {"n_steps": 3},
    "InternalInfluence": {"n_steps": 3},
    "LayerLRP": {"layer": "features.3"},
    "ShapleyValues": {"feature_mask": (squares(8))},
}


def busy() -> Net:
    """A network in use: gradients, mixed flags, a frozen weight, a hook of its owner's, a rule of his for LRP."""
    from captum.attr._utils.lrp_rules import GammaRule

    net = Net("out")
    net.features.append(nn.BatchNorm2d(8).double())
    net.features.append(nn.Dropout(0.5))
    net.train()
    net.features[2].eval()
    net(images())["out"].sum().backward()
    net.classifier.weight.requires_grad_(False)
    net.features[3].register_forward_hook(lambda *_: None)
    net.features[0].rule = GammaRule()
    return net
