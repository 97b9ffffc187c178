"""How many of a unit's inputs hold how much of its activation, layer by layer."""

from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.evaluation import bootstrap_images
from recipes.kit.images import EvaluationBatch
from recipes.tracing.settings import MeasureSettings
from recipes.tracing.subject import Subject

WAYS = ("element", "channel")  # what is ranked: single contributions, or channels summed over the kernel
WHOLES = ("activation", "positive")  # shares of the sum of all contributions (as Share), or of the positive ones
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Row = dict[str, Any]
Measured = dict[str, Any]
Units = tuple[Tensor, Tensor, Tensor, Tensor]  # image, channel, y, x, each (U,)


def contributions(conv: nn.Conv2d, x: Tensor, units: Units) -> Tensor:
    """weight × input of every input of the units, float64 (U, channels of the group, taps): with the bias, they add up
    to the unit. Inputs in zero padding give 0."""
    image, channel, y, x_out = units
    (high, wide), spread = conv.kernel_size, conv.dilation
    before = [d * (k - 1) // 2 for k, d in zip(conv.kernel_size, spread)]
    if conv.padding != "same":
        before = [0, 0] if conv.padding == "valid" else [int(p) for p in conv.padding]
    after = [d * (k - 1) - b if conv.padding == "same" else b for k, d, b in zip(conv.kernel_size, spread, before)]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, (before[1], after[1], before[0], after[0]), mode=mode)
    per_group = conv.in_channels // conv.groups
    first = channel // (conv.out_channels // conv.groups) * per_group
    device = x.device
    rows = (y * conv.stride[0])[:, None] + torch.arange(high, device=device) * spread[0]
    columns = (x_out * conv.stride[1])[:, None] + torch.arange(wide, device=device) * spread[1]
    channels = first[:, None] + torch.arange(per_group, device=device)
    inputs = padded[
        image[:, None, None, None], channels[:, :, None, None], rows[:, None, :, None], columns[:, None, None]
    ]
    return (inputs.double() * conv.weight.detach()[channel].double()).flatten(2)


def smallest_counts(given: Tensor, shares: Iterable[float], whole: str = "activation") -> Tensor:
    """The fewest of the largest contributions (U, I) that give each share of the whole, int64 (U, shares).

    whole: "activation", the sum of all of them, as in `perpixel.fixations.Share`; it must be positive. "positive", the
    sum of the positive ones.
    """
    if whole == "positive":
        given = given.clamp(min=0)
    ranked = given.sort(dim=1, descending=True).values
    before = ranked.cumsum(1) - ranked
    total = ranked.sum(1, keepdim=True)
    return torch.stack([(before < share * total).sum(1) for share in shares], 1)


class _Counter:
    """Forward hook on every convolution: counts on a sample of the units whose inputs give a positive sum."""

    def __init__(self, network: nn.Module, units: int, seed: int) -> None:
        self.units, self.generator = units, torch.Generator().manual_seed(seed)
        self.names = {m: n for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
        self.first = 0  # number of the batch's first image
        self.found: dict[str, dict[str, list[Tensor]]] = {}
        self.inputs: dict[str, int] = {}

    def __call__(self, conv: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        if out.shape[2:].numel() == 1:  # a gate or a global pooling's: points do not stay on maps there
            return
        name, device = self.names[conv], out.device
        kept = self.found.setdefault(name, {"image": [], **{f"{by}/{of}": [] for by in WAYS for of in WHOLES}})
        for n in range(len(out)):
            draws = torch.randint(out[n].numel(), (8 * self.units,), generator=self.generator).to(device)
            value = out[n].flatten()[draws]
            channel, y, x = torch.unravel_index(draws, out.shape[1:])
            plain = value if conv.bias is None else value - conv.bias.detach()[channel]
            pick = (plain > 0).nonzero().flatten()[: self.units]
            units = (torch.full_like(pick, n), channel[pick], y[pick], x[pick])
            all_of_it = contributions(conv, args[0].detach(), units)
            total = all_of_it.sum((1, 2))
            size = all_of_it.abs().sum((1, 2)).clamp(min=1e-12)
            if bool(((total - plain[pick].double()).abs() / size > 1e-3).any()):
                raise RuntimeError(f"{name}: the contributions found do not add up to the units; please report this")
            sure = total > 1e-6 * size  # what rounding alone can make positive has no largest part
            self.inputs[name] = all_of_it.shape[1] * all_of_it.shape[2]
            for by, given in zip(WAYS, (all_of_it[sure].flatten(1), all_of_it[sure].sum(2))):
                for of in WHOLES:
                    kept[f"{by}/{of}"].append(smallest_counts(given, SHARES, of).cpu())
            kept["image"].append(torch.full((int(sure.sum()),), self.first + n))


@torch.no_grad()
def measure_counts(
    subject: Subject, batches: Iterable[EvaluationBatch], settings: MeasureSettings, seed: int, told: Any = None
) -> Measured:
    """Per convolution, in the order they run: counts (U, 9) by what is ranked and of which whole; each unit's image."""
    counter = _Counter(subject.network, settings.units, seed)
    handles = [module.register_forward_hook(counter) for module in counter.names]
    try:
        for index, images, _, _ in batches:
            subject.predict(images)
            counter.first += len(index)
            if told is not None:
                told(len(index))
    finally:
        for handle in handles:
            handle.remove()
    layers = {name: {key: torch.cat(v) for key, v in kept.items()} for name, kept in counter.found.items()}
    return {"layers": layers, "inputs": counter.inputs, "images": counter.first}


def _median(values: Tensor, image: Tensor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of values (U,) whose image counts weights (R, images) times: the lower of two middle ones."""
    order = values.argsort()
    held = np.cumsum(weights[:, image[order].numpy()], axis=1)
    middle = (held >= held[:, -1:] / 2).argmax(1)
    return np.where(held[:, -1] > 0, values[order].double().numpy()[middle], np.nan)


def count_rows(measured: Measured, settings: MeasureSettings) -> list[Row]:
    """counts.csv: a row per layer, way of ranking, whole and share: quartiles of K; for one half also an interval."""
    rows: list[Row] = []
    images = measured["images"]
    for name, found in measured["layers"].items():
        for select, of in ((select, of) for select in WAYS for of in WHOLES):
            counts, image = found[f"{select}/{of}"], found["image"]
            for column, share in enumerate(SHARES if len(counts) else ()):
                values = counts[:, column].double()
                quartiles = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
                row: Row = {"layer": name, "select": select, "of": of, "inputs": measured["inputs"][name]}
                row |= {"share": round(100 * share), **dict(zip(("q25", "median", "q75"), quartiles))}
                row |= {"units": len(values), "images": images, "median_low": float("nan"), "median_high": float("nan")}
                if share == 0.5 and images > 1:
                    interval = bootstrap_images(
                        partial(_median, values, image),
                        images,
                        level=settings.level,
                        resamples=min(settings.resamples, 999),
                    )
                    row |= {"median_low": interval.low, "median_high": interval.high}
                rows.append(row)
    return rows
