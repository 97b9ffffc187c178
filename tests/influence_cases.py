"""Networks that end in every way, images, and the slow loop over the patches."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from captum.attr import Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.attribution.baselines import baseline_images
from perpixel.attribution.captum.target import RegionTarget

SIZE = (21, 26)
End = Callable[[Tensor, Tensor], Any]


def bilinear(logits: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)


class Net(nn.Module):
    """Two strided convolutions with normalisation, a classifier on the grid, and `end` to finish with."""

    def __init__(self, end: End = bilinear, classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 5, 2, 2), nn.ReLU()
        )
        self.classifier = nn.Conv2d(6, classes, 1)
        self.refine = nn.Conv2d(classes, classes, 3, padding=1)
        self.end = end
        nn.init.uniform_(self.body[1].running_mean, -0.5, 0.5)

    def forward(self, images: Tensor) -> Any:
        return self.end(self.classifier(self.body(images)), images)


def small(*, double: bool = False) -> nn.Module:
    torch.manual_seed(1)
    return Net().eval().to(torch.float64 if double else torch.float32)


def small_case(count: int = 2, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    """A network and its images."""
    return small(double=dtype == torch.float64), images_of(count, SIZE).to(dtype)


def images_of(count: int, size: tuple[int, int]) -> Tensor:
    torch.manual_seed(2)
    coarse = F.interpolate(torch.randn(count, 3, 4, 5), size=size, mode="bicubic")
    return coarse + 0.3 * torch.randn(count, 3, *size)


class Layer(Net):
    """The upsampling is a layer, passed on by one that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(nn.Upsample(size=(21, 26), mode="bilinear", align_corners=True), nn.Identity())

    def forward(self, images: Tensor) -> Tensor:
        return self.up(self.classifier(self.body(images)))


class Refining(Net):
    """Upsamples, and then convolves: nothing smaller than the output says it all."""

    def forward(self, images: Tensor) -> Tensor:
        return self.refine(bilinear(self.classifier(self.body(images)), images))


class WritesIntoInput(Net):
    def forward(self, images: Tensor) -> Tensor:
        images -= 0.25
        images *= 2
        return super().forward(images)


class CompiledInside(Net):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.compile(self.body, backend="eager")  # type: ignore[assignment]


def doubling(logits: Tensor, images: Tensor) -> Tensor:
    while logits.shape[-1] < images.shape[-1]:
        size = [min(2 * a, b) for a, b in zip(logits.shape[-2:], images.shape[-2:])]
        logits = F.interpolate(logits, size=size, mode="bilinear")
    return logits


def shifted_in_place(logits: Tensor, images: Tensor) -> Tensor:
    result = bilinear(logits, images)
    result[:, 1] += 0.5
    return result


def both_sizes(logits: Tensor, images: Tensor) -> Tensor:
    """The full size is needed for something else as well."""
    full = bilinear(logits, images)
    return full + 0.1 * images.mean(1, keepdim=True)


def after_other_maps(logits: Tensor, images: Tensor) -> dict[str, Tensor]:
    """Something else is brought to the images' size first."""
    edges = F.interpolate(logits[:, :2], size=images.shape[-2:])
    return {"edges": edges, "out": bilinear(logits, images)}


# by name: networks whose grid (6, 7) can be found, for images of (21, 26), and others
FINDS: dict[str, Callable[[], nn.Module]] = {
    "bilinear": Net,
    "align corners": lambda: Net(lambda z, x: F.interpolate(z, x.shape[-2:], None, "bilinear", True)),
    "nearest": lambda: Net(lambda z, x: F.interpolate(input=z, size=x.shape[-2:])),
    "bicubic": lambda: Net(lambda z, x: F.interpolate(z, size=x.shape[-2:], mode="bicubic")),
    "nearest exact": lambda: Net(lambda z, x: F.interpolate(z, size=x.shape[-2:], mode="nearest-exact")),
    "area": lambda: Net(lambda z, x: F.interpolate(z, size=x.shape[-2:], mode="area")),
    "antialiased": lambda: Net(lambda z, x: F.interpolate(z, (11, 26), mode="bicubic", antialias=True)),
    "recomputed scale": lambda: Net(
        lambda z, x: F.interpolate(z, scale_factor=3.6, mode="bilinear", recompute_scale_factor=True)
    ),
    "scale": lambda: Net(lambda z, x: F.interpolate(z, scale_factor=(3.5, 3.72), mode="bilinear")),
    "smaller output": lambda: Net(lambda z, x: F.interpolate(z, size=(11, 13), mode="bilinear")),
    "larger output": lambda: Net(lambda z, x: F.interpolate(z, size=(40, 41), mode="bilinear")),
    "grid is the output": lambda: Net(lambda z, x: z),
    "layer": Layer,
    "mapping": lambda: Net(lambda z, x: {"out": bilinear(z, x), "aux": bilinear(2 * z, x)}),
    "object": lambda: Net(lambda z, x: SimpleNamespace(logits=bilinear(z, x))),
    "tuple": lambda: Net(lambda z, x: (x.mean(), bilinear(z, x))),
    "after other maps": lambda: Net(after_other_maps),
    "writes into its input": WritesIntoInput,
    "compiled inside": CompiledInside,
    "compiled": lambda: torch.compile(Net(), backend="eager"),  # type: ignore[dict-item,return-value]
}
LOSES: dict[str, Callable[[], nn.Module]] = {
    "refining": Refining,
    "in place": lambda: Net(shifted_in_place),
    "both sizes": lambda: Net(both_sizes),
    "doubling": lambda: Net(doubling),
    "cropped": lambda: Net(lambda z, x: F.interpolate(z, scale_factor=4)[..., : x.shape[2], : x.shape[3]]),
    "softmax": lambda: Net(lambda z, x: bilinear(z, x).softmax(1)),
    "script": lambda: torch.jit.trace(Net().eval(), images_of(2, (21, 26))),
}


def logits_of(output: Any) -> Tensor:
    if isinstance(output, dict):
        return output["out"]
    if isinstance(output, tuple):
        return output[1]
    return getattr(output, "logits", output)


@torch.no_grad()
def hidden_logits(model: nn.Module, images: Tensor, boxes: Tensor, base: float | Tensor) -> tuple[Tensor, Tensor]:
    """At the images' size, unperturbed (N, C, H, W) and with each patch hidden (N, patches, C, H, W)."""

    def run(batch: Tensor) -> Tensor:
        logits = logits_of(model(batch.clone()))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    base = torch.as_tensor(base).to(images).expand_as(images)
    after = []
    for top, left, bottom, right in boxes.tolist():
        changed = images.clone()
        changed[:, :, top:bottom, left:right] = base[:, :, top:bottom, left:right]
        after.append(run(changed))
    return run(images), torch.stack(after, 1)


def occlusion(
    target: RegionTarget, images: Tensor, patch: tuple[int, int], stride: tuple[int, int], baselines: object
) -> Tensor:
    """captum's map (N, H, W), the same for every channel."""
    channels = images.shape[1]
    found = Occlusion(target).attribute(
        images,
        additional_forward_args=target.arguments(images),
        sliding_window_shapes=(channels, *patch),
        strides=(channels, *stride),
        baselines=baseline_images(baselines, images),  # type: ignore[arg-type]
        perturbations_per_eval=3,
    )
    assert (found == found[:, :1]).all()
    return found[:, 0].to(images.dtype)  # float32, whatever the images are


def assert_near(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def scattered_labels() -> Tensor:
    labels = torch.zeros(2, *SIZE, dtype=torch.int64)
    labels[0, 2:5, 3:12] = 1
    labels[0, 17:, 20:] = 2
    labels[1, :, 10:14] = 1
    labels[1, 4:6, 15:20] = 255
    return labels
