"""Small networks, maps and a toy task that the tests of faithfulness share."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.captum.target import RegionTarget

LABEL = 1


class Conv(nn.Module):
    """Two layers, three classes, float64, logits at half the size and brought back; a mapping as output."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.last = nn.Conv2d(5, classes, 1)  # registered before what runs before it
        self.first = nn.Conv2d(2, 5, 3, padding=1, stride=2)
        self.norm = nn.BatchNorm2d(5)
        self.double()
        self.seen: list[Tensor] = []
        self.keep = False

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        if self.keep:
            self.seen.append(images.detach().clone())
        logits = self.last(F.relu(self.norm(self.first(images))))
        return {"out": F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)}


def case(size: tuple[int, int] = (6, 6), count: int = 2) -> tuple["Conv", Tensor, Tensor, Tensor]:
    model = Conv().eval()
    images = torch.randn(count, 2, *size, dtype=torch.float64)
    region = torch.zeros(count, *size, dtype=torch.bool)
    region[0, 1:3, 2:5] = True
    region[1:, 3:, :2] = True
    return model, images, torch.randn(count, 2, *size, dtype=torch.float64), region


def region_of(images: Tensor) -> Tensor:
    region = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    region[:, 1:3, 2:4] = True
    return region


class Linear(nn.Module):
    """Every pixel's logits are (Σ w·x, 0) over the whole image."""

    def __init__(self, size: tuple[int, int] = (6, 6)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 1, *size, dtype=torch.float64))

    def forward(self, images: Tensor) -> Tensor:
        total = (images * self.weight).sum((1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], 1)[:, :, None, None].expand(-1, -1, *images.shape[-2:])


class Pooled(nn.Module):
    """A pixel's class from its own features and the image's mean features: context from anywhere."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.near = nn.Sequential(nn.Conv2d(2, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 1), nn.ReLU())
        self.mixed = nn.Sequential(nn.Conv2d(2 * width, 2 * width, 1), nn.ReLU())
        self.classifier = nn.Conv2d(2 * width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.near(images)
        around = x.mean((2, 3), keepdim=True).expand_as(x)
        return self.classifier(self.mixed(torch.cat([x, around], 1)))


def marked(count: int, seed: int, size: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Images (N, 2, H, W), labels and markers (bool). A square is of the class that the sign of a marker says.

    The marker is in the first channel; three others like it, in the second one, say nothing.
    """
    draw = torch.Generator().manual_seed(seed)
    images = 0.05 * torch.randn(count, 2, size, size, generator=draw)
    labels = torch.zeros(count, size, size, dtype=torch.int64)
    marker = torch.zeros(count, size, size, dtype=torch.bool)
    for n in range(count):
        y, x, kind, *signs = (int(torch.randint(h, (), generator=draw)) for h in (4, size - 4, 2, 2, 2, 2))
        column, *others = (3 * torch.randperm(4, generator=draw)).tolist()
        images[n, :, y : y + 4, x : x + 4] = 0.6
        for other, sign in zip(others, signs):
            images[n, 1, size - 3 : size - 1, other : other + 2] = 3.0 * (2 * sign - 1)
        labels[n, y : y + 4, x : x + 4] = 1 + kind
        images[n, 0, size - 3 : size - 1, column : column + 2] = 3.0 * (2 * kind - 1)
        marker[n, size - 3 : size - 1, column : column + 2] = True
    return images, labels, marker


def trained(steps: int = 150) -> Pooled:
    torch.manual_seed(1)
    model = Pooled()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(steps):
        images, labels, _ = marked(16, 1000 + step)
        loss = F.cross_entropy(model(images), labels, weight=torch.tensor([0.2, 1.0, 1.0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


class GradientTimesInput:
    """An explainer that is a few lines long: mean of input · gradient on the way from zero (integrated gradients)."""

    def __init__(self, label: int | Tensor, region: Tensor, steps: int = 16) -> None:
        self.label, self.region, self.steps = label, region, steps

    def __call__(self, model: nn.Module, images: Tensor, baselines: Tensor | None = None) -> Tensor:
        target = RegionTarget(model, self.label, self.region)
        own = target.arguments(images)
        start = torch.zeros_like(images) if baselines is None else baselines
        total = torch.zeros_like(images)
        for step in range(self.steps):
            at = (start + (step + 0.5) / self.steps * (images - start)).requires_grad_()
            total += torch.autograd.grad(target(at, *own).sum(), at)[0]
        return total / self.steps * (images - start)
