"""What every patch of an image does to every class logit of every pixel, from one forward pass per patch."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from perpixel.attribution.baselines import Baselines, baseline_images
from perpixel.attribution.influence.passes import INPAINT, Job, Passes, first_pass, running
from perpixel.attribution.influence.patches import Patches, Segments, connected_segments, segments_of, slide
from perpixel.attribution.influence.result import Influence
from perpixel.attribution.influence.storage import Storage
from perpixel.attribution.influence.upsampling import size_of
from perpixel.attribution.inputs import check_images, check_model
from perpixel.attribution.progress import progress
from perpixel.borrow import Caller, called, unwrap
from perpixel.checks import check_finite, check_flag, check_integer, check_option, complain
from perpixel.outputs import predicted_labels

MODES = ("patches", "segments")
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
    call: Caller | None = None,
) -> Influence:
    """Hide one patch after the other: by how much does each lower every class logit of every pixel?

    values[n, i, c, y, x] = g[n, c, y, x] − g_i[n, c, y, x], where g are the logits on the grid on which the model
    computes them and g_i those with patch i hidden: positive where the patch speaks for the class. The model upsamples
    linearly, so the effect on full-size logits, and on their sum over any region, follows exactly, without a pass.

    model: a network with dense output (N, C, ...), run in evaluation mode, without gradients, and left as it was. One
        channel z gives both classes' values, those of the logits -z/2 (background, label 0) and z/2 (label 1).
    images: float (N, channels, H, W).
    patch, stride: pixels, an int or (height, width); stride None: the patch. The last of a row or column reaches to the
        border and is cut there, as in captum's Occlusion.
    baselines: what is put in place: None or "zero", "mean", "blur", "inpaint" (from around the patch), a number, a
        tensor that broadcasts to the images, a callable on them.
    batch_size: images per forward pass; None: 8 on a CPU, else 32.
    by: "patches", or "segments": what has one number in `segments`, int (N, H, W), is hidden together, negative ones
        never: superpixels, or `connected_segments(labels)`; None: the connected regions of the prediction.
    dtype, device: of what is kept; None: float32 (float64 where the logits are), on the images' device.
    call: (model, images) -> output, for a model that wants more than the images; None: model(images).
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
    model, images = called(unwrap(check_model(model)), call), check_images(images)
    keep = Storage(dtype, device, memory_cap, storage)
    check_option("by", by, MODES)
    check_flag("show_progress", show_progress)
    if by == "patches" and segments is not None:
        raise ValueError(complain("segments", "None for by='patches'", segments, "Pass by='segments'."))
    patches = slide(size_of(images), patch, stride) if by == "patches" else None
    substitute = None if isinstance(baselines, str) and baselines == INPAINT else baseline_images(baselines, images)
    default = BATCH.get(images.device.type, BATCH_ELSEWHERE)
    batch = default if batch_size is None else check_integer("batch_size", batch_size, low=1)

    with running(model, images.device):
        passes, logits = first_pass(model, images, substitute, batch)
        check_finite("logits", logits, torch.ones_like(logits[:, 0], dtype=torch.bool))
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if segments is None and patches is None:
            segments = connected_segments(predicted_labels(passes.upsampling(logits)))
        units = patches or segments_of(segments, len(images), size_of(images))
        values, file = keep.allocate((len(images), units.count, *logits.shape[1:]), logits)
        _measure(passes, units, logits, values, show_progress)
    return Influence(values, logits.to(values.device), units, passes, file)


def _measure(passes: Passes, units: Patches | Segments, logits: Tensor, values: Tensor, show_progress: bool) -> None:
    """Fill `values` (N, units, C, h, w); NaN where an image has no such unit."""
    places = [(image, unit) for image in range(len(logits)) for unit in units.present(image)]
    flat = values.view(-1, *values.shape[2:])
    if len(places) < len(flat):
        values.fill_(torch.nan)
    total = torch.zeros((), dtype=torch.float32, device=logits.device)  # no number once a summand is none
    steps = passes.hiding(Job(image, units.mask(image, unit), unit) for image, unit in places)
    batches = math.ceil(len(places) / passes.batch)
    for part, hidden in progress(steps, show_progress, "influence", total=batches):
        kept = (logits[[job.image for job in part]] - hidden).to(values.dtype)
        flat[[job.image * units.count + job.number for job in part]] = kept.to(values.device)
        total += kept.sum(dtype=torch.float32)
    if bool(torch.isfinite(total)):
        return
    for image, unit in places:
        if not bool(torch.isfinite(values[image, unit]).all()):
            came = f"NaN or infinity in image {image} with patch {unit} hidden"
            remedy = "Choose other baselines; with dtype=torch.float16, a wider one."
            raise ValueError(complain("logits", f"finite values, in {values.dtype}", came, remedy))
