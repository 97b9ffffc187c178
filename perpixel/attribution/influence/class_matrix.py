"""How the classes of a segmentation lean on one another: each class hidden whole, beside as much at random."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from perpixel.attribution.influence.passes import Job, Passes, running
from perpixel.attribution.influence.patches import Patches, Segments
from perpixel.checks import check_integer, check_number, complain
from perpixel.outputs import check_labels

_LARGEST = 5  # entries that are printed


@dataclass(frozen=True, repr=False)
class ClassMatrix:
    """Rows: the class whose logit is read; columns: the class that is hidden. Float64 (C, C), NaN without a pixel.

    values: mean loss of class c's own logit at the visible pixels of class c with class k hidden. counts: int64, those
    pixels. control, control_counts: the same with as many pixels hidden at random places; all NaN without controls.
    hidden: (C,), the mean share of the image hidden with class k; images: int64 (C,), how many images have it.
    """

    values: Tensor
    counts: Tensor
    control: Tensor
    control_counts: Tensor
    hidden: Tensor
    images: Tensor

    def __repr__(self) -> str:
        size = self.values.abs().nan_to_num(-1.0).flatten()
        known = int((size >= 0).sum())
        largest = size.sort(descending=True, stable=True).indices[: min(known, _LARGEST)].tolist()
        lines = [f"ClassMatrix of {len(self.values)} classes, {int((self.images > 0).sum())} of them in the images"]
        if known:
            lines[0] += f"; the largest {len(largest)} of {known} losses"
            lines.append("class  hidden       loss  at random   pixels")
        for place in largest:
            row, column = divmod(place, len(self.values))
            loss, chance = float(self.values[row, column]), float(self.control[row, column])
            lines.append(f"{row:5d}  {column:6d}  {loss:9.3g}  {chance:9.3g}  {int(self.counts[row, column]):7d}")
        return "\n  ".join(lines)

    @property
    def excess(self) -> Tensor:
        """values − control: what hiding the class costs beyond hiding as much of anything."""
        return self.values - self.control


def class_matrix(
    passes: Passes,
    units: Patches | Segments,
    logits: Tensor,
    labels: Tensor,
    ignore_index: int,
    least: float,
    controls: int,
    seed: int,
) -> ClassMatrix:
    """`Influence.class_matrix`, of the logits on the grid (N, C, h, w)."""
    ignore_index = check_integer("ignore_index", ignore_index)
    least = check_number("least", least, low=0.0, high=1.0, open_high=True)
    controls, seed = check_integer("controls", controls, low=0), check_integer("seed", seed, low=0)
    labels = labels.to(logits.device) if isinstance(labels, Tensor) else labels
    labels = check_labels(labels, logits, ignore_index, values=True)
    if tuple(labels.shape) != (len(logits), *units.image):
        expected = f"shape {(len(logits), *units.image)}, one label per pixel of the images"
        raise ValueError(complain("labels", expected, labels, "Bring them there by nearest neighbour."))
    classes = logits.shape[1]
    jobs = _jobs(units, labels.cpu(), classes, ignore_index, least, controls, seed)
    with running(passes.model, passes.images.device):
        again = passes.unperturbed().to(logits)
        slack = 0.01 * float(logits.abs().max())  # room for another precision
        if not torch.allclose(again, logits, rtol=0.0, atol=slack):
            came = f"logits that differ by up to {float((again - logits).abs().max()):g}"
            raise RuntimeError(complain("model", "the logits of before", came, "It has changed: call influence again."))
        sums, counts, shares, images = _losses(passes, again, labels, ignore_index, jobs)
    means = sums / counts
    return ClassMatrix(means[0], counts[0], means[1], counts[1], shares / images, images)


def _losses(
    passes: Passes, logits: Tensor, labels: Tensor, ignore_index: int, jobs: Iterable[Job]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Summed losses and pixels (2, C, C), of classes hidden and of controls; summed shares hidden and images (C,)."""
    classes = logits.shape[1]
    wanted = labels.masked_fill(labels == ignore_index, 0)[:, None]
    before = torch.cat([passes.upsampling(part).gather(1, own) for part, own in zip(logits.split(1), wanted.split(1))])
    sums = torch.zeros(2, classes, classes, dtype=torch.float64)
    counts = torch.zeros(2, classes, classes, dtype=torch.int64)
    shares, images = torch.zeros(classes, dtype=torch.float64), torch.zeros(classes, dtype=torch.int64)
    for part, grid in passes.hiding(jobs):
        place = [job.image for job in part]
        after = passes.upsampling(grid.to(logits.device)).gather(1, wanted[place])
        losses = (before[place] - after)[:, 0].cpu().double()
        for job, loss, shown in zip(part, losses, labels[place].cpu()):
            visible = (shown != ignore_index) & ~job.mask
            sums[int(job.control), :, job.number] += torch.bincount(shown[visible], loss[visible], minlength=classes)
            counts[int(job.control), :, job.number] += torch.bincount(shown[visible], minlength=classes)
            if not job.control:
                shares[job.number] += job.mask.double().mean()
                images[job.number] += 1
    return sums, counts, shares, images


def _jobs(
    units: Patches | Segments, labels: Tensor, classes: int, ignore_index: int, least: float, controls: int, seed: int
) -> Iterator[Job]:
    """What to hide: per image and class in it the units of the class, then as many pixels at random places."""
    generator = torch.Generator().manual_seed(seed)
    for label in range(classes):
        if label == ignore_index:
            continue
        shares = units.share(labels == label)
        for image in range(len(labels)):
            chosen = (shares[image] > least).nonzero().flatten().tolist()
            if not chosen:
                continue
            hidden = torch.zeros(units.image, dtype=torch.bool)
            for unit in chosen:
                hidden |= units.mask(image, unit).cpu()
            yield Job(image, hidden, label)
            for _ in range(controls):
                yield Job(image, _at_random(units, image, int(hidden.sum()), generator), label, control=True)


def _at_random(units: Patches | Segments, image: int, area: int, generator: torch.Generator) -> Tensor:
    """Exactly `area` pixels (H, W): units in random order, of the last one only its first pixels row by row."""
    present = units.present(image)
    hidden = torch.zeros(units.image, dtype=torch.bool)
    for place in torch.randperm(len(present), generator=generator).tolist():
        more = units.mask(image, present[place]).cpu() & ~hidden
        new = more.flatten().nonzero().flatten()[: area - int(hidden.sum())]
        hidden.view(-1)[new] = True
        if int(hidden.sum()) == area:
            break
    return hidden
