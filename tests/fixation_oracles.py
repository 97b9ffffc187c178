"""Fixations point by point, in plain loops, from the definitions; only for chains of layers, tiny inputs and K = 1."""

import math
from collections import Counter
from itertools import product

import torch
from torch import Tensor, nn

Point = tuple[int, int, int, int]  # channel, y, x, sign


def trace_chain(
    layers: list[nn.Module],
    image: Tensor,
    start: Tensor,
    *,
    shift: str = "full",
    published: bool = False,
    select: str = "channel",
) -> tuple[Counter, int]:
    """Start labels (N, H, W) -> mass per (image, label, channel, y, x), and the number of points dropped."""
    with torch.no_grad():
        values = [image]
        for layer in layers:
            values.append(layer(values[-1]))
    found: Counter = Counter()
    dropped = 0
    for n, y, x in product(*(range(size) for size in start.shape)):
        label = int(start[n, y, x])
        if label < 0 or label == 255:
            continue
        point: Point | None = (label, y, x, 1)
        for layer, value, result in zip(reversed(layers), reversed(values[:-1]), reversed(values[1:])):
            point = step(layer, value[n], result[n], point, shift, published, select)
            if point is None:
                dropped += 1
                break
        else:
            found[(n, label, *point[:3])] += 1
    return found, dropped


def step(
    layer: nn.Module, value: Tensor, result: Tensor, point: Point, shift: str, published: bool, select: str
) -> Point | None:
    c, y, x, sign = point
    if isinstance(layer, nn.Conv2d):
        return convolution(layer, value, point, shift, published, select)
    if isinstance(layer, nn.ConvTranspose2d):
        return transposed(layer, value, point, shift)
    if isinstance(layer, nn.BatchNorm2d):
        return (c, y, x, -sign if layer.weight[c] < 0 and not published else sign)
    if isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        return pool(layer, value, point, published)
    if isinstance(layer, (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)):
        return cell(value, result, point)
    if isinstance(layer, nn.Upsample):
        return resize(layer, value, result, point, published)
    if isinstance(layer, (nn.ReLU, nn.Hardswish, nn.Sigmoid, nn.SiLU, nn.Identity)):
        return point
    raise NotImplementedError(type(layer))


def convolution(
    layer: nn.Conv2d, value: Tensor, point: Point, shift: str, published: bool, select: str
) -> Point | None:
    c, y, x, sign = point
    channels, height, width = value.shape
    kh, kw = layer.kernel_size
    per_group = channels // layer.groups
    first = c // (layer.out_channels // layer.groups) * per_group
    if layer.padding == "same":
        pad = [d * (k - 1) // 2 for d, k in zip(layer.dilation, layer.kernel_size)]
    else:
        pad = list(layer.padding)
    place = {
        (a, b): (
            y * layer.stride[0] - pad[0] + a * layer.dilation[0],
            x * layer.stride[1] - pad[1] + b * layer.dilation[1],
        )
        for a, b in product(range(kh), range(kw))
    }
    inside = {tap for tap, (v, u) in place.items() if 0 <= v < height and 0 <= u < width}
    stays = shift == "none" or (shift == "partial" and max(layer.dilation) > 1)
    given = {}
    for i, tap in product(range(per_group), place):
        v, u = place[tap]
        read = float(value[first + i, v, u]) if tap in inside else 0.0
        given[i, tap] = float(layer.weight[c, i, tap[0], tap[1]]) * read * sign
    if published:
        sums = [sum(given[i, tap] for tap in place) for i in range(per_group)]
        channel = max(range(per_group), key=lambda i: (sums[i], i))
        tap = (kh // 2, kw // 2) if stays else max(place, key=lambda t: (given[channel, t], t))
        v, u = place[tap]
        return first + channel, min(max(v, 0), height - 1), min(max(u, 0), width - 1), 1
    if not inside:
        return None
    if select == "channel":
        sums = [sum(given[i, tap] for tap in inside) for i in range(per_group)]
        channel = min(range(per_group), key=lambda i: (-sums[i], i))
        tap = min(inside, key=lambda t: (-given[channel, t], off_centre(t, kh, kw), t))
    else:
        pairs = [(i, t) for i in range(per_group) for t in inside]
        channel, tap = min(pairs, key=lambda p: (-given[p], off_centre(p[1], kh, kw), p[1], p[0]))
    if stays:
        tap = min(inside, key=lambda t: ((t[0] - kh // 2) ** 2 + (t[1] - kw // 2) ** 2, t))
    v, u = place[tap]
    return first + channel, v, u, -1 if value[first + channel, v, u] < 0 else 1


def transposed(layer: nn.ConvTranspose2d, value: Tensor, point: Point, shift: str) -> Point | None:
    """By brute force: what every input, alone, adds to the unit."""
    c, y, x, sign = point
    channels, height, width = value.shape
    kh, kw = layer.kernel_size
    per_group = channels // layer.groups
    per_group_out = layer.out_channels // layer.groups
    first = c // per_group_out * per_group
    given = {}
    for i, v, u in product(range(per_group), range(height), range(width)):
        a, b = y + layer.padding[0] - v * layer.stride[0], x + layer.padding[1] - u * layer.stride[1]
        if a % layer.dilation[0] or b % layer.dilation[1]:
            continue
        a, b = a // layer.dilation[0], b // layer.dilation[1]
        if 0 <= a < kh and 0 <= b < kw:
            weight = float(layer.weight[first + i, c % per_group_out, a, b])
            given[i, (a, b)] = (weight * float(value[first + i, v, u]) * sign, v, u)
    if not given:
        return None
    taps = {tap for _, tap in given}
    sums = [sum(given[i, tap][0] for tap in taps) for i in range(per_group)]
    channel = min(range(per_group), key=lambda i: (-sums[i], i))
    tap = min(taps, key=lambda t: (-given[channel, t][0], off_centre(t, kh, kw), t))
    if shift == "none" or (shift == "partial" and max(layer.dilation) > 1):
        tap = min(taps, key=lambda t: ((t[0] - kh // 2) ** 2 + (t[1] - kw // 2) ** 2, t))
    _, v, u = given[channel, tap]
    return first + channel, v, u, -1 if value[first + channel, v, u] < 0 else 1


def pool(layer: nn.Module, value: Tensor, point: Point, published: bool) -> Point:
    c, y, x, sign = point
    _, height, width = value.shape
    (kh, kw), (sy, sx), (py, px) = pair(layer.kernel_size), pair(layer.stride), pair(layer.padding)
    dy, dx = pair(getattr(layer, "dilation", 1))
    place = {(a, b): (y * sy - py + a * dy, x * sx - px + b * dx) for a, b in product(range(kh), range(kw))}
    inside = [tap for tap, (v, u) in place.items() if 0 <= v < height and 0 <= u < width]
    if published:
        tap = max(place, key=lambda t: (float(value[(c, *place[t])]) if t in inside else 0.0, t))
        v, u = place[tap]
        return c, min(max(v, 0), height - 1), min(max(u, 0), width - 1), 1
    tap = min(inside, key=lambda t: (-sign * float(value[(c, *place[t])]), off_centre(t, kh, kw), t))
    return (c, *place[tap], sign)


def cell(value: Tensor, result: Tensor, point: Point) -> Point:
    c, y, x, sign = point
    ranges = []
    for at, cells, length in zip((y, x), result.shape[1:], value.shape[1:]):
        ranges.append(range(math.floor(at * length / cells), math.ceil((at + 1) * length / cells)))
    v, u = max(product(*ranges), key=lambda p: sign * float(value[(c, *p)]))
    return c, v, u, sign


def resize(layer: nn.Upsample, value: Tensor, result: Tensor, point: Point, published: bool) -> Point:
    """By brute force: what every source pixel of value 1, alone, gives to the unit."""
    c, y, x, sign = point
    _, height, width = value.shape
    if published:
        zoom = (result.shape[1] - 1) / (height - 1) if result.shape[1] > height else 1
        shrink = (height - 1) / (result.shape[1] - 1) if result.shape[1] < height else 1
        return c, int(y // zoom * shrink), int(x // zoom * shrink), 1
    best = (-math.inf, 0, 0)
    for v, u in product(range(height), range(width)):
        one = torch.zeros(1, 1, height, width, dtype=torch.float64)
        one[0, 0, v, u] = 1
        weight = float(layer(one)[0, 0, y, x])
        if weight > best[0] + 1e-9:
            best = (weight, v, u)
    return c, best[1], best[2], sign


def slow_outliers(points: list[tuple[int, int]], size: tuple[int, int]) -> list[bool]:
    """Which of one group's points have fewer than 5 % of them within 2 % of the diagonal."""
    reach = 0.02 * math.hypot(*size)
    near = [sum((a - y) ** 2 + (b - x) ** 2 <= reach * reach for a, b in points) for y, x in points]
    return [count < 0.05 * len(points) for count in near]


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """The convolution that does what `conv` and then `norm` do."""
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    result = nn.Conv2d(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding)
    result = result.to(conv.weight.dtype)
    result.weight.data = conv.weight.data * scale.data[:, None, None, None]
    result.bias.data = (norm.bias + (conv.bias - norm.running_mean) * scale).data
    return result


def off_centre(tap: tuple[int, int], height: int, width: int) -> float:
    return (tap[0] - (height - 1) / 2) ** 2 + (tap[1] - (width - 1) / 2) ** 2


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
