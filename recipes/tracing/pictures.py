"""The pictures of one image: fixations class by class, their density, and their way through the layers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from perpixel.fixations import Fixations, PointMap
from perpixel.report import PointPanel, animation_bytes, fixation_backdrop, on_backdrop, point_sheet
from recipes.kit.images import Images
from recipes.kit.run_folder import save_figure, write_atomically
from recipes.kit.summary import Section
from recipes.kit.tables import markdown_text
from recipes.tracing.network import TracedNetwork
from recipes.tracing.run import FixationRun, Report
from recipes.tracing.settings import PictureSettings

ALL_BUT = 0.98  # a tensor that this share of the mass passes is a step of the flow


def report_image(run: FixationRun, network: TracedNetwork) -> Report:
    """fixations.png, density.png, flow.png, flow.gif of one image; what they show, in numbers."""
    picture, trace, images, folder = run.settings.picture, run.settings.trace, run.images, run.folder
    image, name = images.picture(picture.image)
    predicted = network.predict(image).cpu()
    shown = classes_to_draw(predicted[0], images, picture)
    if not shown:
        section = Section(markdown_text(name), ["- None of the classes to draw is predicted there."])
        return Report([section], {"image": name, "classes": [], "points": 0})
    start = torch.where(torch.isin(predicted, torch.tensor(shown, dtype=torch.int64)), predicted, -1)
    fix = network.fixations(image, start, record=True)
    backdrop = fixation_backdrop(images.displayed(image[0]), predicted[0], images.colors, style=picture.backdrop)
    sheet = partial(point_sheet, classes=images.classes, colors=images.colors)
    asked = "" if trace.question == "class" else ", asked against the rival class"
    title = f"{name}: where the labels rest{asked}"
    how = f"traced by {trace.rules} rules, shift {trace.shift}, k {trace.k}"
    note = f"the larger a dot, the more labelled pixels rest on it; {how}"
    each = shown[: picture.most]

    panels = [point_panel("all classes", backdrop, fix, shown)]
    panels += [point_panel(images.classes[c], backdrop, fix, [c]) for c in each]
    save_figure(folder / "fixations.png", sheet(panels, title=title, note=note))
    heat = fix.density().cpu()[0]
    thin = {c: "" if float(heat[c].max()) > 0 else ": too thinly spread" for c in each}
    panels = [point_panel(f"{images.classes[c]}{thin[c]}", backdrop, fix, [], heat=heat[c]) for c in each]
    save_figure(folder / "density.png", sheet(panels, title=f"{title}: density", note=how))
    steps = flow_steps(fix, picture.frames)
    panels = [point_panel(f"{n + 1}. {layer}", backdrop, found, shown) for n, (layer, found) in enumerate(steps)]
    save_figure(folder / "flow.png", sheet(panels, title=f"{title}: through the layers", note=note))
    heaviest = max(float(panel.mass.max()) for panel in panels)
    frames = [sheet([panel], cell=5.2, note=f"{name}{asked}", heaviest=heaviest) for panel in panels]
    write_atomically(folder / "flow.gif", animation_bytes(frames, picture.milliseconds))

    jumped = sum(fix.jumps.values())
    lines = [
        f"- {fix.started:.0f} labelled pixels rest on {len(fix.points)} points (one per class and channel); lost on "
        f"the way: {fix.dropped:.0f}; through a global pooling: {jumped:.0f}."
    ]
    files = {
        "fixations.png": "the points, all classes and one by one",
        "density.png": "how densely the labels of a class rest where",
        "flow.png": "the points on their way through the layers, from the output to the image",
        "flow.gif": "the same, moving",
    }
    section = Section(f"{markdown_text(name)}: where its labels rest", lines, pictures=files)
    numbers = {"image": name, "classes": [images.classes[c] for c in shown], "points": len(fix.points)}
    numbers |= {"started": fix.started, "dropped": fix.dropped, "through global pooling": jumped}
    return Report([section], numbers | {"steps": [layer for layer, _ in steps]})


def classes_to_draw(predicted: Tensor, images: Images, picture: PictureSettings) -> list[int]:
    """Class numbers by pixels predicted, the most first; of the named ones, or of all but the background."""
    found, count = predicted.unique(return_counts=True)
    order = found[count.argsort(descending=True)].tolist()
    if picture.classes is None:
        return [c for c in order if images.classes[c] != "background"] or order
    wanted = images.class_numbers(picture.classes, "picture.classes")
    return [c for c in order if c in wanted]


def point_panel(title: str, backdrop: Any, points: PointMap, classes: Sequence[int], **more: Any) -> PointPanel:
    """The points of these classes, on the backdrop; of one image, wherever they were recorded."""
    mine = torch.isin(points.points[:, 1], torch.tensor(list(classes), device=points.points.device))
    _, label, _, y, x = points.points[mine].cpu().unbind(1)
    height, width = backdrop.shape[:2]
    y, x = on_backdrop(y, points.size[0], height), on_backdrop(x, points.size[1], width)
    place, back = torch.unique(torch.stack([label.double(), y, x], 1), dim=0, return_inverse=True)
    mass = torch.zeros(len(place), dtype=torch.float64).index_add_(0, back, points.mass[mine].cpu())
    return PointPanel(title, backdrop, place[:, 0].long(), place[:, 1], place[:, 2], mass, **more)


def flow_steps(fix: Fixations, most: int) -> list[tuple[str, PointMap]]:
    """Tensors that all points pass, from the output to the image, without those where nothing moved; at most `most`."""
    steps: list[tuple[str, PointMap]] = []
    last: Tensor | None = None
    total = float(fix.mass.sum())
    for name, found in fix.layers.items():
        height, width = found.size
        if float(found.mass.sum()) < ALL_BUT * total or height * width == 1:
            continue
        _, label, _, y, x = found.points.unbind(1)
        keys = [label.double(), on_backdrop(y, height, fix.size[0]), on_backdrop(x, width, fix.size[1])]
        places = torch.unique(torch.stack(keys, 1), dim=0)
        if last is None or last.shape != places.shape or not torch.equal(last, places):
            layer = "output" if not steps else fix.nodes.get(name, name)
            steps.append((f"{layer} ({height}×{width})", found))
        last = places
    if steps:
        steps[-1] = ("the image", fix)
    if len(steps) > most:
        steps = [steps[round(i * (len(steps) - 1) / (most - 1))] for i in range(most)]
    return steps
