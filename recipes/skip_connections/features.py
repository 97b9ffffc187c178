"""The maps of a frozen backbone for all images, each computed once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from perpixel.checks import complain
from perpixel.models import SkipNetwork
from recipes.kit.images import EvaluationBatch


@dataclass
class CachedFeatures:
    """Of the images of one part: maps by layer (N, channels, h, w), labels int16 (N, H, W), far masks or None."""

    maps: dict[str, Tensor]
    labels: Tensor
    far: Tensor | None

    @property
    def bytes(self) -> int:
        """Of the maps."""
        return sum(one.nbytes for one in self.maps.values())

    def batches(self, size: int) -> Iterator[EvaluationBatch]:
        """Evaluation batches whose images are their own places, as `CachedNetwork` takes them."""
        for places in torch.arange(len(self.labels)).split(size):
            yield places, places, self.labels[places].long(), None if self.far is None else self.far[places]


class CachedNetwork(nn.Module):
    """A head on cached features: places of images (N,) -> logits (N, C, H, W)."""

    def __init__(self, head: nn.Module, layers: Sequence[str], features: CachedFeatures) -> None:
        super().__init__()
        self.head, self.layers, self.features = head, tuple(layers), features

    def forward(self, places: Tensor) -> Tensor:
        """places: int64."""
        like, rows = next(self.head.parameters()), places.cpu()
        maps = [self.features.maps[name][rows].to(like.device, like.dtype) for name in self.layers]
        return self.head(maps, self.features.labels.shape[-2:])


@torch.no_grad()
def cache_features(
    network: SkipNetwork,
    batches: Iterator[EvaluationBatch],
    count: int,
    device: torch.device,
    *,
    half: bool,
    where: tuple[Path, int],
) -> CachedFeatures:
    """All maps of the backbone of `network` for `count` images.

    where: more bytes than this are kept as files of that folder, which their tensors then are, the others in memory.
    ValueError where images differ in size, or a value is too large for half precision.
    """
    dtype = torch.float16 if half else torch.float32
    network.eval()
    cached: CachedFeatures | None = None
    done = 0
    for _, images, labels, far in batches:
        found = network.backbone(images.to(device))
        if cached is None:
            size = count * sum(one[0].numel() for one in found.values()) * dtype.itemsize
            folder = where[0] if size > where[1] else None
            maps = {name: _empty((count, *one.shape[1:]), dtype, folder, name) for name, one in found.items()}
            empty = labels.new_empty((count, *labels.shape[1:]), dtype=torch.int16)
            cached = CachedFeatures(maps, empty, None if far is None else empty.bool())
        if labels.shape[1:] != cached.labels.shape[1:]:
            came = f"{tuple(labels.shape[1:])} after {tuple(cached.labels.shape[1:])}"
            raise ValueError(complain("data.size", "one size, where images differ", came, "Example: [240,320]."))
        rows = slice(done, done + len(labels))
        for name, one in found.items():
            cached.maps[name][rows] = one.to("cpu", dtype)
            if not bool(cached.maps[name][rows].isfinite().all()):
                remedy = "Give --study.half false." if half else "Look at the weights of the backbone."
                raise ValueError(complain(name, "finite features", "NaN or infinity", remedy))
        cached.labels[rows] = labels
        if cached.far is not None and far is not None:
            cached.far[rows] = far
        done += len(labels)
    if cached is None or done != count:
        raise ValueError(complain("data", f"{count} images", f"{done}", "Check the data."))
    return cached


def _empty(shape: tuple[int, ...], dtype: torch.dtype, folder: Path | None, name: str) -> Tensor:
    if folder is None:
        return torch.empty(shape, dtype=dtype)
    folder.mkdir(parents=True, exist_ok=True)
    size = torch.Size(shape).numel()
    return torch.from_file(str(folder / f"{name}.bin"), shared=True, size=size, dtype=dtype).view(shape)
