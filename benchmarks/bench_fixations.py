"""What fixations cost beyond the forward pass they need anyway, as ratios to that forward pass in the same run.

    python -m benchmarks.bench_fixations [--device cuda] [--quick] [--json FILE]

Random weights (He), normalisation statistics of the image, images of blurred noise, K = 1 unless said. "loop" is the
original scheme on LargeFOV-VGG16: one point after the other, patch by patch, in numpy, on the same activations.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import perpixel
from benchmarks.timing import interleaved_medians, median_seconds, metadata, peak_extra_bytes

TARGETS = {"LargeFOV-VGG16": 0.06, "deeplabv3_resnet50": 0.10, "deeplabv3_mobilenet_v3_large": 0.10, "loop": 12.0}


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


def beyond(name: str, n: int, size: int, device: torch.device, repeats: int, **settings: object) -> dict[str, float]:
    model, images = ready(name, n, size, device)

    def forward() -> object:
        with torch.no_grad():
            return model(images)

    def both() -> object:
        return perpixel.fixations(model, images, **settings)

    times = interleaved_medians({"forward": forward, "both": both}, device, repeats=repeats)
    return {
        "forward_ms": 1e3 * times["forward"],
        "beyond": times["both"] / times["forward"] - 1,
        "memory": peak_extra_bytes(both, device) / max(peak_extra_bytes(forward, device), 1),
        "memory_of_training": peak_extra_bytes(both, device) / max(peak_extra_bytes(lambda: model(images), device), 1),
        "points": float(len(both().points)),  # type: ignore[attr-defined]
    }


def original_loop(model: nn.Sequential, activations: list[np.ndarray], start: np.ndarray) -> int:
    """Every label's points back through the layers, one at a time; how many there were."""
    steps = 0
    for label in np.unique(start):
        points = {(int(label), int(y), int(x)) for y, x in np.argwhere(start == label)}
        for layer, value in zip(reversed(model), reversed(activations)):
            if isinstance(layer, nn.Upsample):
                zoom = (start.shape[0] - 1) / (value.shape[1] - 1)
                points = {(c, int(y // zoom), int(x // zoom)) for c, y, x in points}
            elif isinstance(layer, (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)):
                steps += len(points)
                points = _loop_layer(layer, value, points)
    return steps


def _loop_layer(layer: nn.Module, value: np.ndarray, points: set[tuple[int, int, int]]) -> set[tuple[int, int, int]]:
    _, height, width = value.shape
    weighs = isinstance(layer, nn.Conv2d)
    weight = layer.weight.detach().numpy() if weighs else None
    size = layer.kernel_size[0] if weighs else layer.kernel_size
    stride = layer.stride[0] if weighs else layer.stride
    pad = layer.padding[0] if weighs else layer.padding
    spread = layer.dilation[0] if weighs else 1
    padded = np.pad(value, ((0, 0), (pad, pad), (pad, pad)))
    extent = spread * (size - 1) + 1
    found = set()
    for channel, y, x in points:
        top, left = y * stride, x * stride
        patch = padded[:, top : top + extent : spread, left : left + extent : spread]
        if weighs:
            given = patch * weight[channel]
            channel = int(np.argmax(given.sum(axis=(1, 2))))
            tap = int(np.argmax(given[channel]))
        else:
            tap = int(np.argmax(patch[channel]))
        v, u = top - pad + tap // size * spread, left - pad + tap % size * spread
        found.add((channel, min(max(v, 0), height - 1), min(max(u, 0), width - 1)))
    return found


def loop_ratio(size: int, repeats: int) -> dict[str, float]:
    """How many times longer the loop takes than all of what `fixations` does beyond the forward pass."""
    model, images = ready("LargeFOV-VGG16", 1, size, torch.device("cpu"))
    activations, value = [], images
    with torch.no_grad():
        for layer in model:
            activations.append(value[0].clone().numpy())
            value = layer(value.clone())
    start = value[0].argmax(0).numpy()

    def forward() -> object:
        with torch.no_grad():
            return model(images)

    runs: dict[str, Callable[[], object]] = {
        "forward": forward,
        "both": lambda: perpixel.fixations(model, images, rules="seg-unravel"),
    }
    times = interleaved_medians(runs, images.device, repeats=repeats)
    loop = median_seconds(lambda: original_loop(model, activations, start), images.device, repeats=3, warm_up=0)
    rest = times["both"] - times["forward"]
    return {"loop_ms": 1e3 * loop, "beyond_ms": 1e3 * rest, "ratio": loop / rest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="small images and few repeats: whether it runs")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    size, repeats = (97, 1) if arguments.quick else (321, 7)
    results: dict[str, object] = {"metadata": metadata(device)}
    print(results["metadata"])
    cases: dict[str, tuple] = {name: (name, 1, size, {}) for name in TARGETS if name != "loop"}
    mobile = "deeplabv3_mobilenet_v3_large"
    cases |= {f"{mobile}, side {s}": (mobile, 1, s, {}) for s in ((size,) if arguments.quick else (161, 641))}
    cases |= {f"{mobile}, batch {n}": (mobile, n, size, {}) for n in ((2,) if arguments.quick else (2, 4))}
    cases |= {f"{mobile}, side {size // 2 | 1}, K {k}": (mobile, 1, size // 2 | 1, {"k": k}) for k in (1, 2, 3)}
    for title, (name, n, side, settings) in cases.items():
        found = beyond(name, n, side, device, 1 if settings.get("k", 1) > 1 else repeats, **settings)
        results[title] = found
        target = f" (target {TARGETS[title]:g})" if title in TARGETS and not arguments.quick else ""
        print(
            f"{title:44s} forward {found['forward_ms']:8.1f} ms   beyond it {found['beyond']:6.3f}{target}   "
            f"peak memory {found['memory']:5.2f} of forward's, {found['memory_of_training']:4.2f} of one with gradients"
            f"   {found['points']:.0f} points"
        )
    if device.type == "cpu":
        results["loop"] = found = loop_ratio(size, repeats)
        print(
            f"original point-by-point loop: {found['ratio']:.1f} times as long "
            f"({found['loop_ms']:.0f} ms against {found['beyond_ms']:.0f} ms; target {TARGETS['loop']:g})"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
