"""How `F.interpolate` resizes a map, as one small matrix per axis: every mode of it is linear and treats them apart."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_WIDTH = 2  # of the map that is resized along the other axis: antialiasing does nothing to maps one pixel wide


def axis_matrix(
    length: int,
    *,
    size: int | None = None,
    scale_factor: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
    **options: Any,
) -> Tensor:
    """The matrix (new length, length) by which `F.interpolate` resizes one axis.

    size or scale_factor: along that axis. options: its others, such as mode, align_corners, antialias.
    """
    units = torch.eye(length, dtype=dtype, device=device)[None, :, :, None].expand(-1, -1, -1, _WIDTH)
    if size is not None:
        options["size"] = (size, _WIDTH)
    if scale_factor is not None:
        options["scale_factor"] = (float(scale_factor), 1.0)
    return F.interpolate(units, **options)[0, :, :, 0].T.contiguous()


def axis_matrices(
    grid: tuple[int, int],
    options: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """`rows` (H, h) and `columns` (W, w): maps (..., h, w) of size `grid` resized are rows · maps · columnsᵀ.

    options: the arguments of `F.interpolate` but for its input.
    """
    found = []
    for axis, length in enumerate(grid):
        own = dict(options)
        for name in ("size", "scale_factor"):
            if isinstance(own.get(name), (tuple, list)):
                own[name] = own[name][axis]
        found.append(axis_matrix(length, dtype=dtype, device=device, **own))
    return found[0], found[1]
