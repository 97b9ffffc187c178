"""Pseudo-labels as a data set of folders, which `--data.name folder` reads: drawn masks to train on, true ones to test.

root/train: the training images, with labels made of maps and of the classes known to be in them; void where unsure.
root/val: the evaluation images with their true masks.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from perpixel.checks import complain
from perpixel.data import eval_transforms
from perpixel.evaluation import confusion_matrices
from recipes.image_labels.maps import Rule, present_classes
from recipes.kit.images import Images
from recipes.kit.run_folder import write_atomically

VOID = 255


def training_samples(images: Images) -> Iterator[tuple[Tensor, Tensor]]:
    """The training images before anything random is done to them, in [0, 1], and their labels."""
    source, count = images.sources["training"]
    for index in range(count):
        image, labels, *_ = source[index]
        yield image, labels


def class_shares(images: Images) -> list[float]:
    """The share of training images that have each class."""
    found = [present_classes(labels[None], images.num_classes)[0] for _, labels in training_samples(images)]
    return torch.stack(found).double().mean(0).tolist()


def write_pseudo_labels(
    root: Path, images: Images, maps_of: Callable[[Tensor], tuple[Tensor, Tensor]], rule: Rule, unsure: float
) -> Iterator[Tensor]:
    """Write all files; per training image the confusion of its sure pixels with the truth, and how many are void.

    Yields int64 (C, C + 1), the last column those that are void. maps_of: normalised images (1, 3, H, W) -> class maps
    (1, C, H, W) and scores. Of the true labels of a training image nothing is used but which classes are in it.
    """
    classes, normalise = images.num_classes, eval_transforms()
    if classes > VOID:
        raise ValueError(complain("pseudo", f"at most {VOID} classes", classes, "Give --pseudo null."))
    for folder in ("train/images", "train/masks", "val/images", "val/masks"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    write_atomically(root / "classes.txt", ("\n".join(images.classes) + "\n").encode())
    for number, (image, labels) in enumerate(training_samples(images)):
        present = present_classes(labels[None], classes)
        with torch.no_grad():
            maps, _ = maps_of(normalise(image[None], labels[None])[0])
        found = rule.labels(maps, present)
        sure = rule.is_sure(maps, present, unsure)
        _write(root / "train", number, image, found.masked_fill(~sure, VOID)[0], images)
        truth = torch.where(sure, labels[None], images.ignore_index)
        confusion = confusion_matrices(found, truth, classes, ignore_index=images.ignore_index)[0]
        void = torch.bincount(labels[(labels != images.ignore_index) & ~sure[0]], minlength=classes)
        yield torch.cat([confusion, void[:, None]], 1)
    for number in range(images.evaluated):
        image, labels, *_ = images.evaluation_sample(number)
        _write(root / "val", number, image, labels.masked_fill(labels == images.ignore_index, VOID), images)


def _write(folder: Path, number: int, image: Tensor, labels: Tensor, images: Images) -> None:
    picture = Image.fromarray((image.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())
    mask = Image.fromarray(labels.byte().numpy(), "P")
    mask.putpalette(images.colors.flatten().tolist() + [0] * (3 * (VOID - images.num_classes)) + [204, 204, 204])
    for kind, what in (("images", picture), ("masks", mask)):
        write_atomically(folder / kind / f"{number:05d}.png", _png(what))


def _png(picture: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
