"""Where the labels of a network rest: on the object, near a boundary, and whether by way of the skips."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perpixel.evaluation import (
    BootstrapInterval,
    Floats,
    bootstrap_images,
    difference,
    near_boundary,
    predict_labels,
    ratio,
)
from perpixel.fixations import fixations
from perpixel.models import SkipNetwork
from recipes.kit.job import Job
from recipes.training.origin import Origin, keep

PLACES = ("on the object", "near a boundary", "through the skip")
NEAR = 0.02  # of the image diagonal
VOID = 255


@dataclass(frozen=True)
class Landing:
    """Of every image the mass of its fixations, and how much of it is at each of PLACES; float64 (N,) and (N, 3)."""

    mass: Floats
    at: Floats

    def shares(self, weights: Floats) -> Floats:
        """Percent of the mass at each of PLACES, (R, 3)."""
        return 100 * ratio(weights @ self.at, (weights @ self.mass)[:, None])

    @property
    def percent(self) -> dict[str, float]:
        """Of all images."""
        return dict(zip(PLACES, self.shares(np.ones((1, len(self.mass))))[0].tolist()))

    def more_than(self, control: "Landing", level: float, resamples: int) -> dict[str, BootstrapInterval]:
        """The percentages less those of the control on the same images, in points."""
        gain, images = difference(self.shares, control.shares), len(self.mass)

        def at(column: int) -> BootstrapInterval:
            return bootstrap_images(lambda weights: gain(weights)[:, column], images, level=level, resamples=resamples)

        return {place: at(column) for column, place in enumerate(PLACES)}


def measure_landing(job: Job, arm: str, network: SkipNetwork, began: Origin) -> Landing:
    """Fixations of the predicted labels of evenly spread evaluation images, shift full, one input each."""
    settings, images = job.settings, job.images
    count = min(settings.study.fixation_images, images.evaluated)
    only = [place * images.evaluated // count for place in range(count)]

    def measure() -> dict[str, Tensor]:
        batches = images.evaluation(batch_size=1, far=0.0, only=only)
        listed = job.each(f"{arm}: fixations", batches, count)
        rows = [_of_image(job, network, image, labels) for _, image, labels, _ in listed]
        return {"rows": torch.tensor(rows, dtype=torch.float64)}

    path = job.folder / "fixations" / f"{arm}.pt"
    rows = keep(path, {**began, "images": only}, measure, job.progress.report)["rows"].numpy()
    return Landing(rows[:, 0], rows[:, 1:])


@torch.no_grad()
def _of_image(job: Job, network: SkipNetwork, image: Tensor, labels: Tensor) -> list[float]:
    """The mass of the fixations of one image, and that at each of PLACES; what is labelled void is not traced."""
    void, device = job.images.ignore_index, job.fabric.device
    image, labels = image.to(device), labels.to(device)
    start = predict_labels(network, image, labels.shape[-2:]).masked_fill(labels == void, VOID)
    fix = fixations(network, image, start=start, record=True)
    near = near_boundary(labels, share=NEAR, ignore_index=void)
    number, label, _, y, x = fix.points.unbind(1)
    on, by = (fix.mass[chosen].sum() for chosen in (labels[number, y, x] == label, near[number, y, x]))
    skips = [node for node, layer in fix.nodes.items() if layer.startswith("head.skips.")]
    return [float(fix.mass.sum()), float(on), float(by), sum(float(fix.layers[node].mass.sum()) for node in skips)]
