"""Draws docs/idea.png, the README's first picture, from a finished run of the default recipe.

python docs/draw_idea.py runs/NAME [--image 88] [--of viper]
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from matplotlib.patheffects import withStroke
from torch.nn import functional as F

from perpixel.data import SyntheticEvidence, denormalize, eval_transforms
from perpixel.models import small_fcn

PULL, PUSH, STAR = "#2fb344", "#e03131", "#ffd43b"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--image", type=int, default=88)
    parser.add_argument("--of", default="viper", help="class whose template is shown")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("idea.png"))
    options = parser.parse_args()
    data = SyntheticEvidence(options.image + 1, split="val", transforms=eval_transforms())
    sample = data[options.image]
    picture_shown = denormalize(sample.image).permute(1, 2, 0).clamp(0, 1).numpy()
    chosen = data.classes.index(options.of)
    if not bool((sample.labels == chosen).any()):
        shown = ", ".join(data.classes[c] for c in sample.labels.unique())
        parser.error(f"--of: image {options.image} has no {options.of}, only {shown}")

    figure = Figure(figsize=(13.2, 3.9), dpi=110, layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3)
    for axis, arm in zip(axes[1:], ("control", "loss")):
        model = small_fcn(data.num_classes)
        model.load_state_dict(torch.load(options.run / "seed0" / arm / "last.pt", weights_only=True)["model"])
        model.eval()
        with torch.no_grad():
            features, logits = model.context(model.stem(sample.image[None])), model(sample.image[None])
        own = torch.where(sample.labels == chosen, logits[0, chosen], -torch.inf)
        y, x = divmod(int(own.argmax()), own.shape[1])
        template = features[0, :, y // 4, x // 4]
        similarity = F.cosine_similarity(features[0], template[:, None, None], dim=0)
        picture = axis.imshow(
            F.interpolate(similarity[None, None], size=own.shape, mode="bilinear")[0, 0], cmap="magma", vmin=0, vmax=1
        )
        axis.plot(x, y, marker="*", markersize=17, color=STAR, markeredgecolor="black")
        on_grid = sample.labels[2::4, 2::4]
        same, other = similarity[on_grid == chosen].mean(), similarity[(on_grid != chosen) & (on_grid > 0)].mean()
        name = "cross-entropy alone" if arm == "control" else "with the loss"
        axis.set_title(f"similarity to ★, {name}\n{options.of} {same:.2f}, other creatures {other:.2f}", fontsize=11)
        star = (x, y)
    figure.colorbar(picture, ax=axes[1:], shrink=0.85, label="cosine similarity")

    axes[0].imshow(picture_shown)
    axes[0].set_title(f"pull the {options.of}'s pixels to its surest one,\npush the others away", fontsize=11)
    generator = np.random.default_rng(1)
    for mask, color, count in (
        (sample.labels == chosen, PULL, 5),
        ((sample.labels != chosen) & (sample.labels > 0), PUSH, 8),
    ):
        places = mask.nonzero().numpy()
        far = places[np.hypot(*(places - (star[1], star[0])).T) > 14]
        for py, px in far[generator.choice(len(far), min(count, len(far)), replace=False)]:
            away = np.subtract((px, py), star) / np.hypot(px - star[0], py - star[1])
            end = star if color == PULL else tuple((px, py) + 14 * away)
            arrow = FancyArrowPatch((px, py), end, arrowstyle="-|>", mutation_scale=15, color=color, lw=2.4, shrinkB=8)
            arrow.set_path_effects([withStroke(linewidth=4.2, foreground="white")])
            axes[0].add_patch(arrow)
    axes[0].plot(*star, marker="*", markersize=19, color=STAR, markeredgecolor="black")
    axes[0].set_xlim(-0.5, picture_shown.shape[1] - 0.5)
    axes[0].set_ylim(picture_shown.shape[0] - 0.5, -0.5)
    for axis in axes:
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(options.out)


if __name__ == "__main__":
    main()
