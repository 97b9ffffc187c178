"""What is hidden: a window slid over the image as captum's Occlusion slides it, or the segments of a map."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from perpixel.checks import check_integer, check_tensor, complain

Size = tuple[int, int]


@dataclass(frozen=True)
class Patches:
    """The windows of every image, row by row: `grid` (gh, gw) of them, `boxes` int64 (patches, 4) = top, left, bottom,
    right. The last of a row or column reaches to the border and is cut there, as captum's Occlusion does it."""

    image: Size
    size: Size
    stride: Size
    grid: Size
    boxes: Tensor

    @property
    def count(self) -> int:
        return len(self.boxes)

    def mask(self, image: int, unit: int) -> Tensor:
        """Bool (H, W), True where unit number `unit` of the image lies."""
        top, left, bottom, right = self.boxes[unit].tolist()
        mask = torch.zeros(self.image, dtype=torch.bool)
        mask[top:bottom, left:right] = True
        return mask

    def present(self, image: int) -> list[int]:
        """The numbers of the image's units."""
        return list(range(self.count))

    def share(self, maps: Tensor) -> Tensor:
        """The share of every unit where the maps bool (N, H, W) are True: float64 (N, units)."""
        sums = torch.zeros(len(maps), self.image[0] + 1, self.image[1] + 1, dtype=torch.float64, device=maps.device)
        sums[:, 1:, 1:] = maps.double().cumsum(1).cumsum(2)
        top, left, bottom, right = self.boxes.to(maps.device).unbind(1)
        inside = sums[:, bottom, right] - sums[:, top, right] - sums[:, bottom, left] + sums[:, top, left]
        return inside / ((bottom - top) * (right - left))

    def shaped(self, values: Tensor) -> Tensor:
        """Values (N, units) -> (N, gh, gw)."""
        return values.unflatten(1, self.grid)

    def pixels(self, values: Tensor) -> Tensor:
        """Values (N, units) -> (N, H, W): at every pixel the mean over the windows that hide it."""
        total = values.new_zeros(len(values), *self.image)
        count = values.new_zeros(self.image)
        for number, (top, left, bottom, right) in enumerate(self.boxes.tolist()):
            total[:, top:bottom, left:right] += values[:, number, None, None]
            count[top:bottom, left:right] += 1
        return total / count


@dataclass(frozen=True)
class Segments:
    """The segments of every image: `maps` int64 (N, H, W) with numbers from 0, -1 where nothing is ever hidden.

    `boxes` int64 (N, units, 4) = top, left, bottom, right around each, zeros where an image has fewer segments.
    """

    maps: Tensor
    counts: tuple[int, ...]
    boxes: Tensor

    @property
    def image(self) -> Size:
        return int(self.maps.shape[1]), int(self.maps.shape[2])

    @property
    def count(self) -> int:
        return max(self.counts)

    @property
    def grid(self) -> tuple[int, ...]:
        return (self.count,)

    def mask(self, image: int, unit: int) -> Tensor:
        return self.maps[image] == unit

    def present(self, image: int) -> list[int]:
        return list(range(self.counts[image]))

    def share(self, maps: Tensor) -> Tensor:
        place = self.maps.to(maps.device)
        place = torch.where(place < 0, self.count, place).flatten(1)
        zeros = torch.zeros(len(maps), self.count + 1, dtype=torch.float64, device=maps.device)
        inside = zeros.scatter_add(1, place, maps.flatten(1).double())
        area = zeros.scatter_add(1, place, torch.ones_like(place, dtype=torch.float64))
        return (inside / area)[:, : self.count]

    def shaped(self, values: Tensor) -> Tensor:
        return values

    def pixels(self, values: Tensor) -> Tensor:
        """Values (N, units) -> (N, H, W), zero where nothing is ever hidden."""
        place = self.maps.to(values.device)
        found = values.gather(1, place.clamp(min=0).flatten(1)).view(place.shape)
        return torch.where(place < 0, torch.zeros_like(found), found)


def slide(image: Size, patch: Any, stride: Any) -> Patches:
    """The windows of size `patch` every `stride` pixels, each an int or (height, width); stride None: the patch.

    Along a side of length n there are ceil((n - patch) / stride) + 1 windows. ValueError or TypeError for a patch or
    stride that is not positive, a patch larger than the image, and a stride larger than the patch, which would leave
    pixels out.
    """
    size = _pair("patch", patch)
    step = size if stride is None else _pair("stride", stride)
    for axis, name in enumerate(("height", "width")):
        if size[axis] > image[axis]:
            came = f"{size[axis]} for images of {name} {image[axis]}"
            expected = f"a patch no larger than the images, {image[0]} x {image[1]}"
            raise ValueError(complain("patch", expected, came, "Pass a smaller patch, or larger images."))
        if step[axis] > size[axis] and size[axis] < image[axis]:
            came = f"{step[axis]} for a patch of {name} {size[axis]}"
            raise ValueError(complain("stride", "at most the patch, so that no pixel is left out", came, "Lower it."))
    tops, lefts = (range(0, image[axis] - size[axis] + step[axis], step[axis]) for axis in range(2))
    boxes = [(y, x, min(y + size[0], image[0]), min(x + size[1], image[1])) for y in tops for x in lefts]
    return Patches(image, size, step, (len(tops), len(lefts)), torch.tensor(boxes))


def segments_of(segments: object, images: int, size: Size) -> Segments:
    """Units from a map int (N, H, W): one per number in an image, in rising order; negative ones are never hidden."""
    from scipy import ndimage

    maps = check_tensor("segments", segments, ndim=3, shape="(N, H, W)", floating=False)
    if tuple(maps.shape) != (images, *size):
        expected = f"shape {(images, *size)}, a map for every image at its size"
        raise ValueError(complain("segments", expected, maps, "Resize them with nearest-neighbour interpolation."))
    numbered, counts, boxes = [], [], []
    for found in maps.cpu().long():
        values = found[found >= 0].unique()
        if len(values) == 0:
            raise ValueError(complain("segments", "a segment in every image", "only negatives", "Leave the image out."))
        number = torch.searchsorted(values, found.contiguous())
        numbered.append(torch.where(found < 0, -1, number))
        counts.append(len(values))
        around = ndimage.find_objects((numbered[-1] + 1).numpy())
        boxes.append(torch.tensor([(y.start, x.start, y.stop, x.stop) for y, x in around]))
    padded = torch.nn.utils.rnn.pad_sequence(boxes, batch_first=True)
    return Segments(torch.stack(numbered), tuple(counts), padded)


def connected_segments(labels: Tensor, *, ignore_index: int = 255, least: int = 1) -> Tensor:
    """Number the connected regions of equal label: labels (N, H, W), int or bool -> int64 (N, H, W), from 0 per image.

    Pixels touch by their sides. -1, never hidden: negative labels, `ignore_index`, and regions under `least` pixels.
    `influence(..., by="segments", segments=connected_segments(labels))` hides them one after the other.
    """
    from scipy import ndimage

    labels = labels.byte() if isinstance(labels, Tensor) and labels.dtype == torch.bool else labels
    labels = check_tensor("labels", labels, ndim=3, shape="(N, H, W)", floating=False)
    least = check_integer("least", least, low=1)
    result = torch.full(labels.shape, -1, dtype=torch.int64)
    for image, found in zip(labels.cpu(), result):
        count = 0
        for label in image.unique().tolist():
            if label < 0 or label == ignore_index:
                continue
            parts = torch.from_numpy(ndimage.label((image == label).numpy())[0]).long()
            large = torch.bincount(parts.flatten()) >= least
            large[0] = False
            number = large.long().cumsum(0) - 1 + count
            inside = large[parts]
            found[inside] = number[parts[inside]]
            count += int(large.sum())
    return result.to(labels.device)


def _pair(argument: str, value: Any) -> Size:
    """An int twice, or two ints; TypeError or ValueError unless positive."""
    parts = (value, value) if hasattr(value, "__index__") or not hasattr(value, "__len__") else tuple(value)
    if len(parts) != 2:
        raise ValueError(complain(argument, "an integer or (height, width)", value, "Pass one or two integers."))
    return check_integer(argument, parts[0], low=1), check_integer(argument, parts[1], low=1)
