"""The pictures of a fixation run: one image's fixations, densities and flow, and charts of what was measured."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from perpixel import data
from perpixel.checks import complain
from perpixel.fixations import Fixations, PointMap
from perpixel.report import (
    PointPanel,
    animation_bytes,
    count_chart,
    fixation_backdrop,
    interval_chart,
    on_backdrop,
    picture_bytes,
    point_sheet,
)
from recipes.kit.images import Images
from recipes.tracing.evidence import KINDS, find_trials
from recipes.tracing.settings import SHIFTS, FixationSettings, PictureSettings
from recipes.tracing.subject import Subject
from recipes.training.checkpoints import write_atomically

Row = Mapping[str, Any]
ALL_BUT = 0.98  # a tensor that this share of the mass passes is a step of the flow


def read_picture(images: Images, settings: FixationSettings) -> tuple[Tensor, str]:
    """The normalised image (1, 3, H, W) that the settings name, and its name."""
    chosen, size = settings.picture.image, settings.data.size
    if isinstance(chosen, int):
        if not 0 <= chosen < images.evaluated:
            expected = f"below {images.evaluated}, the number of evaluation images, or a file"
            raise ValueError(complain("picture.image", expected, chosen, "Choose another."))
        _, image, _, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[chosen])))
        return image, f"{settings.data.name} image {chosen}"
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(chosen) as file:
            pixels = torch.frombuffer(
                bytearray((upright := ImageOps.exif_transpose(file).convert("RGB")).tobytes()), dtype=torch.uint8
            )
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(complain("picture.image", "an image file", f"{chosen}: {error}", "Choose another.")) from error
    image = pixels.view(upright.height, upright.width, 3).permute(2, 0, 1).float() / 255
    labels = torch.zeros(image.shape[1:], dtype=torch.int64)
    for transform in ((data.ResizeTo((size[0], size[1])),) if size is not None else ()) + (data.eval_transforms(),):
        image, labels = transform(tv_tensors.Image(image), tv_tensors.Mask(labels))
    return image.as_subclass(Tensor)[None], Path(chosen).name


def classes_to_draw(predicted: Tensor, images: Images, picture: PictureSettings) -> list[int]:
    """Class numbers by pixels predicted, the most first; of the named ones, those predicted."""
    found, count = predicted.unique(return_counts=True)
    order = found[count.argsort(descending=True)].tolist()
    if picture.classes is None:
        return order
    known = {name: number for number, name in enumerate(images.classes)}
    for name in picture.classes:
        if name not in known:
            expected = f"names among {', '.join(known)}"
            raise ValueError(complain("picture.classes", expected, name, "Check the spelling."))
    wanted = {known[name] for name in picture.classes}
    return [c for c in order if c in wanted]


def _panel(title: str, backdrop: Any, points: PointMap, classes: Sequence[int], **more: Any) -> PointPanel:
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


def draw_image(subject: Subject, images: Images, settings: FixationSettings, folder: Path) -> dict[str, Any]:
    """fixations.png, density.png, flow.png, flow.gif of one image; what they show, in numbers."""
    picture, trace = settings.picture, settings.trace
    image, name = read_picture(images, settings)
    predicted = subject.predict(image).cpu()
    shown = classes_to_draw(predicted[0], images, picture)
    start = torch.where(torch.isin(predicted, torch.tensor(shown, dtype=torch.int64)), predicted, -1)
    fix = subject.fixations(image, start, record=True)
    plain = images.displayed(image[0])
    backdrop = fixation_backdrop(plain, predicted[0], images.colors, style=picture.backdrop)
    sheet = partial(point_sheet, classes=images.classes, colors=images.colors)
    asked = "" if trace.question == "class" else ", asked against the rival class"
    title = f"{name}: where the predicted labels rest{asked} ({trace.rules}, shift {trace.shift}, k {trace.k})"
    note = "the larger a dot, the more labelled pixels rest on it"
    each = shown[: picture.most]
    if not shown:
        return {"image": name, "classes": [], "points": 0}
    panels = [_panel("all classes", backdrop, fix, shown)]
    panels += [_panel(images.classes[c], backdrop, fix, [c]) for c in each]
    _save(sheet(panels, title=title, note=note), folder / "fixations.png")
    heat = fix.density().cpu()[0]
    thin = {c: "" if float(heat[c].max()) > 0 else ": too thinly spread" for c in each}
    heated = [_panel(f"{images.classes[c]}{thin[c]}", backdrop, fix, [], heat=heat[c]) for c in each]
    _save(sheet(heated, title=f"{title}: density"), folder / "density.png")
    steps = flow_steps(fix, picture.frames)
    panels = [_panel(f"{n + 1}. {layer}", backdrop, found, shown) for n, (layer, found) in enumerate(steps)]
    _save(sheet(panels, title=f"{title}: through the layers", note=note), folder / "flow.png")
    heaviest = max(float(panel.mass.max()) for panel in panels)
    frames = [sheet([panel], cell=5.2, note=f"{name}{asked}", heaviest=heaviest) for panel in panels]
    write_atomically(folder / "flow.gif", animation_bytes(frames, picture.milliseconds))
    return {
        "image": name,
        "classes": [images.classes[c] for c in shown],
        "points": len(fix.points),
        "started": fix.started,
        "dropped": fix.dropped,
        "through global pooling": sum(fix.jumps.values()),
        "steps": [layer for layer, _ in steps],
    }


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, picture_bytes(figure))


def draw_shares(rows: Sequence[Row], folder: Path, title: str) -> None:
    """shares.png (shift full, beside IoU and chance) and shifts.png (the three shifts)."""
    by_shift = {s: [r for r in rows if r["shift"] == s] for s in SHIFTS}
    names = [r["class"] for r in by_shift["full"]]
    interval = {s: [(r["share"], r["share_low"], r["share_high"]) for r in by_shift[s]] for s in SHIFTS}
    full = by_shift["full"]
    marks = {"chance (the object's share of the image)": [r["chance"] for r in full], "IoU": [r["iou"] for r in full]}
    marks["pixels that start on the object"] = [r["started_on_object"] for r in full]
    unit = "share of the fixations' mass on the object (%)"
    figure = interval_chart(names, {"mass on the object": interval["full"]}, marks=marks, xlabel=unit, title=title)
    _save(figure, folder / "shares.png")
    marks = {"chance": marks["chance (the object's share of the image)"]}
    shown = {f"shift {s}": interval[s] for s in SHIFTS}
    _save(interval_chart(names, shown, marks=marks, xlabel=unit, title=title), folder / "shifts.png")


def draw_counts(rows: Sequence[Row], folder: Path, title: str) -> None:
    """counts.png: K for 10, 50 and 90 % over the layers; by what is ranked, and of which whole."""
    layers = list(dict.fromkeys(r["layer"] for r in rows))
    names = {"element": "single contributions", "channel": "channels"}
    wholes = {"activation": "of the activation", "positive": "of the positive contributions"}
    panels = {
        f"{names[select]}, share {wholes[of]}": {
            f"{share} %": [
                next(
                    (r["median"], r["q25"], r["q75"])
                    for r in rows
                    if (r["layer"], r["select"], r["of"], r["share"]) == (layer, select, of, share)
                )
                for layer in layers
            ]
            for share in (10, 50, 90)
        }
        for select in names
        for of in wholes
    }
    if layers:
        _save(count_chart(layers, panels, title=title), folder / "counts.png")


def draw_evidence(rows: Sequence[Row], folder: Path, title: str) -> None:
    """evidence.png: lift of the mass on the evidence by kind and question, trained beside random weights."""
    known = {(r["kind"], r["question"]) for r in rows}
    kinds = [(kind, question) for kind in KINDS for question in ("class", "rival") if (kind, question) in known]
    networks = list(dict.fromkeys(r["network"] for r in rows))
    gap = (float("nan"),) * 3
    found = {(r["network"], r["kind"], r["question"]): (r["lift"], r["lift_low"], r["lift_high"]) for r in rows}
    series = {n: [found.get((n, *kind), gap) for kind in kinds] for n in networks}
    lowest = 0.05  # a share of nothing has no place on a logarithmic axis
    cut = {n: [tuple(max(v, lowest) for v in values) for values in row] for n, row in series.items()}
    names = [f"{kind}: {question} question" for kind, question in kinds]
    unit = "mass on the evidence, times chance"
    _save(interval_chart(names, cut, xlabel=unit, title=title, log=True, line=1.0), folder / "evidence.png")


def draw_example(
    networks: Mapping[str, Subject],
    rivals: Mapping[int, int],
    images: Images,
    indices: Sequence[int],
    folder: Path,
    settings: FixationSettings,
) -> None:
    """evidence_example.png: far-body pixels of two creatures, under both questions, trained and with random weights."""
    trained = next(iter(networks))
    best: list[tuple[int, Any]] = []
    for i in indices[:24]:
        _, image, _, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[i])))
        labels = networks[trained].predict(image)[0].cpu()
        trials = find_trials(i, images.evaluation_sample(i), labels, images, settings.measure)
        best += [(int(t.start.sum()), t) for t in trials if t.kind == "far body, right"]
    best = sorted(best, key=lambda pair: -pair[0])[:2]
    panels = []
    for _, trial in best:
        _, image, _, _ = next(iter(images.evaluation(batch_size=1, far=0.0, only=[trial.image])))
        plain = images.displayed(image[0])
        backdrop = fixation_backdrop(plain, trial.start.long(), images.colors)
        name, rival = images.classes[trial.label], images.classes[rivals[trial.label]]
        lines = [(trial.start, "#ffffff"), (trial.evidence, "#000000")]
        empty = torch.zeros(0)
        panels.append(PointPanel("white: pixels asked; black: head", backdrop, empty, empty, empty, empty, None, lines))
        asked = [(trained, {}, f"why {name}?"), (trained, rivals, f"why {name}, not {rival}?")]
        asked += [(n, rivals, f"{n.split('#')[0]}: not {rival}?") for n in list(networks)[1:2]]
        for network, question, told in asked:
            start = torch.where(trial.start, trial.label, -1)[None]
            fix = networks[network].asking(question).fixations(image, start)
            panels.append(_panel(told, backdrop, fix, [trial.label], outlines=lines))
    if panels:
        vivid = torch.tensor([[235, 20, 130]], dtype=torch.uint8).expand(images.num_classes, 3)
        note = "the larger a dot, the more of the pixels asked rest on it; creatures with the most such pixels"
        figure = point_sheet(panels, classes=images.classes, colors=vivid, note=note, legend=False)
        _save(figure, folder / "evidence_example.png")
