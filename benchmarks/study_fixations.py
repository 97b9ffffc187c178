"""Which rules and which question show that a trained network labels far body pixels through the head?

    python -m benchmarks.study_fixations --seeds 0 1 2 --out runs/study_fixations
    python -m benchmarks.study_fixations --seeds --runs runs/finetune-20261120-090000

Trains the small network on SyntheticEvidence with several seeds (kept in --out, continued where it was stopped), and
takes those of finished runs of recipes.finetune. For every set of rules, printed: the share of the mass on
the evidence; lift, over chance; factor, of the trained network's share over that of random weights; change, from the
class question ("what made this score high?") to the rival question ("what put it above the other class of the pair?");
swap, of the share when the pixels are asked for their own class over that when they are asked for the relative.
Intervals are over images, networks pooled; the swap is also printed network by network.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from rich.console import Console
from torch import Tensor, nn

from recipes.kit.evidence import FAR, FAR_OTHER
from recipes.kit.images import Images
from recipes.kit.job import Interrupt
from recipes.kit.networks import random_network
from recipes.kit.progress import Progress
from recipes.kit.settings import pretraining
from recipes.kit.tables import format_cell
from recipes.tracing.evidence import CHANGE, FACTOR, OWN, RANDOM, evidence_rows, measure_evidence, pool_networks
from recipes.tracing.job import FixationJob
from recipes.tracing.network import TracedNetwork, known_rivals
from recipes.tracing.settings import FixationMeasureSettings, FixationSettings, TraceSettings
from recipes.training.checkpoints import load_or_compute
from recipes.training.pretraining import load_network, train_network

VARIANTS = {
    "modern": TraceSettings(),
    "modern, single contributions": TraceSettings(select="element"),
    "modern, k = 3": TraceSettings(k=3),
    "modern, half the activation": TraceSettings(k=0.5),
    "modern, shift partial": TraceSettings(shift="partial"),
    "seg-unravel": TraceSettings(rules="seg-unravel"),
}
COLUMNS = {"share": "on_evidence_percent", "lift": "times_chance", "factor": FACTOR, "change": CHANGE, "swap": OWN}


def networks_of(options: argparse.Namespace, images: Images) -> list[nn.Module]:
    """The trained networks."""
    found = []
    for run in options.runs:
        loaded = load_network(FixationSettings(run=run), images.num_classes)
        assert loaded is not None
        found.append(loaded[0].eval())
    fabric, progress = Fabric(accelerator="cpu", devices=1), Progress(Console(width=118))
    with Interrupt() as interrupt:
        for seed in options.seeds:
            settings = FixationSettings(seed=seed, pretrain=pretraining(options.epochs))
            folder = options.out / f"seed{seed}"
            network, about = train_network(FixationJob(settings, folder, fabric, images, progress, interrupt), folder)
            print(f"seed {seed}: {about}", flush=True)
            found.append(network.eval())
    return found


def measure_networks(
    network: nn.Module, random: Sequence[nn.Module], trace: TraceSettings, images: Images, indices: Sequence[int]
) -> dict[str, Tensor]:
    """Sums of a trained network, and of networks with random weights, pooled."""
    device, rivals = torch.device("cpu"), known_rivals(images, trace)
    trained = TracedNetwork(network, trace, device)
    traced = {"trained": trained} | {f"{RANDOM}#{k}": TracedNetwork(one, trace, device) for k, one in enumerate(random)}
    measure = FixationMeasureSettings(batch_size=16)
    return pool_networks(
        {name: measure_evidence(one, rivals, images, indices, measure, trained=trained) for name, one in traced.items()}
    )


def pooled(per_seed: list[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Sums over the seeds, per image."""
    return {key: torch.stack([sums[key] for sums in per_seed if key in sums]).sum(0) for key in per_seed[0]}


def report(variant: str, per_seed: list[dict[str, Tensor]], settings: FixationMeasureSettings) -> list[dict]:
    """Print the rows of a variant; returns them."""
    rows = evidence_rows(pooled(per_seed), settings)
    for row in rows:
        row["variant"] = variant
        if row["pixels_asked"] == FAR_OTHER:
            continue
        text = f"{variant:30s}{row['network']:15s}{row['question']:7s}{row['pixels_asked']:53s}"
        for name, column in COLUMNS.items():
            if row[column] == row[column]:
                text += f"  {name} {format_cell(row, column, 1 if name == 'share' else 2)}"
        if row["pixels_asked"] == FAR:
            row["swap_by_network"] = [_swap(sums, row) for sums in per_seed]
            text += "  by network " + " ".join(f"{swap:.2f}" for swap in row["swap_by_network"])
        print(text, flush=True)
    return rows


def _swap(sums: Mapping[str, Tensor], row: Mapping[str, Any]) -> float:
    """Share on the head, asked for the own class, over that asked for the relative; NaN where that is nothing."""
    own, relative = (sums[f"{row['network']}|{row['question']}|{kind}"].sum(0) for kind in (FAR, FAR_OTHER))
    shares = float(own[2] / own[1]), float(relative[2] / relative[1])
    return shares[0] / shares[1] if shares[1] else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="networks to train")
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", nargs="*", default=[], help="run folders of recipes.finetune, besides")
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--random", type=int, default=2, help="networks with random weights beside every trained one")
    parser.add_argument("--only", nargs="*", help="variants to run")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/study_fixations"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = FixationSettings()
    images = Images(settings.data)
    trained = networks_of(options, images)
    indices = [i * images.evaluated // options.images for i in range(options.images)]
    some = [x for _, x, _, _ in images.evaluation(batch_size=8, far=0.0, only=indices[:32])]
    path = options.out / "study.json"
    rows: list[dict] = json.loads(path.read_text()) if path.exists() else []
    controls = [
        [random_network(settings.model, images.num_classes, 100 * number + k, some) for k in range(options.random)]
        for number in range(len(trained))
    ]
    for variant, trace in VARIANTS.items():
        if options.only and variant not in options.only:
            continue
        per_seed = []
        for number, (network, random) in enumerate(zip(trained, controls)):
            name = f"{variant}, {options.images} images, network {number}.pt"
            measure = partial(measure_networks, network, random, trace, images, indices)
            per_seed.append(load_or_compute(options.out / "measured" / name, measure, print))
        rows = [row for row in rows if row["variant"] != variant]
        rows += report(variant, per_seed, settings.measure)
        options.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
