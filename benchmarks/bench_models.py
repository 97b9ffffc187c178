"""What networks cost beyond their layers, forward and backward, as ratios measured in the same run.

    python -m benchmarks.bench_models [--device cuda] [--only TEXT] [--size N] [--repeats N] [--json FILE]

"bare": the very same layers, called one after the other as an nn.Sequential does, with F.interpolate where the network
has an upsampling of its own. One image, full width, 21 classes, random weights, float32, training mode, one thread on
the CPU. The ratio is the median of those of runs taken in turn; the target is 1.05.
"""

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.timing import median_seconds, metadata
from perpixel.models import build

CLASSES, TARGET = 21, 1.05
Bare = Callable[[nn.Module, Tensor], Tensor]


def bare_fcn8s(network: nn.Module, images: Tensor) -> Tensor:
    """The layers of fcn8s_vgg16."""
    net, size = network, images.shape[-2:]
    pool3 = net.features[:17](images)
    pool4 = net.features[17:24](pool3)
    x = net.dropout(F.relu(net.fc6(net.features[24:](pool4)), inplace=True))
    scores = net.score(net.dropout(F.relu(net.fc7(x), inplace=True)))
    for finer in (net.score_pool4(pool4), net.score_pool3(pool3)):
        scores = F.interpolate(scores, finer.shape[-2:], mode="bilinear") + finer
    return F.interpolate(scores, size, mode="bilinear")


def bare_fcn32s(network: nn.Module, images: Tensor) -> Tensor:
    """The layers of an FCN-32s."""
    x = network.features(images)
    for fc in (network.fc6, network.fc7):
        x = network.dropout(F.relu(fc(x), inplace=True))
    return F.interpolate(network.score(x), images.shape[-2:], mode="bilinear")


def bare_largefov(network: nn.Module, images: Tensor) -> Tensor:
    """The layers of deeplab_largefov_vgg16."""
    x = network.features(images)
    for fc in (network.fc6, network.fc7):
        x = network.dropout(F.relu(fc(x), inplace=True))
    return F.interpolate(network.classifier(x), images.shape[-2:], mode="bilinear")


CASES: dict[str, Bare] = {  # network -> its layers, called bare
    "fcn8s_vgg16": bare_fcn8s,
    "fcn32s_vgg16": bare_fcn32s,
    "fcn32s_alexnet": bare_fcn32s,
    "deeplab_largefov_vgg16": bare_largefov,
}


def bench(name: str, size: int, device: torch.device, repeats: int) -> dict[str, float]:
    """Median seconds of the network and of its bare layers, and the ratio, forward and with backward."""
    torch.manual_seed(0)
    network = build(name, CLASSES).to(device).train()
    images = torch.randn(1, 3, size, size, device=device)

    def forward(run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def once() -> None:
            with torch.no_grad():
                run(images)

        return once

    def both(run: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def once() -> None:
            network.zero_grad(set_to_none=True)
            run(images).square().mean().backward()

        return once

    def bare(images: Tensor) -> Tensor:
        return CASES[name](network, images)

    found = {}
    for what, step in (("forward", forward), ("forward and backward", both)):
        runs = {"network": step(network), "bare": step(bare)}
        for run in runs.values():
            run()
        pairs = [[median_seconds(run, device, repeats=1, warm_up=0) for run in runs.values()] for _ in range(repeats)]
        ours, theirs = (statistics.median(times) for times in zip(*pairs))
        ratio = statistics.median(a / b for a, b in pairs)
        print(f"{name:20s} {size:4d} px  {what:22s}{ours:8.3f} s{theirs:8.3f} s bare  ratio {ratio:.3f}", flush=True)
        found |= {f"{what}, seconds": ours, f"{what}, bare seconds": theirs, f"{what}, ratio": ratio}
    return found


def main() -> None:
    """Measure the networks asked for, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", default="", help="networks with this text in their name")
    parser.add_argument("--size", type=int, default=224, help="of the images, in pixels a side")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write the results there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    about = metadata(device)
    print("  ".join(f"{key}: {value}" for key, value in about.items()))
    names = [name for name in CASES if options.only in name]
    results = {name: bench(name, options.size, device, options.repeats) for name in names}
    print(f"target of every ratio: at most {TARGET}")
    if options.json:
        options.json.write_text(json.dumps({"about": about, "size": options.size, "results": results}, indent=1))


if __name__ == "__main__":
    main()
