"""Draws docs/idea.png: a sketch of what template similarity does to features. It needs no run.

The points are made up, in two dimensions so that they can be drawn; what moves them is the library's own loss.

python docs/draw_idea.py
"""

import argparse
import io
from functools import partial
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Arc
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from perpixel import template_similarity_loss
from perpixel.data import SyntheticEvidence

IMAGE, EACH, STEPS, RATE = 106, 26, 60, 4.0
COLORS = {"caterpillar": "#b35fe0", "turtle": "#12804a", "cornflower": "#2b50d8"}
ANGLES = (60.0, 105.0, 145.0)  # where the classes lie before, in degrees


def points_of(labels: Tensor, classes: list[int], generator: torch.Generator) -> Tensor:
    """Row and column of some pixels inside every class, (classes, EACH, 2)."""
    inside = [-F.max_pool2d(-(labels == c)[None].float(), 3, stride=1, padding=1)[0] for c in classes]
    places = [found.nonzero() for found in inside]
    return torch.stack([p[torch.randperm(len(p), generator=generator)[:EACH]] for p in places])


def made_up(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Features (1, 2, C, EACH), a row per class, the logits they would have, and labels."""
    center = torch.tensor(ANGLES)[:, None]
    angle = (center + 24 * torch.randn(len(ANGLES), EACH, generator=generator)).deg2rad()
    length = 0.55 + 0.45 * torch.rand(angle.shape, generator=generator)
    features = (length * torch.stack([angle.cos(), angle.sin()]))[None]
    middle = center.deg2rad()
    logits = torch.einsum("ndhw,cd->nchw", features, torch.stack([middle.cos(), middle.sin()], 1)[..., 0])
    labels = torch.arange(len(ANGLES))[None, :, None].expand(1, -1, EACH)
    return features, logits, labels


def similarities(features: Tensor, stars: Tensor) -> tuple[float, float]:
    """Mean cosine similarity to the template of the own class, and to those of the others."""
    units = F.normalize(features[0], dim=0)
    templates = torch.stack([units[:, c, star] for c, star in enumerate(stars.tolist())])
    found = torch.einsum("dhw,cd->chw", units, templates)
    own = torch.eye(len(ANGLES), dtype=torch.bool)
    return float(found[own].mean()), float(found[~own].mean())


def draw_features(axis: Axes, features: Tensor, stars: Tensor, arrows: Tensor | None, title: str) -> None:
    own, other = similarities(features, stars)
    axis.set_title(f"{title}\nsimilarity to the own ★ {own:+.2f}, to the others {other:+.2f}", fontsize=11)
    for radius in (0.5, 1.0):
        axis.add_patch(Arc((0, 0), 2 * radius, 2 * radius, color="#dddddd", lw=1))
    axis.plot(0, 0, "+", color="#888888", markersize=9)
    for c, color in enumerate(COLORS.values()):
        x, y = features[0, :, c]
        if arrows is not None:
            u, v = arrows[0, :, c]
            look = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.006, "headwidth": 5}
            axis.quiver(x, y, u, v, color=color, alpha=0.55, zorder=1, **look)
        axis.scatter(x, y, s=26, color=color, edgecolors="white", linewidths=0.6, zorder=2)
        star = int(stars[c])
        axis.plot([0, x[star]], [0, y[star]], color=color, lw=1.4, zorder=1)
        axis.plot(x[star], y[star], "*", markersize=19, color=color, markeredgecolor="black", zorder=3)
    axis.set(xlim=(-1.42, 1.42), ylim=(-1.2, 1.15), aspect="equal", xticks=[], yticks=[])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("idea.png"))
    options = parser.parse_args()
    generator = torch.Generator().manual_seed(3)
    data = SyntheticEvidence(IMAGE + 1, split="val")
    sample = data[IMAGE]
    places = points_of(sample.labels, [data.classes.index(name) for name in COLORS], generator)
    before, logits, labels = made_up(generator)
    stars = torch.stack([logits[0, c, c].argmax() for c in range(len(ANGLES))])

    loss_of = partial(template_similarity_loss, logits=logits, labels=labels)
    features = before
    for _ in range(STEPS):
        features = features.detach().requires_grad_(True)
        features = features - RATE * torch.autograd.grad(loss_of(features), features)[0]
    features = features.detach()

    figure = Figure(figsize=(13.2, 4.9), dpi=110, layout="constrained", facecolor="white")
    picture, left, right = figure.subplots(1, 3)
    picture.imshow(sample.image.permute(1, 2, 0).clamp(0, 1).numpy())
    for color, of_class, star in zip(COLORS.values(), places, stars.tolist()):
        y, x = of_class.T
        picture.scatter(x, y, s=26, color=color, edgecolors="white", linewidths=0.8)
        picture.plot(x[star], y[star], "*", markersize=19, color=color, markeredgecolor="black")
    picture.set(xticks=[], yticks=[])
    picture.set_title("pixels of three classes;\n★ the surest of each is its template", fontsize=11)
    push = 0.15 * F.normalize(torch.autograd.grad(loss_of(before.requires_grad_(True)), before)[0].neg(), dim=1)
    draw_features(left, before.detach(), stars, push, "their features, and where the loss pushes them:")
    draw_features(right, features, stars, None, f"after {STEPS} steps of the loss alone:")
    marks = [Line2D([], [], ls="", marker="o", color=color, label=name) for name, color in COLORS.items()]
    figure.legend(handles=marks, loc="outside lower left", ncols=3, frameon=False)
    figure.supxlabel(
        "A sketch: the features are made up and have two dimensions; the arrows and the steps are those of "
        "perpixel.template_similarity_loss.",
        fontsize=9.5, color="#444444", x=0.99, ha="right",
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer)
    Image.open(buffer).convert("RGB").quantize(200, dither=Image.Dither.NONE).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
