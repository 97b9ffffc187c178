"""Square cells of an image, in which masses and pixels are counted."""

import torch
from torch import Tensor

from perpixel.fixations import Fixations


class Cells:
    """The cells of `side` pixels that cover an image of `size`; those at the lower and right end may be cut.

    Maps of another size (labels, logits) are laid over the image: a pixel belongs to the cell its centre falls in.
    """

    def __init__(self, size: tuple[int, int], side: int) -> None:
        self.size, self.side = size, side
        self.grid = (-(-size[0] // side), -(-size[1] // side))

    def sums(self, group: Tensor, y: Tensor, x: Tensor, mass: Tensor, groups: int) -> Tensor:
        """Masses of points of the image added up by group and cell, float64 (groups, gh, gw)."""
        total = mass.new_zeros(groups * self.grid[0] * self.grid[1])
        place = (group * self.grid[0] + y // self.side) * self.grid[1] + x // self.side
        return total.index_add_(0, place, mass).view(groups, *self.grid)

    def landed(self, fix: Fixations) -> Tensor:
        """Mass of the fixations by image, label and cell, float64 (N, C, gh, gw)."""
        image, label, _, y, x = fix.points.unbind(1)
        sums = self.sums(image * fix.classes + label, y, x, fix.mass, fix.images * fix.classes)
        return sums.view(fix.images, fix.classes, *self.grid)

    def counts(self, labels: Tensor, classes: int) -> Tensor:
        """Pixels of labels (N, H, W) in [0, classes) by image, label and cell, float64 (N, classes, gh, gw)."""
        return self.sums_of_pixels(torch.ones_like(labels, dtype=torch.float64), labels, classes)

    def sums_of_pixels(self, values: Tensor, labels: Tensor, classes: int) -> Tensor:
        """Values (N, H, W) of pixels added up by image, label and cell, of their dtype (N, classes, gh, gw)."""
        rows, columns = self._of_pixels(labels)
        image = torch.arange(len(labels), device=labels.device)[:, None, None]
        group = (image * classes + labels) * (self.grid[0] * self.grid[1])
        place = (group + rows[:, None] * self.grid[1] + columns).flatten()
        total = values.new_zeros(len(labels) * classes * self.grid[0] * self.grid[1])
        return total.index_add_(0, place, values.flatten()).view(len(labels), classes, *self.grid)

    def spread(self, values: Tensor, like: Tensor) -> Tensor:
        """Values (N, gh, gw) of the cells at the pixels of `like` (N, H, W)."""
        rows, columns = self._of_pixels(like)
        return values[:, rows[:, None], columns]

    def spread_by_label(self, values: Tensor, labels: Tensor) -> Tensor:
        """Values (N, C, gh, gw) of the cells at the pixels of labels (N, H, W), each at its own label."""
        rows, columns = self._of_pixels(labels)
        image = torch.arange(len(labels), device=labels.device)[:, None, None]
        return values[image, labels, rows[:, None], columns]

    def _of_pixels(self, like: Tensor) -> tuple[Tensor, Tensor]:
        axes = zip(like.shape[-2:], self.size, strict=True)
        rows, columns = ((2 * torch.arange(n, device=like.device) + 1) * m // (2 * n) // self.side for n, m in axes)
        return rows, columns
