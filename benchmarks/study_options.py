"""Which option, at which weight? Fine-tunes the small network on SyntheticEvidence with each, beside its control.

    python -m benchmarks.study_options --seeds 4 --out runs/options.json

For each seed: one cross-entropy pre-training, then from that same start, with the same batches and schedule, the
control (cross-entropy alone) and every variant. Printed: mIoU and far-body accuracy, the difference to the control
per seed and its mean. Far-body pixels lie more than a quarter of the shorter image side from their creature's head.
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path

import torch
from torch import Tensor, nn

import perpixel
from perpixel.data import SyntheticEvidence, evidence_distance
from perpixel.evaluation import confusion_matrices, mean_iou, predict_labels
from perpixel.models import small_fcn

VARIANTS: dict[str, dict] = {
    "control": {"weight": 0.0},
    "cosine 0.05": {"weight": 0.05},
    "cosine 0.01": {"weight": 0.01},
    "cosine 0.3": {"weight": 0.3},
    "correlation 0.05": {"weight": 0.05, "similarity": "correlation"},
    "selective cosine 0.05": {"weight": 0.05, "selective": True},
    "selective correlation 0.05": {"weight": 0.05, "selective": True, "similarity": "correlation"},
    "cosine, mean template 0.05": {"weight": 0.05, "template": "mean"},
    "cosine, running 0.05": {"weight": 0.05, "running_momentum": 0.9},
    "contrast, mean 0.05": {"weight": 0.05, "objective": "contrast", "template": "mean"},
}


def render(length: int, split: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and whether a pixel is a far-body pixel."""
    data = SyntheticEvidence(length, split=split, seed=seed)
    samples = [data[i] for i in range(length)]
    limit = min(samples[0].labels.shape) / 4
    far = []
    for sample in samples:
        distance = torch.as_tensor(evidence_distance(sample.instances, sample.evidence))
        far.append((distance > limit) & distance.isfinite())
    return torch.stack([s.image for s in samples]), torch.stack([s.labels for s in samples]), torch.stack(far)


def train(model: nn.Module, data: tuple[Tensor, ...], steps: int, lr: float, seed: int, term: nn.Module | None) -> None:
    images, labels, _ = data
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: (1 - s / steps) ** 0.9)
    model.train()
    with perpixel.attach(model, *([] if term is None else [term])) as criterion:
        for _ in range(steps):
            pick = torch.randint(len(images), (8,), generator=generator)
            x, y = images[pick], labels[pick]
            if torch.rand((), generator=generator) < 0.5:
                x, y = x.flip(-1), y.flip(-1)
            optimizer.zero_grad()
            criterion(model(x - 0.45), y).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def evaluate(model: nn.Module, data: tuple[Tensor, ...], classes: int) -> dict[str, float]:
    images, labels, far = data
    model.eval()
    predictions = torch.cat([predict_labels(model, x - 0.45) for x in images.split(32)])
    return {
        "mIoU": 100 * float(mean_iou(confusion_matrices(predictions, labels, classes).sum(0))),
        "far body": 100 * (predictions == labels)[far].double().mean().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--start-steps", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--start-lr", type=float, default=3e-3)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="variants to run besides the control")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    classes = SyntheticEvidence(1).num_classes
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        training, held_out = render(800, "train", seed), render(200, "val", seed)
        start = small_fcn(classes)
        began = time.perf_counter()
        train(start, training, options.start_steps, options.start_lr, seed, None)
        print(
            f"seed {seed}: start {evaluate(start, held_out, classes)} in {time.perf_counter() - began:.0f} s",
            flush=True,
        )
        for name, chosen in VARIANTS.items():
            if options.only and name not in ("control", *options.only):
                continue
            model, chosen = copy.deepcopy(start), dict(chosen)
            term = perpixel.TemplateSimilarityLoss(**chosen) if chosen["weight"] else None
            train(model, training, options.steps, options.lr, 1000 + seed, term)
            scores = evaluate(model, held_out, classes)
            results.setdefault(name, []).append(scores)
            change = {k: v - results["control"][-1][k] for k, v in scores.items()}
            print(f"  {name:28s}" + "".join(f"{k} {scores[k]:6.2f} ({change[k]:+.2f})  " for k in scores), flush=True)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(json.dumps(results, indent=1))
    print(f"\n{'difference to the control, points':34s}{'mIoU':>8s}{'± s.e.':>8s}{'better':>8s}{'far body':>10s}")
    for name, rows in results.items():
        for_each = [[r[k] - c[k] for r, c in zip(rows, results["control"])] for k in ("mIoU", "far body")]
        mean, far = (sum(d) / len(d) for d in for_each)
        error = math.sqrt(sum((d - mean) ** 2 for d in for_each[0]) / max(len(rows) - 1, 1) / len(rows))
        wins = f"{sum(d > 0 for d in for_each[0])}/{len(rows)}"
        print(f"{name:34s}{mean:+8.2f}{error:8.2f}{wins:>8s}{far:+10.2f}")


if __name__ == "__main__":
    main()
