"""What all data sets on files share: their base class, reading pictures and masks, checking labels, palettes."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from perpixel.checks import complain

if TYPE_CHECKING:
    from PIL.Image import Image

VOID = 255
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "TIFF", "PPM", "GIF")
_ORIENTATION = 0x0112  # EXIF: how a camera was held
Transform = Callable[[Any, Any], tuple[Any, Any]]
Labels = NDArray[np.int64]


class SegmentationData(Protocol):
    """What every data set here offers; samples start with image float32 (3, H, W) and labels int64 (H, W)."""

    classes: tuple[str, ...]
    colors: Tensor  # uint8 (num_classes, 3)

    @property
    def num_classes(self) -> int: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class FileSegmentation(Dataset[tuple[Tensor, Tensor]]):
    """Pairs read from files; samples: (image float32 (3, H, W) in [0, 1], labels int64 (H, W)), then transformed.

    A data set of this kind sets the attributes below, and defines `names` and `read`.
    """

    items: Sequence[Any]  # what `read` needs of each pair
    classes: tuple[str, ...]
    colors: Tensor
    transforms: Transform | None
    ignore_index: int = VOID

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.items)

    def names(self, index: int) -> tuple[str, str]:
        """What errors call the image and its mask; index is in range."""
        raise NotImplementedError

    def read(self, index: int) -> tuple[Tensor, Labels]:
        """Image and labels; index is in range."""
        raise NotImplementedError

    def read_labels(self, index: int) -> Labels:
        """The labels alone, checked as on access; a data set that can leaves the image undecoded."""
        return self._checked(check_index(index, len(self)))[1]

    def is_turned_in_place(self, index: int) -> bool:
        """True where EXIF data turn the image and its size does not tell whether its mask was drawn on it turned."""
        return False

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, ids = self._checked(check_index(index, len(self)))
        labels = torch.from_numpy(ids)
        return (image, labels) if self.transforms is None else transformed(self.transforms, image, labels)

    def verify(self) -> None:
        """Reads every pair once; raises the first error that training would meet."""
        for index in range(len(self)):
            self._checked(index)

    def _checked(self, index: int) -> tuple[Tensor, Labels]:
        image, labels = self.read(index)
        self.check(index, tuple(image.shape[1:]), labels)
        return image, labels

    def check(self, index: int, size: tuple[int, ...], labels: Labels) -> None:
        """ValueError where the labels are of another size than the image, or neither a class nor void."""
        image, mask = self.names(index)
        if size != labels.shape:
            (h, w), (y, x) = size, labels.shape
            came = f"image {h} x {w}, mask {y} x {x} (rows x columns)"
            raise ValueError(
                complain(
                    f"{image} and {mask}", "image and mask of one size", came, "Resize the mask, by nearest neighbour."
                )
            )
        check_ids(labels, self.num_classes, self.ignore_index, mask)


def transformed(transforms: Transform, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Plain tensors, after `transforms(tv_tensors.Image, tv_tensors.Mask)`."""
    from torchvision import tv_tensors

    image, mask = transforms(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return image.as_subclass(Tensor), mask.as_subclass(Tensor).long()


def palette(count: int) -> Tensor:
    """The colours of PASCAL VOC's label maps, uint8 (count, 3): bits of the class id spread over R, G and B."""
    ids = torch.arange(count)
    colors = torch.zeros(count, 3, dtype=torch.int64)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((ids >> (3 * bit + channel)) & 1) << (7 - bit)
    return colors.to(torch.uint8)


@contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """ValueError naming the file for whatever PIL makes of damaged bytes, a decompression bomb, too little memory."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        expected, remedy = f"a readable {what} file", "Replace the file, or leave it out."
        raise ValueError(
            complain(str(path), expected, f"{type(error).__name__}: {' '.join(str(error).split()).rstrip('.')}", remedy)
        ) from error


def open_picture(path: str | Path) -> "Image":
    """PIL's picture, of a format that it reads itself: for others it starts programs, whatever the file is called."""
    from PIL import Image

    return Image.open(path, formats=_FORMATS)


def read_image(path: Path) -> Tensor:
    """Image float32 (3, H, W) in [0, 1], turned upright if its EXIF data say so. Errors name the file."""
    from PIL import ImageOps

    with readable(path, "image"), open_picture(path) as file:
        mode, image = file.mode, ImageOps.exif_transpose(file)
    if mode.startswith("I") or mode == "F":
        came = f"an image of mode {mode!r}"
        raise ValueError(complain(str(path), "8 bits per channel", came, "Convert it to 8-bit RGB or grey."))
    return image_tensor(image)


def image_size(path: Path) -> tuple[int, int, int]:
    """H and W of an image as `read_image` gives it, mostly from the header alone; EXIF orientation, 1 for none."""
    from PIL import ImageOps

    with readable(path, "image"), open_picture(path) as file:
        orientation = file.getexif().get(_ORIENTATION, 1)
        orientation = orientation if orientation in range(1, 9) else 1
        width, height = ImageOps.exif_transpose(file).size if orientation > 4 else file.size
    return height, width, orientation


def image_tensor(image: "Image") -> Tensor:
    """A PIL image as float32 (3, H, W) in [0, 1]."""
    pixels = torch.from_numpy(np.array(image.convert("RGB")))
    return pixels.permute(2, 0, 1).contiguous().to(torch.float32).div_(255)


def read_mask(path: Path) -> Labels:
    """Class ids int64 (H, W) of a mask file, turned as `read_image` does; a palette image gives its indices.

    Errors name the file.
    """
    from PIL import ImageOps

    with readable(path, "mask"), open_picture(path) as file:
        kind, frames = file.format, getattr(file, "n_frames", 1)
        scaled = any(bits in str(file.tile) for bits in ("'L;2", "'L;4"))
        lossy = kind in ("JPEG", "MPO") or file.info.get("compression") == "jpeg"
        mask = ImageOps.exif_transpose(file)
    if lossy:
        came, remedy = f"a {kind} that alters class ids", "Store it as PNG."
        raise ValueError(complain(str(path), "a lossless mask", came, remedy))
    if scaled:
        came, remedy = "grey of 2 or 4 bits, which readers scale to 0 to 255", "Store it with 8."
        raise ValueError(complain(str(path), "8 or 16 bits per label", came, remedy))
    if frames > 1:
        raise ValueError(complain(str(path), "one picture", f"{frames} in one file", "Keep the mask alone."))
    return mask_ids(mask, str(path))


def mask_ids(mask: "Image", name: str) -> Labels:
    """Class ids int64 (H, W) of a PIL image; ValueError for colours, naming `name`."""
    if mask.mode not in ("1", "L", "P", "I") and not mask.mode.startswith("I;16"):
        colours = mask.convert("RGB").getcolors(256)
        count = "more than 256" if colours is None else str(len(colours))
        expected = "class ids in one channel (PNG mode 'L' or 'P')"
        came = f"an image of mode {mask.mode!r} with {count} colours"
        remedy = "Convert its colours to class ids; if it began as a palette mask, save it without .convert('RGB')."
        raise ValueError(complain(name, expected, came, remedy))
    return np.array(mask).astype(np.int64)


def check_ids(labels: Labels, classes: int, ignore_index: int, name: str) -> None:
    """ValueError naming file, value and place if a label is neither a class nor void."""
    bad = ((labels < 0) | (labels >= classes)) & (labels != ignore_index)
    if bad.any():
        y, x = (int(v) for v in np.argwhere(bad)[0])
        values = ", ".join(str(v) for v in np.unique(labels[bad])[:8])
        came = f"{labels[y, x]} at row {y}, column {x} ({int(bad.sum())} such pixels; values {values})"
        expected = f"labels in [0, {classes}) or ignore_index={ignore_index}"
        remedy = "Map these values to classes or to void, or raise num_classes."
        raise ValueError(complain(name, expected, came, remedy))


def two_classes(ids: Labels, foreground: int, ignore_index: int, name: str) -> Labels:
    """0 and `foreground` in a mask -> labels 0 and 1; `ignore_index` stays, unless it is the foreground.

    ValueError naming file, value and place for any other.
    """
    bad = (ids != 0) & (ids != foreground) & (ids != ignore_index)
    if bad.any():
        y, x = (int(v) for v in np.argwhere(bad)[0])
        came = f"{ids[y, x]} at row {y}, column {x} ({int(bad.sum())} such pixels)"
        void = "" if foreground == ignore_index else f" or ignore_index={ignore_index}"
        remedy = "Map these values to one of them, or give class ids without foreground."
        raise ValueError(complain(name, f"0 (background), {foreground} (foreground){void}", came, remedy))
    return np.where(ids == foreground, 1, ids)


def find_foreground(masks: Iterable[Path], ignore_index: int) -> int:
    """The only value besides 0 in any of the masks, `ignore_index` included; or 1, where `ignore_index` is beside it.

    All masks are read. ValueError, naming masks, for any other values, and for one with `ignore_index` but no 1, which
    may be void or foreground, where another mask has a 1.
    """
    first: dict[int, Path] = {}  # value -> a mask that has it
    doubtful = None
    for path in masks:
        values = {int(value) for value in np.unique(read_mask(path))} - {0}
        first = dict.fromkeys(values, path) | first
        if doubtful is None and values == {ignore_index}:
            doubtful = path
    if len(first) == 1:
        return next(iter(first))
    if not first:
        remedy = "Check the masks, or name the foreground by the option foreground."
        raise ValueError(complain("foreground", "a value besides 0 in some mask", "0 in all of them", remedy))
    expected = f"0 and one other value in the masks, or 0, 1 and {ignore_index} for void"
    remedy = "Leave foreground (data.binary) out for class ids; else say which value it is by the option foreground"
    if set(first) != {1, ignore_index}:
        came = ", ".join(f"{value} in {first[value]}" for value in sorted(first)[:4])
        raise ValueError(complain("foreground", expected, came, f"{remedy}."))
    if doubtful is not None:
        came = f"1 in {first[1]}, and {ignore_index} without 1 in {doubtful}"
        raise ValueError(complain("foreground", expected, came, f"{remedy}: 1 ({ignore_index} is void then)."))
    return 1


def check_index(index: int, length: int) -> int:
    """A list's index rule: negative counts from the end, IndexError beyond."""
    if not -length <= index < length:
        raise IndexError(complain("index", f"an integer in [{-length}, {length})", index, "Stay inside the data set."))
    return index % length
