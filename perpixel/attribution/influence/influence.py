"""What every patch of an image does to every class logit of every pixel, from one forward pass per patch."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.influence.passes import INPAINT, Passes, batches, first_pass
from perpixel.attribution.influence.patches import Patches, Segments, connected_segments, segments_of, slide
from perpixel.attribution.influence.result import Influence
from perpixel.attribution.influence.storage import allocate
from perpixel.attribution.influence.upsampling import size_of
from perpixel.attribution.inputs import check_images
from perpixel.borrow import unwrap
from perpixel.checks import check_finite, check_flag, check_integer, check_option, complain

MODES = ("patches", "segments")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BATCH = {"cpu": 8}  # images a pass by kind of device: measured on the CPU, where caches are the limit
BATCH_ELSEWHERE = 32


def influence(
    model: nn.Module,
    images: Tensor,
    *,
    patch: int | tuple[int, int] = 32,
    stride: int | tuple[int, int] | None = None,
    baselines: Baselines = None,
    batch_size: int | None = None,
    by: str = "patches",
    segments: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory_cap: int = 2**31,
    storage: str | Path | None = None,
    show_progress: bool = False,
) -> Influence:
    """Hide one patch after the other: by how much does each lower every class logit of every pixel?

    values[n, i, c, y, x] = g[n, c, y, x] − g_i[n, c, y, x], where g are the logits on the grid on which the model
    computes them and g_i those with patch i hidden: positive where the patch speaks for the class. The model upsamples
    linearly, so the effect on full-size logits, and on their sum over any region, follows exactly, without a pass.

    model: a network with dense output (N, C, ...), run in evaluation mode, without gradients, and left as it was.
    images: float (N, channels, H, W).
    patch, stride: pixels, an int or (height, width); stride None: the patch. The last of a row or column reaches to the
        border and is cut there, as in captum's Occlusion.
    baselines: what is put in place: None or "zero", "mean", "blur", "inpaint" (from around the patch), a number, a
        tensor that broadcasts to the images, a callable on them.
    batch_size: images per forward pass; None: 8 on a CPU, else 32.
    by: "patches", or "segments": what has one number in `segments`, int (N, H, W), is hidden together, negative ones
        never: superpixels, or `connected_segments(labels)`; None: the connected regions of the prediction.
    dtype, device: of what is kept; None: float32 (float64 where the logits are), on the images' device.
    memory_cap: bytes; more than that is kept in a memory-mapped file in the folder `storage` (None: that for temporary
        files), on the CPU. The file goes with the result.

    Passes: one per patch and one per image as it is; up to two more of the first batch where the grid is not what goes
    into the first upsampling to the images' size. Where the output is no result of `F.interpolate`, the grid is the
    output itself, and the values need that much more room.
    On the CPU, large batches run channels-last through networks with depthwise convolutions: faster, and the same up to
    the last bits.
    TypeError or ValueError for arguments that are not fit, no dense output, and NaN in the logits, naming image and
    patch; OSError where the disk is full.
    After captum's Occlusion (Zeiler and Fergus, arXiv 1311.2901), for all targets at once.
    """
    images = _checked(model, images, by, segments, dtype, show_progress)
    memory_cap = check_integer("memory_cap", memory_cap, low=0)
    patches = slide(size_of(images), patch, stride) if by == "patches" else None
    substitute = None if isinstance(baselines, str) and baselines == INPAINT else baseline_images(baselines, images)
    default = BATCH.get(images.device.type, BATCH_ELSEWHERE)
    batch = default if batch_size is None else check_integer("batch_size", batch_size, low=1)

    passes, logits = first_pass(unwrap(model), images, substitute, batch)
    check_finite("logits", logits, torch.ones_like(logits[:, 0], dtype=torch.bool))
    logits = logits if logits.dtype == torch.float64 else logits.float()
    units = patches or _segments(segments, passes, logits)
    dtype = dtype or logits.dtype
    place = torch.device(device) if device is not None else images.device
    with passes.running():
        shape = (len(images), units.count, *logits.shape[1:])
        values, file = allocate(shape, dtype, place, memory_cap, storage)
        _measure(passes, units, logits, values, show_progress)
    return Influence(values, logits.to(values.device), units, passes, file)


def _checked(
    model: object, images: Tensor, by: str, segments: object, dtype: torch.dtype | None, show_progress: bool
) -> Tensor:
    """The images, detached, if these arguments are fit."""
    if not isinstance(model, nn.Module):
        raise TypeError(complain("model", "a torch.nn.Module", model, "Pass the network itself."))
    check_option("by", by, MODES)
    check_flag("show_progress", show_progress)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(complain("dtype", f"None or one of {DTYPES}", repr(dtype), "Choose one of these."))
    if by == "patches" and segments is not None:
        raise ValueError(complain("segments", "None for by='patches'", segments, "Pass by='segments'."))
    return check_images(images)


def _segments(segments: Tensor | None, passes: Passes, logits: Tensor) -> Segments:
    if segments is None:
        full = passes.upsampling(logits)
        segments = connected_segments(full.argmax(1) if full.shape[1] > 1 else (full[:, 0] <= 0).long())
    return segments_of(segments, len(passes.images), size_of(passes.images))


def _measure(passes: Passes, units: Patches | Segments, logits: Tensor, values: Tensor, show_progress: bool) -> None:
    """Fill `values` (N, units, C, h, w); NaN where an image has no such unit."""
    jobs = [(image, unit) for image in range(len(logits)) for unit in units.present(image)]
    whole = len(jobs) == len(values) * units.count
    flat = values.view(-1, *values.shape[2:])
    if not whole:
        values.fill_(torch.nan)
    total = torch.zeros((), dtype=torch.float32, device=logits.device)  # no number once a summand is none
    steps: Any = passes.hiding(units, jobs)
    if show_progress:
        from tqdm import tqdm  # type: ignore[import-untyped]

        steps = tqdm(steps, total=batches(len(jobs), passes.batch), desc="influence", unit="batch")
    for part, hidden in steps:
        images = [image for image, _ in jobs[part]]
        rows = [image * units.count + unit for image, unit in jobs[part]]
        before = logits[images[0]] if images[0] == images[-1] else logits[images]
        if values.device == logits.device and rows[-1] - rows[0] == len(rows) - 1:
            kept = torch.sub(before, hidden, out=flat[rows[0] : rows[-1] + 1])
        else:
            kept = (before - hidden).to(values.dtype)
            flat[rows] = kept.to(values.device)
        total += kept.sum(dtype=torch.float32)
    if not bool(torch.isfinite(total)):
        _complain_not_finite(values, jobs)


def _complain_not_finite(values: Tensor, jobs: list[tuple[int, int]]) -> None:
    for image, unit in jobs:
        if not bool(torch.isfinite(values[image, unit]).all()):
            came = f"NaN or infinity in image {image} with patch {unit} hidden"
            remedy = "Choose other baselines; with dtype=torch.float16, a wider one."
            raise ValueError(complain("logits", f"finite values, in {values.dtype}", came, remedy))
