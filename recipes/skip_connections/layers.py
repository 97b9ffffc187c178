"""Which networks a study compares: without a skip, with one from every chosen layer, and with FCN-8s' own two."""

from collections.abc import Sequence
from itertools import pairwise

from perpixel.checks import complain
from perpixel.models import FeatureMap, feature_maps

Arms = dict[str, tuple[FeatureMap, ...]]  # by name, the last map and those of the skips, coarse to fine

NONE, BOTH = "no skip", "FCN-8s' own"
MOST = 12  # layers that "blocks" means at most


def choose_arms(backbone: str, wanted: Sequence[str]) -> Arms:
    """NONE, those `wanted` ("blocks", "all" or names) by depth, and BOTH.

    BOTH, the skips of FCN-8s (Long, Shelhamer, Darrell 2015), from the ends of the blocks of stride 16 and 8: of VGG
    pool4 and pool3, of ResNet layer3 and layer2. Left out where the backbone has no such layers before its last.
    """
    maps = feature_maps(backbone)
    *earlier, last = maps.values()
    ends = [one for one in earlier if one.ends_block]
    if list(wanted) == ["all"]:
        chosen = earlier
    elif list(wanted) == ["blocks"]:
        chosen = _thinned(ends)
    else:
        chosen = [one for one in feature_maps(backbone, wanted).values() if one != last]
    if not chosen:
        expected = f"a layer before the last, {last.name}, which is scored without a skip"
        raise ValueError(complain("layers", expected, f"{list(wanted)}", "Choose another."))
    arms: Arms = {NONE: (last,), **{one.name: (last, one) for one in chosen}}
    own = [one for stride in (16, 8) if (one := _end_of_block(list(maps.values()), stride)) is not None]
    if last.stride > 16 and len(own) == 2:
        arms[BOTH] = (last, *own)
    return arms


def _thinned(ends: Sequence[FeatureMap]) -> list[FeatureMap]:
    """At most MOST of them: of every stride equally many, evenly spread, its last among them."""
    strides = {one.stride: [other for other in ends if other.stride == one.stride] for one in ends}
    most = max(1, MOST // len(strides)) if len(ends) > MOST else MOST
    kept = [some[len(some) * (n + 1) // most - 1] for some in strides.values() for n in range(most) if len(some) > most]
    return [one for one in ends if one in kept or len(strides[one.stride]) <= most]


def _end_of_block(maps: Sequence[FeatureMap], stride: int) -> FeatureMap | None:
    """The map of this stride that a block ends with: a pooling (no convolution before it), or else the last of them."""
    for before, one in pairwise(maps):
        if before.stride < one.stride == stride and before.depth == one.depth:
            return one
    return next((one for one in reversed(maps) if one.stride == stride and one.ends_block), None)
