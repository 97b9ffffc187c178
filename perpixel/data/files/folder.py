"""`FolderSegmentation`: images and masks in folders, paired by file name."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_integer, check_option, complain
from perpixel.data.files.samples import (
    VOID,
    FileSegmentation,
    Labels,
    Transform,
    check_index,
    find_foreground,
    image_size,
    palette,
    read_image,
    read_mask,
    two_classes,
)

EXTENSIONS = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"))
_TWO_COLORS = ((44, 48, 56), (64, 186, 150))  # background and foreground: apart from red for errors
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class FolderSegmentation(FileSegmentation):
    """Pairs of image and mask files with the same stem, in one of two layouts.

    - `root/<split>/images/*` and `root/<split>/masks/*`;
    - `root/images/*` and `root/masks/*` with a list of stems, one per line, in `root/<split>.txt`,
      `root/splits/<split>.txt` or `list_file`.

    Samples: (image float32 (3, H, W) in [0, 1], labels int64 (H, W)), after `transforms(image, mask)` on tv_tensors.
    Masks hold class ids in one channel; palette PNGs are read as indices. Subfolders are part of the stem.

    Args:
        root: the folder; its `classes.txt`, one name per line, or `classes.json`, a list of names, names the classes.
        split: name of the split's folder or list.
        transforms: see `perpixel.data.transforms`.
        num_classes, classes: how many classes there are, or their names in order of id. With neither, and no
            such file, every mask under `root` is read once for the highest id: give one of them for big data.
        colors: (num_classes, 3) RGB for pictures; default the palette of PASCAL VOC (beside `foreground` another).
        ignore_index: the value of void in the masks.
        foreground: of masks of two classes, the value that is class 1; 0 is class 0. Where it is also `ignore_index`,
            there is no void. "found": the only value besides 0 in the masks, so 255 in those of 0 and 255; in those of
            0, 1 and `ignore_index` it is 1. Every mask under `root` is read once for that. Without other names, the
            classes are background and foreground.
        list_file: a list of stems, relative to `root` or absolute; asks for the second layout.

    Raises:
        FileNotFoundError: a folder or a listed file is missing.
        ValueError: no pair at all, an image without mask or a mask without image (first layout), two files with one
            stem, a stem listed twice, a list or `classes.txt` that is not UTF-8, a `classes.json` that is no list of
            names, both of them; and on access: an unreadable file, a coloured or lossy mask, sizes that differ, a label
            outside the classes. With `foreground`: masks of other values, or of which nobody knows whether
            `ignore_index` is foreground or void.
    """

    def __init__(
        self,
        root: str | Path,
        split: str = "train",
        transforms: Transform | None = None,
        *,
        num_classes: int | None = None,
        classes: Sequence[str] | None = None,
        colors: Sequence[Sequence[int]] | Tensor | None = None,
        ignore_index: int = VOID,
        foreground: int | Literal["found"] | None = None,
        list_file: str | Path | None = None,
    ) -> None:
        self.root, self.split, self.transforms = Path(root), split, transforms
        self.ignore_index = check_integer("ignore_index", ignore_index)
        if not self.root.is_dir():
            raise FileNotFoundError(complain("root", "an existing folder", str(self.root), "Check the path."))
        folder = self.root / split
        if list_file is None and (folder / "images").is_dir():
            self.items = _matched(folder)
        else:
            self.items = _listed(self.root, self._find_list(list_file))
        self.stems = tuple(stem for stem, _, _ in self.items)
        self.foreground = None if foreground is None else self._check_foreground(foreground)
        self.classes = self._name_classes(num_classes, classes)
        usual = palette(self.num_classes) if self.foreground is None else torch.tensor(_TWO_COLORS)
        table = usual if colors is None else torch.as_tensor(colors)
        if table.shape != (self.num_classes, 3) or table.min() < 0 or table.max() > 255:
            expected = f"{self.num_classes} rows of R, G, B in 0 to 255"
            raise ValueError(complain("colors", expected, table, "Give one per class."))
        self.colors = table.to(torch.uint8)

    @property
    def images(self) -> tuple[Path, ...]:
        """The image files, in order."""
        return tuple(image for _, image, _ in self.items)

    @property
    def masks(self) -> tuple[Path, ...]:
        """The mask files, in order."""
        return tuple(mask for _, _, mask in self.items)

    def names(self, index: int) -> tuple[str, str]:
        _, image, mask = self.items[index]
        return str(image), str(mask)

    def read(self, index: int) -> tuple[Tensor, Labels]:
        _, image, mask = self.items[index]
        return read_image(image), self._labels(mask)

    def read_labels(self, index: int) -> Labels:
        index = check_index(index, len(self))
        _, image, mask = self.items[index]
        labels = self._labels(mask)
        self.check(index, image_size(image)[:2], labels)
        return labels

    def is_turned_in_place(self, index: int) -> bool:
        _, image, mask = self.items[check_index(index, len(self))]
        height, width, orientation = image_size(image)
        return orientation != 1 and (orientation < 5 or height == width) and image_size(mask)[2] == 1

    def _labels(self, mask: Path) -> Labels:
        ids = read_mask(mask)
        return ids if self.foreground is None else two_classes(ids, self.foreground, self.ignore_index, str(mask))

    def _check_foreground(self, foreground: int | str) -> int:
        if self.ignore_index in (0, 1):
            remedy = "Give void another value in the masks."
            raise ValueError(complain("ignore_index", "neither 0 nor 1 beside foreground", self.ignore_index, remedy))
        if isinstance(foreground, str):
            check_option("foreground", foreground, ("found",))
            return find_foreground(self._every_mask(), self.ignore_index)
        if check_integer("foreground", foreground) == 0:
            raise ValueError(complain("foreground", "another value than 0, the background", 0, "Name the other."))
        return foreground

    def _find_list(self, list_file: str | Path | None) -> Path:
        usual = f"{self.split}.txt", f"splits/{self.split}.txt"
        for name in usual if list_file is None else (list_file,):
            if (self.root / name).is_file():
                return self.root / name
        if list_file is not None:
            raise FileNotFoundError(complain("list_file", "an existing file", str(self.root / list_file), "Check it."))
        found = sorted(p.name for p in self.root.iterdir() if (p / "images").is_dir())
        expected = f"{self.root / self.split}/images, or images/ and masks/ with {self.split}.txt"
        came = f"neither (splits found: {', '.join(found) or 'none'})"
        remedy = "Name an existing split, or make these folders."
        if (self.root / "images").is_dir():
            came = f"images/ without {self.split}.txt"
            remedy = f"Name the images of that split in {self.root / self.split}.txt, one in a line."
        raise FileNotFoundError(complain("split", expected, came, remedy))

    def _name_classes(self, num_classes: int | None, classes: Sequence[str] | None) -> tuple[str, ...]:
        if isinstance(classes, str):
            raise TypeError(complain("classes", "a sequence of names", classes, "Pass a list of strings."))
        if classes is None:
            classes = _names_in(self.root)
        if num_classes is not None:
            check_integer("num_classes", num_classes, low=1)
        if self.foreground is not None:
            if num_classes not in (None, 2) or len(classes or "ab") != 2:
                came = f"{num_classes or len(classes or ())} classes"
                remedy = "Leave foreground (data.binary) out for masks of class ids."
                raise ValueError(complain("classes", "two beside foreground", came, remedy))
            classes = classes or ("background", "foreground")
        if classes is None:
            count = self._count_classes() if num_classes is None else num_classes
            return tuple(f"class {i}" for i in range(count))
        if num_classes is not None and num_classes != len(classes):
            names = f"{num_classes} beside {len(classes)} names"
            raise ValueError(complain("num_classes", "the number of class names", names, "Give only one of them."))
        if not classes or len(set(classes)) != len(classes):
            raise ValueError(complain("classes", "one or more different names", list(classes), "Rename the classes."))
        for name in classes:
            if _CONTROL.search(str(name)):
                raise ValueError(complain("classes", "names without control characters", repr(name), "Rename it."))
        return tuple(str(name) for name in classes)

    def _count_classes(self) -> int:
        """One more than the highest id in any mask of any split, so that all splits agree."""
        every = map(read_mask, self._every_mask())
        return 1 + max((int(np.max(ids, where=ids != self.ignore_index, initial=0)) for ids in every), default=0)

    def _every_mask(self) -> list[Path]:
        """The masks of all splits."""
        folders = [self.root / "masks", *sorted(p / "masks" for p in self.root.iterdir())]
        return [path for folder in folders if folder.is_dir() for path in _by_stem(folder).values()]


def _raise(error: OSError) -> None:
    raise error


def _by_stem(folder: Path) -> dict[str, Path]:
    """Image files of a folder and its subfolders by relative path without extension."""
    if not folder.is_dir():
        raise FileNotFoundError(complain("root", f"the folder {folder}", "none", "Create it, or check root and split."))
    files: dict[str, Path] = {}
    found = (Path(place, name) for place, _, names in os.walk(folder, onerror=_raise) for name in names)
    for path in sorted(found):
        inside = path.relative_to(folder)
        if path.suffix.lower() not in EXTENSIONS or any(p.startswith(".") for p in inside.parts) or not path.is_file():
            continue
        stem = inside.with_suffix("").as_posix()
        if stem in files:
            both = f"{files[stem].name} and {path.name}"
            raise ValueError(complain(str(folder), f"one file per stem {stem!r}", both, "Remove or rename one."))
        files[stem] = path
    if not files:
        listed = " ".join(sorted(EXTENSIONS))
        raise ValueError(complain(str(folder), f"image files ({listed})", "none", "Check the folder's content."))
    return files


def _matched(folder: Path) -> list[tuple[str, Path, Path]]:
    images, masks = _by_stem(folder / "images"), _by_stem(folder / "masks")
    lonely = sorted(images.keys() - masks.keys()), sorted(masks.keys() - images.keys())
    for names, has, lacks in zip(lonely, ("image", "mask"), ("mask", "image")):
        if names:
            shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
            came = f"{len(names)} {has}(s) without {lacks}: {shown}"
            raise ValueError(complain(str(folder), "one mask per image, same stem", came, "Add or remove the files."))
    return [(stem, images[stem], masks[stem]) for stem in sorted(images)]


def _listed(root: Path, list_file: Path) -> list[tuple[str, Path, Path]]:
    images, masks = _by_stem(root / "images"), _by_stem(root / "masks")
    pairs: dict[str, tuple[str, Path, Path]] = {}
    for number, line in enumerate(_lines(list_file), start=1):
        stem = line.strip()
        if not stem or stem.startswith("#"):
            continue
        if stem not in images and Path(stem).suffix.lower() in EXTENSIONS:
            stem = Path(stem).with_suffix("").as_posix()
        for kind, files in (("images", images), ("masks", masks)):
            if stem not in files:
                came = f"none, for line {number} of {list_file}"
                expected, remedy = f"a file {stem}.*", "Add it, or fix the list."
                raise FileNotFoundError(complain(str(root / kind), expected, came, remedy))
        if stem in pairs:
            came = f"{stem} again in line {number}"
            raise ValueError(complain(str(list_file), "every stem once", came, "Remove one of the lines."))
        pairs[stem] = (stem, images[stem], masks[stem])
    if not pairs:
        raise ValueError(complain(str(list_file), "one stem per line", "an empty list", "List the split's files."))
    return list(pairs.values())


def _names_in(root: Path) -> list[str] | None:
    """The class names of classes.txt or classes.json; None without either."""
    text, listed = root / "classes.txt", root / "classes.json"
    if text.is_file() and listed.is_file():
        raise ValueError(complain(str(root), "classes.txt or classes.json", "both", "Remove one of them."))
    if text.is_file():
        return [line.strip() for line in _lines(text) if line.strip()]
    if not listed.is_file():
        return None
    try:
        names = json.loads("\n".join(_lines(listed)))
    except json.JSONDecodeError as error:
        raise ValueError(complain(str(listed), "JSON", str(error), "Mend it, or write classes.txt.")) from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        remedy = 'Example: ["background", "person"], in the order of their ids.'
        raise ValueError(complain(str(listed), "a list of names", type(names).__name__, remedy))
    return names


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = file.read_bytes()[: error.start].count(b"\n") + 1
        came = f"a byte 0x{error.object[error.start]:02x} in line {line}"
        raise ValueError(complain(str(file), "text in UTF-8", came, "Save it in that encoding.")) from error
