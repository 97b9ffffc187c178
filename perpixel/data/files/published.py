"""Published data: CamVid; through torchvision's readers PASCAL VOC (with SBD), Cityscapes, Oxford-IIIT Pets."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import check_flag, check_option, complain
from perpixel.data.files.folder import FolderSegmentation
from perpixel.data.files.samples import (
    VOID,
    FileSegmentation,
    Labels,
    Transform,
    check_ids,
    check_index,
    image_tensor,
    mask_ids,
    open_picture,
    palette,
    readable,
)

VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
CAMVID_CLASSES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
CAMVID_COLORS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (0, 0, 192), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip


class TorchvisionSegmentation(FileSegmentation):
    """torchvision data sets that give (PIL image, target), joined.

    Args:
        parts: data sets with the indices used of them.
        to_labels: turns a target and its file's name into class ids (H, W), void 255.
        classes, colors: names and RGB of the classes.
        transforms: called as `transforms(tv_tensors.Image, tv_tensors.Mask)`.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Any, Sequence[int]]],
        to_labels: Callable[[Any, str], Labels],
        classes: Sequence[str],
        colors: Tensor,
        transforms: Transform | None,
    ) -> None:
        self.items = [(source, index) for source, indices in parts for index in indices]
        self.to_labels, self.transforms = to_labels, transforms
        self.classes, self.colors = tuple(classes), colors
        if not self.items:
            expected, remedy = "at least one image in the split", "Check the split's list file."
            raise ValueError(complain("root", expected, "none", remedy))

    def names(self, index: int) -> tuple[str, str]:
        source, place = self.items[index]
        name = str((getattr(source, "images", None) or source._images)[place])
        return name, f"the mask of {name}"

    def read_labels(self, index: int) -> Labels:
        source, place = self.items[check_index(index, len(self))]
        mask = {"VOCSegmentation": "masks", "Cityscapes": "targets"}.get(type(source).__name__)
        if mask is None:  # kept in another form than a picture
            return super().read_labels(index)
        file = getattr(source, mask)[place]
        image, name = self.names(index)
        with readable(Path(image), "image or mask"), open_picture(image) as picture:
            width, height = picture.size
            target = open_picture(file[0] if isinstance(file, list) else file)
            target.load()
        labels = self.to_labels(target, name)
        self.check(index, (height, width), labels)
        return labels

    def read(self, index: int) -> tuple[Tensor, Labels]:
        source, place = self.items[index]
        name, mask = self.names(index)
        with readable(Path(name), "image or mask"):
            picture, target = source[place]
        return image_tensor(picture), self.to_labels(target, mask)


def camvid(root: str | Path, split: str, transforms: Transform | None) -> FolderSegmentation:
    """CamVid in folders: 11 classes, void 255."""
    return FolderSegmentation(root, split, transforms, classes=CAMVID_CLASSES, colors=CAMVID_COLORS)


def _whole(source: Any) -> list[tuple[Any, Sequence[int]]]:
    return [(source, range(len(source)))]


def _opened(kind: str, name: str, root: str | Path, *arguments: Any, **options: Any) -> Any:
    """torchvision's data set `kind`, or an error that says which tree it looked for."""
    from torchvision import datasets

    try:
        return getattr(datasets, kind)(root, *arguments, **options)
    except (RuntimeError, FileNotFoundError, NotADirectoryError, UnicodeDecodeError) as error:
        expected, remedy = f"the folder tree of {name} as torchvision reads it", "Check root, or pass download=True."
        raise FileNotFoundError(complain("root", expected, f"{root} ({error})", remedy)) from error


class _ClassIds:
    """Class ids by the id of a mask, void but for `pairs`; a class, so that worker processes can receive it."""

    def __init__(self, pairs: dict[int, int]) -> None:
        self.table = np.full(256, VOID, np.int64)
        self.table[list(pairs)] = list(pairs.values())

    def __call__(self, target: Any, name: str) -> Labels:
        ids = mask_ids(target, name)
        check_ids(ids, len(self.table), VOID, name)
        return self.table[ids]


def voc(
    root: str | Path,
    split: str,
    transforms: Transform | None,
    *,
    year: str = "2012",
    sbd_root: str | Path | None = None,
    download: bool = False,
) -> TorchvisionSegmentation:
    """PASCAL VOC, 21 classes, object borders void. Splits: train, val, trainval (and test in 2007).

    `sbd_root` with split "train" adds every image of SBD that VOC has in neither train nor val (with VOC 2012: the
    usual 10,582 images); those of VOC train keep VOC's masks.
    """
    check_option("split", split, ("train", "val", "trainval", *(("test",) if year == "2007" else ())))
    check_flag("download", download)
    name = f"PASCAL VOC {year}"
    base = _opened("VOCSegmentation", name, root, year, split, download)
    parts = _whole(base)
    if sbd_root is not None:
        if split != "train":
            raise ValueError(complain("sbd_root", "None unless split='train'", split, "SBD only adds training images."))
        val = _opened("VOCSegmentation", name, root, year, "val", download)
        known = {Path(file).stem for file in (*base.images, *val.images)}
        for part in ("train", "val"):
            source = _opened("SBDataset", "SBD", sbd_root, part, "segmentation", download)
            parts.append((source, [i for i, file in enumerate(source.images) if Path(file).stem not in known]))
    return TorchvisionSegmentation(parts, mask_ids, VOC_CLASSES, palette(21), transforms)


def sbd(
    root: str | Path, split: str, transforms: Transform | None, *, download: bool = False
) -> TorchvisionSegmentation:
    """The Semantic Boundaries Dataset, VOC's 21 classes, no void. Splits: train, val, train_noval (without VOC val)."""
    check_option("split", split, ("train", "val", "train_noval"))
    source = _opened("SBDataset", "SBD", root, split, "segmentation", check_flag("download", download))
    return TorchvisionSegmentation(_whole(source), mask_ids, VOC_CLASSES, palette(21), transforms)


def cityscapes(
    root: str | Path, split: str, transforms: Transform | None, *, mode: Literal["fine", "coarse"] = "fine"
) -> TorchvisionSegmentation:
    """Cityscapes, its 19 train ids, all else void. Splits: train, val, test; of coarse: train, train_extra, val."""
    check_option("mode", mode, ("fine", "coarse"))
    check_option("split", split, ("train", "val", "test") if mode == "fine" else ("train", "train_extra", "val"))
    source = _opened("Cityscapes", "Cityscapes", root, split, mode, "semantic")
    kinds = sorted((c for c in source.classes if 0 <= c.train_id < VOID), key=lambda c: c.train_id)
    colors = torch.tensor([c.color for c in kinds], dtype=torch.uint8)
    ids = _ClassIds({c.id: c.train_id for c in kinds})
    return TorchvisionSegmentation(_whole(source), ids, [c.name for c in kinds], colors, transforms)


class _PetLabels:
    """Trimap 1 pet, 2 background, 3 border -> class ids, with the species as class if asked."""

    def __init__(self, border: int, species: bool) -> None:
        self.border, self.species = border, species

    def __call__(self, target: Any, name: str) -> Labels:
        trimap, kind = target if self.species else (target, 0)
        ids = mask_ids(trimap, name)
        if not np.isin(ids, (1, 2, 3)).all():
            came = str(np.setdiff1d(ids, (1, 2, 3))[:8].tolist())
            raise ValueError(complain(name, "trimap values 1, 2, 3", came, "Replace the file."))
        pet = 1 + int(kind)
        border = pet if self.border < 0 else self.border
        return np.array([VOID, pet, 0, border], np.int64)[ids]


def oxford_pets(
    root: str | Path,
    split: str,
    transforms: Transform | None,
    *,
    labels: Literal["pet", "species"] = "pet",
    border: Literal["void", "pet", "background"] = "void",
    download: bool = False,
) -> TorchvisionSegmentation:
    """Oxford-IIIT Pets: background and pet, or background, cat and dog. Splits: train (= trainval), val (= test).

    `border`: what the trimap's unclassified band around the pet becomes.
    """
    check_option("labels", labels, ("pet", "species"))
    check_option("border", border, ("void", "pet", "background"))
    check_option("split", split, ("train", "val", "trainval", "test"))
    there = {"train": "trainval", "val": "test"}.get(split, split)
    species = labels == "species"
    wanted = ["segmentation", "binary-category"] if species else "segmentation"
    check_flag("download", download)
    source = _opened("OxfordIIITPet", "Oxford-IIIT Pets", root, there, wanted, download=download)
    classes = ("background", "cat", "dog") if species else ("background", "pet")
    to_labels = _PetLabels({"void": VOID, "pet": -1, "background": 0}[border], species)
    return TorchvisionSegmentation(_whole(source), to_labels, classes, palette(len(classes)), transforms)
