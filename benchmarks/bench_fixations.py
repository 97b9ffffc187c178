"""What fixations cost beyond the forward pass they need anyway, as ratios to that forward pass in the same run.

    python -m benchmarks.bench_fixations [--device cuda] [--quick] [--json FILE]

Random weights (He), normalisation statistics of the image, images of blurred noise, K = 1 unless said.
"beyond": (fixations - model(images)) / model(images), where model(images) is in evaluation mode, without gradients.
Large images run channels-last inside, which convolutions on the CPU like better; "against channels-last" is the same
ratio to model(images.contiguous(memory_format=torch.channels_last)): what the way back itself costs. "followed": the
same for fixations of no pixel, against the quicker of the two orders: what it costs to hold every operation of the
model's own forward against the graph. "first call": of a new model, whose graph is recorded by one more forward pass.
Times on the CPU are the process's own processor time with one thread, so that a busy machine disturbs them little;
each ratio is the median of ratios of runs taken in turn (for the loop, the ratio of shortest times). That of wall-clock
times stands beside it.
"loop" is the original scheme (github.com/BardOfCodes/seg_unravel) on LargeFOV-VGG16, on the same activations: one point
after the other in numpy, copying its patch, sorting all channels and then all taps.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import perpixel
from benchmarks.timing import metadata, peak_extra_bytes, synchronise
from perpixel.outputs import dense_logits

MOBILE = "deeplabv3_mobilenet_v3_large"
TARGETS = {
    "LargeFOV-VGG16": 0.06,
    "deeplabv3_resnet50": 0.06,
    MOBILE: 0.12,
    f"{MOBILE}, side 97, K 3": 40.0,
    "loop": 20.0,
}


def large_fov(size: int) -> nn.Sequential:
    """DeepLab LargeFOV on VGG-16 (arXiv 1412.7062), 21 classes, output at the input's size."""
    layers: list[nn.Module] = []
    width = 3
    for out, count, dilation, stride in ((64, 2, 1, 2), (128, 2, 1, 2), (256, 3, 1, 2), (512, 3, 1, 1), (512, 3, 2, 1)):
        for _ in range(count):
            layers += [nn.Conv2d(width, out, 3, padding=dilation, dilation=dilation), nn.ReLU(inplace=True)]
            width = out
        layers.append(nn.MaxPool2d(3, stride, padding=1))
    layers += [nn.AvgPool2d(3, 1, padding=1), nn.Conv2d(512, 1024, 3, padding=12, dilation=12), nn.ReLU(inplace=True)]
    layers += [nn.Dropout(), nn.Conv2d(1024, 1024, 1), nn.ReLU(inplace=True), nn.Dropout(), nn.Conv2d(1024, 21, 1)]
    layers.append(nn.Upsample(size=(size, size), mode="bilinear", align_corners=True))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def network(name: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    if name == "LargeFOV-VGG16":
        return large_fov(size)
    from torchvision.models import segmentation

    return getattr(segmentation, name)(weights=None, weights_backbone=None)


def blurred_noise(n: int, size: int) -> Tensor:
    torch.manual_seed(1)
    coarse = F.interpolate(torch.randn(n, 3, size // 16, size // 16), size=(size, size), mode="bicubic")
    return coarse + 0.3 * torch.randn(n, 3, size, size)


def ready(name: str, n: int, size: int, device: torch.device) -> tuple[nn.Module, Tensor]:
    """The network in evaluation mode, its statistics those of the images."""
    model, images = network(name, size).to(device), blurred_noise(n, size).to(device)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None
    if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
        with torch.no_grad():
            model.train()(torch.cat([images, images.flip(3)]))
    return model.eval(), images


Times = dict[str, list[tuple[float, float]]]  # by run: processor and wall-clock seconds, round by round


def in_turn(runs: dict[str, Callable[[], object]], device: torch.device, repeats: int) -> Times:
    """Warmed up; on a GPU, both times are wall-clock."""
    times: Times = {name: [] for name in runs}
    for round_ in range(-1, repeats):
        for name, run in runs.items():
            synchronise(device)
            wall, own = time.perf_counter(), time.process_time()
            run()
            synchronise(device)
            wall, own = time.perf_counter() - wall, time.process_time() - own
            if round_ >= 0:
                times[name].append((own if device.type == "cpu" else wall, wall))
    return times


def share(times: Times, run: str, base: str, clock: int = 0) -> float:
    """How much longer `run` takes than `base`, in `base`s."""
    return statistics.median(r[clock] / b[clock] - 1 for r, b in zip(times[run], times[base]))


def seconds(times: Times, run: str) -> float:
    return statistics.median(own for own, _ in times[run])


def best(times: Times, run: str) -> float:
    return min(own for own, _ in times[run])


def beyond(name: str, n: int, size: int, device: torch.device, repeats: int, **settings: object) -> dict[str, float]:
    model, images = ready(name, n, size, device)
    last = images.contiguous(memory_format=torch.channels_last)

    found: list[perpixel.Fixations] = []

    def both() -> None:
        found[:] = [perpixel.fixations(model, images, **settings)]

    with torch.no_grad():
        nothing = torch.full((n, *dense_logits(model(images)).shape[2:]), -1, device=device)
    runs = {
        "forward": lambda: forward(model, images),
        "last": lambda: forward(model, last),
        "both": both,
        "followed": lambda: perpixel.fixations(model, images, start=nothing),
        "first": lambda: perpixel.fixations(copy.deepcopy(model), images, **settings),
    }
    times = in_turn(runs, device, repeats)
    peak = peak_extra_bytes(both, device)
    return {
        "forward_ms": 1e3 * seconds(times, "forward"),
        "both_ms": 1e3 * seconds(times, "both"),
        "beyond": share(times, "both", "forward"),
        "beyond_wall": share(times, "both", "forward", 1),
        "against_channels_last": share(times, "both", "last"),
        "followed": max(share(times, "followed", order) for order in ("forward", "last")),
        "first_call": share(times, "first", "forward"),
        "memory": peak / max(peak_extra_bytes(runs["forward"], device), 1),
        "memory_of_training": peak / max(peak_extra_bytes(lambda: model(images), device), 1),
        "points": float(len(found[0].points)),
    }


def forward(model: nn.Module, images: Tensor) -> object:
    with torch.no_grad():
        return model(images)


Points = list[tuple[int, int, int]]


def original_loop(model: nn.Sequential, activations: list[np.ndarray], start: np.ndarray) -> int:
    """Every label's points back through the layers, one at a time; how many steps there were."""
    steps = 0
    for label in np.unique(start):
        points: Points = [(int(label), int(y), int(x)) for y, x in np.argwhere(start == label)]
        for layer, value in zip(reversed(model), reversed(activations)):
            if isinstance(layer, nn.Upsample):
                zoom = (start.shape[0] - 1) / (value.shape[1] - 1)
                points = list({(c, int(y // zoom), int(x // zoom)) for c, y, x in points})
            elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                steps += len(points)
                points = (
                    _loop_convolution(layer, value, points)
                    if isinstance(layer, nn.Conv2d)
                    else _loop_pool(layer, value, points)
                )
    return steps


def _loop_convolution(layer: nn.Conv2d, value: np.ndarray, points: Points) -> Points:
    pad, spread, size = layer.padding[0], layer.dilation[0], layer.kernel_size[0]
    padded = np.pad(value, ((0, 0), (pad, pad), (pad, pad)))
    weights, found = layer.weight.detach().numpy(), []
    for channel, y, x in points:
        patch = np.copy(padded[:, y : y + size, x : x + size])
        if spread > 1:
            wide = padded[:, y : y + spread * (size - 1) + 1, x : x + spread * (size - 1) + 1]
            patch = np.empty(weights.shape[1:], value.dtype)
            for row in range(size):
                for column in range(size):
                    patch[:, row, column] = wide[:, row * spread, column * spread]
        given = patch * weights[channel]
        best = np.argsort(np.sum(np.sum(given, axis=2), axis=1))[-1]
        row, column = np.dstack(np.unravel_index(np.argsort(given[best].ravel()), (size, size)))[0][-1]
        found.append(_inside(int(best), y - pad + row * spread, x - pad + column * spread, value))
    return list(set(found))


def _loop_pool(layer: nn.MaxPool2d | nn.AvgPool2d, value: np.ndarray, points: Points) -> Points:
    stride, pad, size = int(layer.stride), int(layer.padding), int(layer.kernel_size)
    padded = np.pad(value, ((0, 0), (pad, pad), (pad, pad)))
    found = []
    for channel, y, x in points:
        patch = padded[channel, y * stride : y * stride + size, x * stride : x * stride + size]
        row, column = np.dstack(np.unravel_index(np.argsort(patch.ravel()), patch.shape))[0][-1]
        found.append(_inside(channel, y * stride - pad + row, x * stride - pad + column, value))
    return list(set(found))


def _inside(channel: int, y: int, x: int, value: np.ndarray) -> tuple[int, int, int]:
    return channel, min(max(int(y), 0), value.shape[1] - 1), min(max(int(x), 0), value.shape[2] - 1)


def loop_ratio(size: int, repeats: int) -> dict[str, float]:
    """How many times longer the loop takes than all of what `fixations` does beyond its forward pass."""
    model, images = ready("LargeFOV-VGG16", 1, size, torch.device("cpu"))
    last = images.contiguous(memory_format=torch.channels_last)
    activations, value = [], images
    with torch.no_grad():
        for layer in model:
            activations.append(value[0].clone().numpy())
            value = layer(value.clone())
    start = value[0].argmax(0).numpy()
    runs = {
        "forward": lambda: forward(model, last),
        "both": lambda: perpixel.fixations(model, images, rules="seg-unravel"),
        "loop": lambda: original_loop(model, activations, start),
    }
    times = in_turn(runs, images.device, repeats)
    rest = best(times, "both") - best(times, "forward")  # a small difference: of what nothing disturbed
    loop = best(times, "loop")
    return {"loop_ms": 1e3 * loop, "beyond_ms": 1e3 * rest, "ratio": loop / rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small images and few repeats: whether it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    size, repeats = (161, 2) if arguments.quick else (321, 5)
    results: dict[str, object] = {"metadata": metadata(device)}
    print(results["metadata"])
    cases: dict[str, tuple] = {name: (name, 1, size, {}) for name in TARGETS if name != "loop" and "," not in name}
    cases |= {f"{MOBILE}, side {s}": (MOBILE, 1, s, {}) for s in ((97,) if arguments.quick else (161, 641))}
    cases |= {f"{MOBILE}, batch {n}": (MOBILE, n, size, {}) for n in ((2,) if arguments.quick else (2, 4))}
    cases |= {f"{MOBILE}, side 97, K {k}": (MOBILE, 1, 97, {"k": k}) for k in (1, 2, 3)}
    for title, (name, n, side, settings) in cases.items():
        found = beyond(name, n, side, device, 1 if settings.get("k", 1) > 1 else repeats, **settings)
        results[title] = found
        target = f" (target {TARGETS[title]:g})" if title in TARGETS and not arguments.quick else ""
        print(
            f"{title:46s} forward {found['forward_ms']:7.1f} ms   with fixations {found['both_ms']:7.1f} ms   "
            f"beyond {found['beyond']:6.3f}{target}, wall {found['beyond_wall']:6.3f}, "
            f"against channels-last {found['against_channels_last']:6.3f}, followed {found['followed']:6.3f}, "
            f"first call {found['first_call']:6.3f}   "
            f"peak memory {found['memory']:5.2f} of forward's, {found['memory_of_training']:4.2f} of one with gradients"
            f"   {found['points']:.0f} points",
            flush=True,
        )
    if device.type == "cpu":
        results["loop"] = found = loop_ratio(size, repeats)
        print(
            f"original point-by-point loop: {found['ratio']:.1f} times as long "
            f"({found['loop_ms']:.0f} ms against {found['beyond_ms']:.1f} ms; target {TARGETS['loop']:g})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
