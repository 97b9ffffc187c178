"""What the template-similarity loss costs, forward and backward, as ratios to the usual cross-entropy in the same run.

    python -m benchmarks.bench_losses [--device cuda] [--quick] [--json FILE]

The usual cross-entropy brings the logits to eight times the grid (bilinear) and calls F.cross_entropy. Below 1 is
cheaper than it. Peers: smp's Dice, focal and Lovász losses on the same upsampled logits, a pixel-contrast loss, the
same similarity vectorised with plain autograd, and the thesis' algorithm as a loop over the classes.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.peers import per_class_loop, pixel_contrast, vectorised_autograd
from benchmarks.timing import interleaved_medians, median_seconds, metadata, peak_extra_bytes
from perpixel import TemplateSimilarityLoss, attach, template_similarity_loss

CASES = {"N=4 D=256 65×65": (4, 256, 65, 21), "N=8 D=1024 41×41": (8, 1024, 41, 21)}
TARGETS = {"N=4 D=256 65×65": (0.15, 50), "N=8 D=1024 41×41": (0.5, 150)}
OURS: dict[str, dict] = {
    "perpixel cosine": {},
    "perpixel correlation": {"similarity": "correlation"},
    "perpixel selective cosine": {"selective": True},
    "perpixel mean templates": {"template": "mean"},
    "perpixel contrast": {"objective": "contrast"},
}


def smp_losses() -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    try:
        from segmentation_models_pytorch import losses
    except ImportError:
        return {}
    return {
        "smp Dice": losses.DiceLoss("multiclass", ignore_index=255),
        "smp focal": losses.FocalLoss("multiclass", ignore_index=255),
        "smp Lovász": losses.LovaszLoss("multiclass", ignore_index=255),
    }


def blobs(n: int, classes: int, size: int) -> Tensor:
    """Label maps with connected regions, a void border, and most classes present."""
    seeds = torch.randint(0, classes, (n, 1, 8, 8)).float()
    labels = F.interpolate(seeds, size=(size, size), mode="nearest")[:, 0].long()
    labels[:, :8] = 255
    return labels


def bench(case: str, device: torch.device, quick: bool) -> dict[str, float]:
    n, d, side, classes = CASES[case]
    torch.manual_seed(0)
    features = torch.randn(n, d, side, side, device=device, requires_grad=True)
    logits = torch.randn(n, classes, side, side, device=device, requires_grad=True)
    labels = blobs(n, classes, 8 * side).to(device)

    def step(loss: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            features.grad = logits.grad = None
            loss().backward()

        return run

    def upsampled() -> Tensor:
        return F.interpolate(logits, size=labels.shape[1:], mode="bilinear", align_corners=False)

    runs = {"cross-entropy": step(lambda: F.cross_entropy(upsampled(), labels, ignore_index=255))}
    for name, options in OURS.items():
        runs[name] = step(lambda options=options: template_similarity_loss(features, logits, labels, **options))
    runs["plain autograd"] = step(lambda: vectorised_autograd(features, logits, labels))
    runs["pixel contrast"] = step(lambda: pixel_contrast(features, logits, labels))
    slow = {name: step(lambda loss=loss: loss(upsampled(), labels)) for name, loss in smp_losses().items()}
    seconds = interleaved_medians(runs, device, repeats=3 if quick else 11)
    base = seconds["cross-entropy"]
    if not quick:
        seconds |= {name: median_seconds(run, device, repeats=3, warm_up=1) for name, run in slow.items()}
    loop = {"ours": runs["perpixel cosine"], "loop": step(lambda: per_class_loop(features, logits, labels))}
    beside = interleaved_medians(loop, device, repeats=1 if quick else 3)
    seconds["per-class loop"] = beside["loop"]
    extra = {}
    for name, options in OURS.items():
        features.grad = None
        extra[name] = peak_extra_bytes(
            lambda o=options: template_similarity_loss(features, logits, labels, **o).backward(), device
        )
    limit, faster = TARGETS[case]
    print(f"\n{case}, {classes} classes; cross-entropy at {8 * side}×{8 * side}: {1e3 * base:.1f} ms")
    print(f"{'forward + backward':28s}{'ms':>10s}{'× cross-entropy':>17s}{'extra memory / features':>26s}")
    for name, value in seconds.items():
        memory = f"{extra[name] / features.nbytes:26.2f}" if name in extra else ""
        print(f"{name:28s}{1e3 * value:10.1f}{value / base:17.3f}{memory}")
    ratio, speedup = seconds["perpixel cosine"] / base, beside["loop"] / beside["ours"]
    print(f"target ≤ {limit} × cross-entropy: {ratio:.3f};  ≥ {faster} × faster than the loop: {speedup:.0f} ×")
    return {name: value / base for name, value in seconds.items()}


def bench_training_step(device: torch.device, quick: bool) -> dict[str, float]:
    """Share of a deeplabv3_resnet50 training step, 8×513² bf16 on a GPU (2×129² on the CPU), that the term adds."""
    from torchvision.models.segmentation import deeplabv3_resnet50

    n, size = (8, 513) if device.type == "cuda" else (2, 129)
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21).to(device).train()
    images = torch.randn(n, 3, size, size, device=device)
    labels = blobs(n, 21, size).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(criterion: nn.Module) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        return run

    repeats, seconds = 3 if quick else 9, {}
    for name, terms in {"plain": [], "with the term": [TemplateSimilarityLoss(0.05)]}.items():
        with attach(model, *terms, head="classifier.4") as criterion:
            seconds[name] = median_seconds(step(criterion), device, repeats=repeats)
    share = seconds["with the term"] / seconds["plain"] - 1
    print(
        f"\ndeeplabv3_resnet50 training step, {n}×{size}²: {1e3 * seconds['plain']:.1f} ms; the term adds {share:+.1%}"
    )
    return {"share of a training step": share}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="few repeats, no slow peers")
    parser.add_argument("--json", type=Path, help="also write the ratios there")
    options = parser.parse_args()
    device = torch.device(options.device)
    about = metadata(device)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    results = {case: bench(case, device, options.quick) for case in CASES}
    results["training step"] = bench_training_step(device, options.quick)
    if options.json:
        options.json.write_text(json.dumps({"about": about, "ratios": results}, indent=1))


if __name__ == "__main__":
    main()
