"""`build`: one door to every data set."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from perpixel.checks import check_option, complain
from perpixel.data.files.folder import FolderSegmentation
from perpixel.data.files.published import camvid, cityscapes, oxford_pets, sbd, voc
from perpixel.data.files.samples import SegmentationData, Transform
from perpixel.data.synthetic.dataset import SyntheticEvidence

_MAKERS: dict[str, Callable[..., Any]] = {
    "synthetic": SyntheticEvidence,
    "folder": FolderSegmentation,
    "camvid": camvid,
    "voc": voc,
    "sbd": sbd,
    "cityscapes": cityscapes,
    "oxford-pets": oxford_pets,
}
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
    check_option("name", name, tuple(_MAKERS))
    synthetic, maker = name == "synthetic", _MAKERS[name]
    known = [p.name for p in inspect.signature(maker).parameters.values() if p.kind is p.KEYWORD_ONLY]
    if synthetic:
        known = ["length", *(option for option in known if option not in ("split", "transforms"))]
    for option in options:
        if option not in known:
            listed = ", ".join(known) or "no options"
            raise TypeError(complain("options", f"options of {name!r} ({listed})", option, "Remove or rename it."))
    data: SegmentationData
    if synthetic:
        if root is not None:
            raise ValueError(
                complain(
                    "root",
                    "None for 'synthetic'",
                    root,
                    "It is drawn, not read: leave root out, or name the data set in it, such as 'folder'.",
                )
            )
        check_option("split", split, tuple(_SYNTHETIC_LENGTH))
        data = maker(**{"length": _SYNTHETIC_LENGTH[split], **options}, split=split, transforms=transforms)
        return data
    if root is None:
        raise TypeError(complain("root", f"the folder of {name!r}", root, "Pass root=."))
    data = maker(root, split, transforms, **options)
    return data
