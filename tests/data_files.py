"""Small images and masks on disk, and a data set that draws from every random generator."""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from perpixel.data import SyntheticEvidence, palette


def put_image(path: Path, size: tuple[int, int] = (6, 8), value: int = 100) -> None:
    """A grey photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def put_mask(path: Path, ids: object, mode: str = "L") -> None:
    """Class ids in a file of a mode of PIL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.asarray(ids, {"L": np.uint8, "P": np.uint8, "I;16": np.uint16}.get(mode, np.int32))
    mask = Image.fromarray(array, "P") if mode == "P" else Image.fromarray(array)
    if mode == "P":
        mask.putpalette([int(v) for v in palette(256).flatten()])
    mask.save(path)


def mask(*values: int) -> np.ndarray:
    """Class ids (6, 8) that repeat `values`."""
    return np.resize(np.array(values, np.uint8), (6, 8))


class Noisy(Dataset):
    """Draws from every generator that a user's transform may use, and a picture; here, so that workers load little."""

    classes = ("a", "b")

    def __init__(self) -> None:
        self.pictures = SyntheticEvidence(8)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = torch.tensor([torch.rand(()), np.random.rand(), random.random()])  # noqa: NPY002
        return drawn, self.pictures[index].image
