"""`build`: one door to every data set."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perpixel.checks import check_option, complain
from perpixel.data.files.folder import FolderSegmentation
from perpixel.data.files.published import CAMVID_CLASSES, CAMVID_COLORS, cityscapes, oxford_pets, sbd, voc
from perpixel.data.files.samples import SegmentationData, Transform
from perpixel.data.synthetic.dataset import SyntheticEvidence


def _camvid(root: str | Path, split: str, transforms: Transform | None) -> FolderSegmentation:
    """CamVid in folders: 11 classes, void 255."""
    return FolderSegmentation(root, split, transforms, classes=CAMVID_CLASSES, colors=CAMVID_COLORS)


_ON_DISK: dict[str, Callable[..., Any]] = {
    "folder": FolderSegmentation,
    "camvid": _camvid,
    "voc": voc,
    "sbd": sbd,
    "cityscapes": cityscapes,
    "oxford-pets": oxford_pets,
}
NAMES = ("synthetic", *_ON_DISK)
_SYNTHETIC_LENGTH = {"train": 1000, "val": 200}


def build(
    name: str,
    root: str | Path | None = None,
    split: str = "train",
    *,
    transforms: Transform | None = None,
    **options: Any,
) -> SegmentationData:
    """A data set by name; its samples start with (image float32 (3, H, W), labels int64 (H, W), void 255).

    Args:
        name: "synthetic" (`SyntheticEvidence`; no root; `length` defaults to 1000 for train, 200 for val), "folder"
            (`FolderSegmentation`), "camvid" (such folders with CamVid's 11 classes), "voc", "sbd", "cityscapes",
            "oxford-pets" (torchvision's readers).
        root: the folder the data lie in.
        split: "train", "val", or what else the data set has.
        transforms: called as `transforms(image, mask)` on tv_tensors; see `train_transforms`, `eval_transforms`.
        **options: keyword-only arguments of the data set: those of `SyntheticEvidence` and `FolderSegmentation`;
            voc: year, sbd_root, download; sbd: download; cityscapes: mode; oxford-pets: labels, border, download.

    Returns:
        A map-style data set with `.classes`, `.num_classes`, `.colors` (uint8 (num_classes, 3)).

    Raises:
        ValueError: an unknown name or split; TypeError: an option this data set does not have;
        FileNotFoundError: nothing to read under `root`.
    """
    check_option("name", name, NAMES)
    maker: Callable[..., Any] = SyntheticEvidence if name == "synthetic" else _ON_DISK[name]
    known = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    known = ["length", *(k for k in known if k not in ("split", "transforms"))] if name == "synthetic" else known
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "no options"
            raise TypeError(complain("options", f"options of {name!r} ({listed})", option, "Remove or rename it."))
    if name == "synthetic":
        if root is not None:
            raise ValueError(complain("root", "None for 'synthetic'", root, "It is drawn, not read: leave root out."))
        check_option("split", split, tuple(_SYNTHETIC_LENGTH))
        length = options.pop("length", _SYNTHETIC_LENGTH[split])
        data: SegmentationData = maker(length, split=split, transforms=transforms, **options)
        return data
    if root is None:
        raise TypeError(complain("root", f"the folder of {name!r}", root, "Pass root=."))
    data = maker(root, split, transforms, **options)
    return data
