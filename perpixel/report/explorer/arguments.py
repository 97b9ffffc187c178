"""What `context_explorer` is given, checked and brought to one form on the CPU."""

import colorsys
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from perpixel.checks import check_integer, check_tensor, complain


class ExplorerInput(NamedTuple):
    """image uint8 (3, H, W); logits float32 (C, h, w); effects (P, C, h', w'); boxes or segments; -1 for void."""

    image: Tensor
    logits: Tensor
    effects: Tensor
    patches: Tensor
    labels: Tensor | None
    palette: Tensor


def check_input(
    image: Tensor,
    logits: Tensor,
    effects: Tensor,
    boxes: Tensor | None,
    segments: Tensor | None,
    labels: Tensor | None,
    classes: Sequence[str],
    palette: Tensor | None,
    start: tuple[int, int] | None,
    ignore_index: int,
) -> ExplorerInput:
    """All of it, or an error that names the argument."""
    for name, value in (("image", image), ("logits", logits), ("effects", effects)):
        if isinstance(value, Tensor) and value.numel() == 0:
            raise ValueError(complain(name, "at least one value", value, "Nothing can be shown of an empty tensor."))
    picture = _image(image)
    size = (picture.shape[1], picture.shape[2])
    _floats("logits", logits, 3, "(C, h, w)")
    _floats("effects", effects, 4, "(patches, C, h, w)")
    count, number = effects.shape[:2]
    if len(logits) < 2:
        raise ValueError(complain("logits", "two classes or more", logits, "Of one channel z, pass -z/2 and z/2."))
    if number != len(logits):
        expected = f"{len(logits)} classes on axis 1, as logits has"
        raise ValueError(complain("effects", expected, effects, "Pass (patches, C, h, w)."))
    if isinstance(classes, str) or len(classes) != number or not all(isinstance(name, str) for name in classes):
        raise ValueError(complain("classes", f"{number} names", classes, "Pass one str for every class."))
    if (boxes is None) == (segments is None):
        came = "both" if boxes is not None else "neither"
        raise ValueError(complain("boxes, segments", "one of the two", came, "Say once where the patches are."))
    _check_start(start, size)
    return ExplorerInput(
        picture,
        logits.detach().float().cpu(),
        effects.detach().cpu(),
        _segments(segments, count, size) if boxes is None else _boxes(boxes, count, size),
        None if labels is None else _labels(labels, number, size, ignore_index),
        _palette(palette, classes),
    )


def _image(image: Tensor) -> Tensor:
    if isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3 and len(image) == 3:
        return image.detach().cpu().contiguous()
    _floats("image", image, 3, "(3, H, W)")
    if len(image) != 3:
        raise ValueError(complain("image", "shape (3, H, W)", image, "Pass one RGB image, channels first."))
    low, high = (float(v) for v in image.detach().aminmax())
    if low < -1e-3 or high > 1 + 1e-3:
        came = f"values from {low:.3g} to {high:.3g}"
        remedy = "Undo the normalisation with perpixel.data.denormalize, or divide by 255."
        raise ValueError(complain("image", "values in [0, 1]", came, remedy))
    return (image.detach().float().clamp(0, 1) * 255).round().to(torch.uint8).cpu().contiguous()


def _floats(name: str, value: Tensor, ndim: int, shape: str) -> None:
    check_tensor(name, value, ndim=ndim, shape=shape, floating=True)
    bad = ~torch.isfinite(value.detach())
    if bool(bad.any()):
        place = tuple(bad.nonzero()[0].tolist())
        came = f"NaN or infinity at {place}, {int(bad.sum())} in all"
        raise ValueError(complain(name, "finite values", came, "Look for an overflow or a bad input upstream."))


def _boxes(boxes: Tensor, count: int, size: tuple[int, int]) -> Tensor:
    check_tensor("boxes", boxes, ndim=2, shape="(patches, 4)", floating=False)
    if boxes.shape != (count, 4):
        raise ValueError(complain("boxes", f"shape ({count}, 4), a row for every effect", boxes, "Match the effects."))
    boxes = boxes.detach().cpu().long()
    end = boxes.new_tensor(size * 2)
    wrong = (boxes[:, :2] < 0).any(1) | (boxes > end).any(1) | (boxes[:, :2] >= boxes[:, 2:]).any(1)
    if bool(wrong.any()):
        place = int(wrong.nonzero()[0])
        expected = f"0 <= y0 < y1 <= {size[0]} and 0 <= x0 < x1 <= {size[1]}"
        came = f"{boxes[place].tolist()} in row {place}"
        raise ValueError(complain("boxes", expected, came, "Pass (y0, x0, y1, x1) in pixels, clipped to the image."))
    return boxes


def _id_map(name: str, ids: Any, size: tuple[int, int]) -> Tensor:
    check_tensor(name, ids, ndim=2, shape="(H, W)", floating=False)
    if ids.shape != size:
        raise ValueError(complain(name, f"shape {size}, as the image has", ids, "Resize by nearest."))
    return ids.detach().cpu().long()


def _segments(segments: Any, count: int, size: tuple[int, int]) -> Tensor:
    segments = _id_map("segments", segments, size)
    low, high = (int(v) for v in segments.aminmax())
    if low < -1 or high >= count:
        expected = f"values from -1 to {count - 1}, the number of a row of effects"
        raise ValueError(complain("segments", expected, f"values from {low} to {high}", "Number them from 0."))
    return segments


def _labels(labels: Tensor, number: int, size: tuple[int, int], ignore_index: int) -> Tensor:
    labels = _id_map("labels", labels, size)
    labels = labels.masked_fill((labels == ignore_index) | (labels < 0), -1)
    if int(labels.max()) >= number:
        expected = f"values below {number} or ignore_index={ignore_index}"
        raise ValueError(complain("labels", expected, int(labels.max()), "Map the label to a class or to void."))
    return labels


def _palette(palette: Tensor | None, classes: Sequence[str]) -> Tensor:
    """That given, or hues a golden angle apart, in three lightnesses; a class called "background" is slate."""
    number = len(classes)
    if palette is None:
        tones = [((0.58 + 0.381966 * i) % 1, (0.5, 0.68, 0.36)[i % 3], (0.65, 0.75, 0.6)[i % 3]) for i in range(number)]
        chosen = (torch.tensor([colorsys.hls_to_rgb(*tone) for tone in tones]) * 255).round().long()
        ground = torch.tensor([name.casefold() == "background" for name in classes])
        return torch.where(ground[:, None], chosen.new_tensor([62, 70, 80]), chosen)
    check_tensor("palette", palette, ndim=2, shape=f"({number}, 3)", floating=False)
    palette = palette.detach().cpu().long()
    if palette.shape != (number, 3) or int(palette.min()) < 0 or int(palette.max()) > 255:
        raise ValueError(complain("palette", f"({number}, 3) in [0, 255]", palette, "Pass a colour for every class."))
    return palette


def _check_start(start: tuple[int, int] | None, size: tuple[int, int]) -> None:
    if start is None:
        return
    if not isinstance(start, (tuple, list)) or len(start) != 2:
        raise TypeError(complain("start", "(row, column)", start, "Pass two integers."))
    for place, end in zip(start, size):
        check_integer("start", place, low=0, high=end - 1)
