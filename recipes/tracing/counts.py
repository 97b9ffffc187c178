"""How many of a unit's inputs hold how much of its activation, layer by layer (counts.csv)."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from perpixel.evaluation import bootstrap_images
from perpixel.report import count_chart
from recipes.kit.images import EvaluationBatch
from recipes.kit.run_folder import save_figure
from recipes.kit.summary import Section
from recipes.kit.tables import Row, markdown_table, save_csv
from recipes.tracing.network import TracedNetwork
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.settings import FixationMeasureSettings

# what is ranked, single contributions or channels summed over the kernel; shares of what: of the sum of all
# contributions (as `Share`), or of the positive ones
RANKED = {"element": "single contributions", "channel": "channels"}
WHOLES = {"activation": "of the activation", "positive": "of the positive contributions"}
QUARTILES = ("inputs_needed_q25", "inputs_needed_median", "inputs_needed_q75")
MEDIAN = QUARTILES[1]
SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
Units = tuple[Tensor, Tensor, Tensor, Tensor]  # image, channel, y, x, each (U,)


def report_counts(run: FixationRun, network: TracedNetwork) -> Report:
    """Measure and tell: counts.csv, counts.png."""
    measure, seed = run.settings.measure, run.settings.seed
    indices = run.indices[:: -(-len(run.indices) // measure.unit_images)]
    batches = run.batches("counts", indices)
    measured = run.measured("counts", partial(measure_counts, network, batches, measure, seed))
    rows = count_rows(measured, measure)
    save_csv(run.folder / "counts.csv", rows)
    pictures = {}
    if (figure := _chart(rows, f"{run.subject}: inputs that hold a unit")) is not None:
        save_figure(run.folder / "counts.png", figure)
        pictures["counts.png"] = "layer by layer, the number of inputs that hold 10, 50 and 90 %"
    section = Section("How many inputs hold the activation of a unit?", count_lines(rows), pictures=pictures)
    files = {"counts.csv": "a row per layer, what is ranked, share of what, and percent: the inputs needed"}
    return Report([section], {"rows": rows}, files=files)


def contributions(conv: nn.Conv2d, x: Tensor, units: Units) -> Tensor:
    """weight × input of every input of the units, float64 (U, channels of the group, taps): with the bias, they add up
    to the unit. Inputs in zero padding give 0."""
    image, channel, y, x_out = units
    (high, wide), spread, device = conv.kernel_size, conv.dilation, x.device
    before = [d * (k - 1) // 2 for k, d in zip(conv.kernel_size, spread)]
    if conv.padding != "same":
        before = [0, 0] if conv.padding == "valid" else [int(p) for p in conv.padding]
    after = [d * (k - 1) - b if conv.padding == "same" else b for k, d, b in zip(conv.kernel_size, spread, before)]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(x, (before[1], after[1], before[0], after[0]), mode=mode)
    per_group = conv.in_channels // conv.groups
    first = channel // (conv.out_channels // conv.groups) * per_group
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
        self.layers: dict[str, dict[str, list[Tensor]]] = {}
        self.inputs: dict[str, int] = {}

    def __call__(self, conv: nn.Conv2d, args: tuple[Tensor, ...], out: Tensor) -> None:
        if out.shape[2:].numel() == 1:  # a gate or a global pooling's: points do not stay on maps there
            return
        name = self.names[conv]
        kept = self.layers.setdefault(name, {"image": [], **{f"{by}/{of}": [] for by in RANKED for of in WHOLES}})
        for n in range(len(out)):
            units, value = self._sample(conv, out[n], n)
            given = contributions(conv, args[0].detach(), units)
            total, size = given.sum((1, 2)), given.abs().sum((1, 2)).clamp(min=1e-12)
            if bool(((total - value.double()).abs() / size > 1e-3).any()):
                raise RuntimeError(f"{name}: the contributions found do not add up to the units; please report this")
            given = given[total > 1e-6 * size]  # what rounding alone can make positive has no largest part
            self.inputs[name] = given.shape[1] * given.shape[2]
            for by, ranked in zip(RANKED, (given.flatten(1), given.sum(2))):
                for of in WHOLES:
                    kept[f"{by}/{of}"].append(smallest_counts(ranked, SHARES, of).cpu())
            kept["image"].append(torch.full((len(given),), self.first + n))

    def _sample(self, conv: nn.Conv2d, out: Tensor, image: int) -> tuple[Units, Tensor]:
        """Units of one image (C, H, W) with a positive value, and that value: without bias."""
        draws = torch.randint(out.numel(), (8 * self.units,), generator=self.generator).to(out.device)
        channel, y, x = torch.unravel_index(draws, out.shape)
        value = out.flatten()[draws]
        value = value if conv.bias is None else value - conv.bias.detach()[channel]
        pick = (value > 0).nonzero().flatten()[: self.units]
        return (torch.full_like(pick, image), channel[pick], y[pick], x[pick]), value[pick]


@torch.no_grad()
def measure_counts(
    network: TracedNetwork,
    batches: Iterable[EvaluationBatch],
    settings: FixationMeasureSettings,
    seed: int,
) -> dict[str, Any]:
    """Per convolution, in the order they run: counts (U, 9) by what is ranked and of which whole; each unit's image."""
    counter = _Counter(network.network, settings.units, seed)
    handles = [module.register_forward_hook(counter) for module in counter.names]
    try:
        for index, images, _, _ in batches:
            network.predict(images)
            counter.first += len(index)
    finally:
        for handle in handles:
            handle.remove()
    layers = {name: {key: torch.cat(v) for key, v in kept.items()} for name, kept in counter.layers.items()}
    return {"layers": layers, "inputs": counter.inputs, "images": counter.first}


def _median(values: Tensor, image: Tensor, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """The median of values (U,) whose image counts weights (R, images) times: the lower of two middle ones."""
    order = values.argsort()
    held = np.cumsum(weights[:, image[order].numpy()], axis=1)
    middle = (held >= held[:, -1:] / 2).argmax(1)
    return np.where(held[:, -1] > 0, values[order].double().numpy()[middle], np.nan)


def count_rows(measured: dict[str, Any], settings: FixationMeasureSettings) -> list[dict[str, Any]]:
    """counts.csv: a row per layer, ranking, whole and share: quartiles of K; for one half also an interval."""
    rows = []
    images, quarters = measured["images"], torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    for name, layer in measured["layers"].items():
        for select, of in ((select, of) for select in RANKED for of in WHOLES):
            counts, image = layer[f"{select}/{of}"].double(), layer["image"]
            for column, share in enumerate(SHARES if len(counts) else ()):
                values, low, high = counts[:, column], np.nan, np.nan
                if share == 0.5 and images > 1:
                    statistic, draws = partial(_median, values, image), min(settings.resamples, 999)
                    interval = bootstrap_images(statistic, images, level=settings.level, resamples=draws)
                    low, high = interval.low, interval.high
                row = {"layer": name, "ranked": select, "percent_of": of, "inputs": measured["inputs"][name]}
                row |= {"percent": round(100 * share)}
                row |= dict(zip(QUARTILES, torch.quantile(values, quarters).tolist()))
                rows.append(
                    row | {"units": len(values), "images": images, f"{MEDIAN}_low": low, f"{MEDIAN}_high": high}
                )
    return rows


def count_lines(rows: Sequence[Row]) -> list[str]:
    """Table and sentences."""
    if not rows:
        return ["- No unit with a positive sum of contributions was found."]
    body = []
    for of, share in ((of, share) for of in WHOLES for share in (10, 50, 90)):
        some = [r for r in rows if (r["ranked"], r["percent_of"], r["percent"]) == ("element", of, share)]
        medians, largest = sorted(r[MEDIAN] for r in some), max(some, key=lambda r: r[MEDIAN])
        typical = medians[len(medians) // 2]
        which = f"{largest['layer']} ({largest['inputs']} inputs)"
        body.append([f"{share} % {WHOLES[of]}", f"{typical:.1f}", f"{largest[MEDIAN]:.1f}", which])
    head = ("single contributions that hold", "K, median of the layers", "largest layer", "which")
    units, images = rows[0]["units"], rows[0]["images"]
    half = [r for r in rows if (r["ranked"], r["percent_of"], r["percent"]) == ("element", "activation", 50)]
    most = max(r[f"{MEDIAN}_high"] - r[f"{MEDIAN}_low"] for r in half) if images > 1 else float("nan")
    return [
        *markdown_table(head, body),
        "",
        f"- K of a layer is the median over up to {units} units of {images} images whose inputs give a positive sum; "
        f"all quartiles are in counts.csv. The interval of a layer's median for 50 % is at most {most:g} wide.",
        "- *Of the activation* counts as `perpixel.fixations.Share` does: the sum over all inputs without the bias, in "
        "which negative contributions cancel positive ones. *Of the positive contributions* leaves the negative ones "
        "out. Which of the two is meant decides whether half an activation looks cheap.",
        "- The units are a random sample of those with a positive sum, not those that fixations pass.",
    ]


def _chart(rows: Sequence[Row], title: str) -> Any:
    """K for 10, 50 and 90 % over the layers, by what is ranked and of which whole; None without a layer."""
    found = {
        (r["ranked"], r["percent_of"], r["percent"], r["layer"]): tuple(r[QUARTILES[i]] for i in (1, 0, 2))
        for r in rows
    }
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    panels = {
        f"{RANKED[by]}, share {WHOLES[of]}": {
            f"{share} %": [found[by, of, share, layer] for layer in layers] for share in (10, 50, 90)
        }
        for by in RANKED
        for of in WHOLES
    }
    return count_chart(layers, panels, title=title) if layers else None
