"""What it costs to ask which patch does what to which pixel: all at once, or question by question with captum.

    python -m benchmarks.bench_attribution [--device cuda] [--quick] [--json FILE]

Random weights, one thread. "plain" are the forward passes of the same hidden patches, in the same batches, and nothing
else. "captum" is Occlusion on RegionTarget for one region, in batches of that size; its loop over the regions is taken
as that many times the one. "FeatureAblation" is captum's with a forward function that returns the scores of all regions
at once and a feature mask of the images' shape; "thin" has a mask of one channel, which captum broadcasts, and which is
the faster way to call it. Every ratio is of medians of runs in turn.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from captum.attr import FeatureAblation, Occlusion
from torch import Tensor, nn
from torch.nn import functional as F

import perpixel
from benchmarks.timing import median_seconds, metadata
from perpixel.models import small_fcn

CLASSES = 12
REGIONS = 100
TARGETS = {"influence / plain": 1.05, "influence / captum": 1.0, "captum loop / ours": 100.0, "ablation / ours": 1.7}


class UNet(nn.Module):
    """Two levels; the output is made at full size, so there is no smaller grid to keep."""

    def __init__(self, classes: int, width: int = 16) -> None:
        super().__init__()
        self.top = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU())
        self.low = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), nn.Conv2d(2 * width, width, 3, 1, 1))
        self.out = nn.Conv2d(2 * width, classes, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        top = self.top(images)
        return self.out(torch.cat([top, F.interpolate(self.low(top), size=top.shape[-2:])], 1))


@dataclass(frozen=True)
class Case:
    """A network, and images (count, 3, height, width) under patches."""

    network: str
    count: int
    size: tuple[int, int]
    patch: int
    stride: int | None = None
    batch: int = 8
    repeats: int = 5
    regions: int = REGIONS

    def __str__(self) -> str:
        stride = "" if self.stride is None else f" every {self.stride}"
        return f"{self.network}, {self.count}x{self.size[0]}x{self.size[1]}, patch {self.patch}{stride}"

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        if self.network == "unet":
            return UNet(CLASSES).eval()
        if self.network == "small_fcn":
            return small_fcn(CLASSES).eval()
        from torchvision.models import segmentation

        build = getattr(segmentation, self.network)
        network = build(weights=None, weights_backbone=None, num_classes=CLASSES)
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = None
        with torch.no_grad():  # statistics for the batch norms, or the signal dies on its way and no patch matters
            network.train()(torch.randn(4, 3, 96, 96))
        return network.eval()


MOBILE, LRASPP = "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large"
FULL = (
    Case(MOBILE, 1, (240, 320), 32, repeats=3),
    Case(LRASPP, 1, (240, 320), 32, repeats=3),
    Case(LRASPP, 1, (96, 128), 16),
    Case("small_fcn", 4, (96, 96), 16),
    Case("small_fcn", 1, (48, 48), 16, repeats=15),
    Case("small_fcn", 1, (48, 48), 24, repeats=15),
    Case("unet", 1, (96, 128), 16),
)
QUICK = (
    Case(LRASPP, 1, (96, 128), 16, repeats=3),
    Case("small_fcn", 1, (48, 48), 16, repeats=5),
    Case("unet", 1, (64, 64), 16, repeats=3),
)


def questions(case: Case, device: torch.device) -> tuple[Tensor, Tensor]:
    """Labels (R,) and rectangular regions bool (R, H, W) at random places."""
    torch.manual_seed(2)
    height, width = case.size
    regions = torch.zeros(case.regions, height, width, dtype=torch.bool)
    for region in regions:
        h, w = (int(torch.randint(n // 8, n // 2, ())) for n in case.size)
        top, left = int(torch.randint(0, height - h, ())), int(torch.randint(0, width - w, ()))
        region[top : top + h, left : left + w] = True
    return torch.randint(0, CLASSES, (case.regions,)).to(device), regions.to(device)


def hidden_batches(case: Case, images: Tensor, boxes: list[list[int]]) -> list[Tensor]:
    """The images with each patch hidden by zeros, in batches, ready."""
    hidden = []
    for image in images:
        for top, left, bottom, right in boxes:
            changed = image.clone()
            changed[:, top:bottom, left:right] = 0
            hidden.append(changed)
    return list(torch.stack(hidden).split(case.batch))


def all_scores(model: nn.Module, labels: Tensor, regions: Tensor) -> Callable[[Tensor], Tensor]:
    """images -> the scores of all regions (N, R): one product of matrices per class."""
    order = labels.argsort()
    back, flat = order.argsort(), regions.flatten(1).float()
    groups = [(int(c), flat[labels == c].T.contiguous()) for c in labels.unique()]

    def forward(images: Tensor) -> Tensor:
        output = model(images)
        logits = (output["out"] if isinstance(output, dict) else output).flatten(2)
        return torch.cat([logits[:, c] @ group for c, group in groups], 1)[:, back]

    return forward


def patch_numbers(case: Case) -> Tensor:
    """captum's feature mask (1, 1, H, W) of patches side by side."""
    rows, columns = (torch.arange(n) // case.patch for n in case.size)
    return (rows[:, None] * (int(columns[-1]) + 1) + columns)[None, None]


def measure(case: Case, device: torch.device) -> dict[str, float]:
    model = case.model().to(device)
    torch.manual_seed(1)
    images = torch.randn(case.count, 3, *case.size, device=device)
    labels, regions = questions(case, device)
    settings = {"patch": case.patch, "stride": case.stride, "batch_size": case.batch}
    found = perpixel.influence(model, images, **settings)
    batches = hidden_batches(case, images, found.boxes.tolist())
    target = perpixel.RegionTarget(model, int(labels[0]), regions[0])
    occlusion, window = Occlusion(target), (3, case.patch, case.patch)
    strides = (3, *[case.stride or case.patch] * 2)
    per_pass = max(case.batch // case.count, 1)
    ablation = FeatureAblation(all_scores(model, labels, regions))
    numbers = patch_numbers(case).to(device)

    def plain() -> None:
        with torch.no_grad():
            for batch in batches:
                model(batch)

    def captum() -> Tensor:
        return occlusion.attribute(
            images, sliding_window_shapes=window, strides=strides, perturbations_per_eval=per_pass
        )

    def ablate(mask: Tensor) -> Tensor:
        return ablation.attribute(images, feature_mask=mask, perturbations_per_eval=per_pass)

    def ask(score: str) -> list[Tensor]:
        return [found.of(int(label), region, score) for label, region in zip(labels, regions)]

    runs: dict[str, Callable[[], object]] = {
        "plain": plain,
        "influence": lambda: perpixel.influence(model, images, **settings),
        "captum": captum,
        "ablation": lambda: ablate(numbers.expand(1, 3, -1, -1)),
        "thin": lambda: ablate(numbers),
        "questions": lambda: ask("logit"),
    }
    mine, theirs = found.of(int(labels[0]), regions[0], pixels=True), captum()[:, 0]
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(case.repeats):
        for name, run in runs.items():
            seconds[name].append(median_seconds(run, device, repeats=1, warm_up=0))
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    margin = median_seconds(lambda: found.of(int(labels[0]), regions[0], "margin"), device, repeats=3, warm_up=1)
    ours = medians["influence"] + medians["questions"]
    return {
        "patches": found.values.shape[0] * found.values.shape[1],
        "megabytes": found.values.numel() * found.values.element_size() / 1e6,
        "grid": found.values.shape[-2] * found.values.shape[-1] / (case.size[0] * case.size[1]),
        "plain_s": medians["plain"],
        "influence / plain": medians["influence"] / medians["plain"],
        "influence / captum": medians["influence"] / medians["captum"],
        "captum / plain": medians["captum"] / medians["plain"],
        "captum loop / ours": case.regions * medians["captum"] / ours,
        "ablation / ours": medians["ablation"] / ours,
        "thin ablation / ours": medians["thin"] / ours,
        "question_ms": 1e3 * medians["questions"] / case.regions,
        "margin_ms": 1e3 * margin,
        "difference": float((mine - theirs).abs().max() / theirs.abs().max()),
    }


def line(found: dict[str, float], judged: bool) -> str:
    parts = [f"{found['patches']:.0f} patches, plain {found['plain_s']:.2f} s"]
    for name, target in TARGETS.items():
        limit = f" (target {'<=' if 'plain' in name or name.endswith('captum') else '>='} {target:g})" if judged else ""
        parts.append(f"{name} {found[name]:.3g}{limit}")
    parts.append(f"thin ablation / ours {found['thin ablation / ours']:.3g}")
    parts.append(f"a question {found['question_ms']:.2f} ms, margin {found['margin_ms']:.0f} ms")
    parts.append(f"kept {found['megabytes']:.2f} MB, furthest from captum {found['difference']:.0e}")
    return "\n    ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small images and few repeats, under a minute")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    results: dict[str, object] = {"metadata": metadata(device)}
    print(results["metadata"])
    for number, case in enumerate(QUICK if arguments.quick else FULL):
        found = measure(case, device)
        results[str(case)] = found
        print(f"{case}\n    {line(found, judged=number == 0 and not arguments.quick)}", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
