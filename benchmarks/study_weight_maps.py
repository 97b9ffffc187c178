"""Do weight maps change what labels rest on? The small network on SyntheticEvidence with each term, beside its control.

    python -m benchmarks.study_weight_maps --seeds 3

For each seed: one pre-training with cross-entropy, then from that same start, with the same batches, the control and
every arm. Some arms train with the term alone at strength 20 (weights differ by up to 21 times), which shows what the
map does; the others add the term with its defaults to the plain cross-entropy, as one would use it. Printed, in points
and as differences to the control of the seed: share of the fixation mass of the creatures' pixels on their evidence
(the heads), accuracy on the creatures, mIoU; on 64 held-out pictures.
"""

import argparse
import copy
import statistics

import torch
from torch import Tensor, nn

import perpixel
from benchmarks.timing import metadata
from perpixel.data import SyntheticEvidence
from perpixel.models import small_fcn
from perpixel.weighting import WeightMapLoss

Pictures = tuple[Tensor, Tensor, Tensor]
CLASSES = 3
STRONG = {"strength": 20.0}
FULL = {"shift": "full", "cell": 4}


class Shuffled(perpixel.FixationWeightedLoss):
    """The same weights at other pixels of the same label: what is left is that some labels weigh more."""

    def scores(self, *arguments: object) -> Tensor:
        scores, labels = super().scores(*arguments), arguments[3]  # type: ignore[arg-type]
        mixed = scores.clone()
        for label in labels.unique():
            values = scores[labels == label]
            mixed[labels == label] = values[torch.randperm(len(values))]
        return mixed


def arms(learning: bool) -> dict[str, WeightMapLoss]:
    """The terms; alone and strong, or (`learning` false) with defaults beside the cross-entropy."""
    fixation, region = perpixel.FixationWeightedLoss, perpixel.DiscriminativeRegionLoss
    if not learning:
        return {
            "evidence": fixation(**FULL),
            "unsupported": fixation(mode="unsupported", **FULL),
            "debt": region(),
            "independent": region(mode="independent"),
        }
    return {
        "evidence": fixation(**FULL, **STRONG),
        "evidence, shuffled": Shuffled(**FULL, **STRONG),
        "evidence, per label": fixation(per_label=True, **FULL, **STRONG),
        "unsupported": fixation(mode="unsupported", **FULL, **STRONG),
        "debt": region(**STRONG),
        "debt, per label": region(per_label=True, **STRONG),
        "independent": region(mode="independent", **STRONG),
        "independent, per label": region(mode="independent", per_label=True, **STRONG),
    }


def pictures(count: int, split: str, seed: int) -> Pictures:
    """Images, labels and evidence of one pair of creatures that only their heads tell apart."""
    data = SyntheticEvidence(
        count,
        size=(48, 64),
        pairs=1,
        hidden_head=0.0,
        context_pair=False,
        local_pair=False,
        creatures=(1, 2),
        split=split,
        seed=seed,
    )
    samples = [data[i] for i in range(count)]
    image, labels, evidence = (torch.stack([sample[part] for sample in samples]) for part in range(3))
    return image - 0.5, labels, evidence


def trained(
    model: nn.Module, data: Pictures, terms: list, alone: bool, steps: int, rate: float, seed: int
) -> nn.Module:
    """`model` after `steps` of Adam with batches of 8, which depend on the seed only."""
    optimizer = torch.optim.Adam(model.train().parameters(), lr=rate)
    order = torch.Generator().manual_seed(seed)
    base = (lambda logits, labels: logits.sum() * 0.0) if alone else None
    with perpixel.attach(model, *terms, base=base) as criterion:
        for _ in range(steps):
            chosen = torch.randint(0, len(data[0]), (8,), generator=order)
            optimizer.zero_grad()
            criterion(model(data[0][chosen]), data[1][chosen]).backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def measured(model: nn.Module, held_out: Pictures) -> dict[str, float]:
    """Percentages: mass on the evidence, accuracy on the creatures, mIoU."""
    images, labels, evidence = held_out
    fix = perpixel.fixations(model, images, start=labels.masked_fill(labels == 0, -1))
    image, _, _, y, x = fix.points.unbind(1)
    found = model(images).argmax(1)
    hits = [((found == c) & (labels == c)).sum() / ((found == c) | (labels == c)).sum() for c in range(CLASSES)]
    return {
        "on evidence": 100 * float((fix.mass * evidence[image, y, x]).sum() / fix.mass.sum()),
        "on creatures": 100 * float((found == labels)[labels > 0].float().mean()),
        "mIoU": 100 * float(torch.stack(hits).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start", type=int, default=500, help="steps of pre-training")
    parser.add_argument("--steps", type=int, default=120, help="steps of every arm")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(metadata(torch.device("cpu")), flush=True)
    changes: dict[tuple[str, str], list[dict[str, float]]] = {}
    for seed in range(options.seeds):
        torch.manual_seed(seed)
        data, held_out = pictures(200, "train", seed), pictures(64, "val", seed)
        start = trained(small_fcn(CLASSES, width=16), data, [], False, options.start, 3e-3, seed)
        training = (options.steps, 5e-4, 100 + seed)
        control = measured(trained(copy.deepcopy(start), data, [], False, *training), held_out)
        print(f"seed {seed}: control {control}", flush=True)
        for setting, alone in (("alone, strength 20", True), ("beside cross-entropy, defaults", False)):
            for name, term in arms(alone).items():
                torch.manual_seed(seed)
                found = measured(trained(copy.deepcopy(start), data, [term], alone, *training), held_out)
                change = {key: found[key] - control[key] for key in found}
                changes.setdefault((setting, name), []).append(change)
    print("| | | " + " | ".join(f"{key}, by seed" for key in control) + " |")
    print("|---|---|" + "---:|" * len(control))
    for (setting, name), rows in changes.items():
        cells = []
        for key in control:
            values = [row[key] for row in rows]
            cells.append(f"{statistics.mean(values):+.2f} ({', '.join(f'{v:+.1f}' for v in values)})")
        print(f"| {setting} | {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
