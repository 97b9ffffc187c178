"""`evidence_distance`: how far a pixel lies from what decides its label."""

import numpy as np
import torch
from torch import Tensor

from perpixel.checks import complain


def evidence_distance(instances: Tensor, evidence: Tensor, *, context: Tensor | None = None) -> Tensor:
    """Distance from every pixel of an instance to the nearest evidence pixel of the same instance.

    Args:
        instances: integer (H, W), 0 = background.
        evidence: bool (H, W).
        context: bool (H, W), optional: instances on these pixels (those of a "context" pair) are measured to the
            nearest evidence on the background instead, since that decides them; without it they get inf.

    Returns:
        float32 (H, W) in pixels, Euclidean between pixel centres: 0 on evidence, inf on an instance without visible
        evidence (a hidden head), NaN outside all instances.
    """
    from scipy.ndimage import distance_transform_edt, find_objects

    for name, value in (("instances", instances), ("evidence", evidence), ("context", context)):
        if value is None and name == "context":
            continue
        if not isinstance(value, Tensor) or value.ndim != 2 or value.shape != instances.shape:
            expected = "a tensor (H, W), one image, like instances"
            raise ValueError(complain(name, expected, value, "Call it image by image."))
        if name != "instances" and value.dtype != torch.bool:
            raise TypeError(complain(name, "a bool tensor", value, "Convert it with .bool()."))
    ids, decides = instances.cpu().numpy(), evidence.cpu().numpy()
    outside = None if context is None else context.cpu().numpy()
    result = np.full(ids.shape, np.nan, np.float32)
    for number, window in enumerate(find_objects(ids), start=1):
        if window is None:
            continue
        mine = ids[window] == number
        if outside is not None and outside[window][mine].any():
            goal, window, mine = decides & (ids == 0), (slice(None), slice(None)), ids == number
        else:
            goal = decides[window] & mine
        far = distance_transform_edt(~goal) if goal.any() else np.full(goal.shape, np.inf)
        result[window][mine] = far[mine]
    return torch.from_numpy(result)
