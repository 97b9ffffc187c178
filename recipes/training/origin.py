"""What a result depends on: kept beside it, and compared before it is used again."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, is_dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from perpixel.checks import complain
from recipes.kit.job import Job
from recipes.training.checkpoints import load_or_compute

Origin = dict[str, Any]  # settings by name, as plain values; "machine": what else the last digits depend on
# What may change: where things lie, how fast they are read, what is told of a result. Weights are compared themselves.
FREE = frozenset(
    ["data.root", "data.workers", "data.cache"]
    + [f"model.{name}" for name in ("weights", "checkpoint", "caffe_pixels", "replace_head")]
    + [f"{part}.{name}" for part in ("evaluation", "measure") for name in ("level", "resamples", "pictures")]
)
MACHINE = "machine."
LATER = {"data.binary": False}  # settings that results of earlier versions do not name, and what held for them


def origin(job: Job, **parts: Any) -> Origin:
    """Data, model, hardware and these `parts`, by name: settings, plain values, or weights (of which a digest)."""
    settings, images = job.settings, job.images
    every = {"data": images.settings, "model": settings.model, "hardware": settings.hardware, **parts}
    found = {name: value for part, one in every.items() for name, value in _flat(part, one) if name not in FREE}
    found["data.options"] = {k: v for k, v in images.settings.options.items() if k != "download"}
    found["data: classes"] = images.classes
    found |= {f"data: {part} files": _fingerprint(*source) for part, source in images.sources.items()}
    device = job.fabric.device
    found[f"{MACHINE}device"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    found |= {f"{MACHINE}{name}": version(name) for name in ("torch", "torchvision", "numpy")}
    return json.loads(json.dumps(found))


def _flat(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
        return ((f"{name}.{key}", one) for key, one in value.items())
    if isinstance(value, Mapping) and value and all(isinstance(one, Tensor) for one in value.values()):
        return ((name, f"weights {digest(value)}"),)
    if isinstance(value, Mapping):
        return ((f"{name}.{key}", one) for key, one in value.items())
    return ((name, value),)


def digest(weights: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and every bit of a state dict."""
    found = hashlib.sha256()
    for name, value in sorted(weights.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _fingerprint(source: Any, count: int) -> str:
    """Names and sizes of the files of the first `count` samples; "none" where a data set is not made of files."""
    found, total = hashlib.sha256(), 0
    for item in getattr(source, "items", ())[:count]:
        for path in _files(item):
            found.update(f"{'/'.join(path.parts[-2:])} {os.stat(path).st_size}\n".encode(errors="surrogateescape"))
            total += 1
    return f"{total} ({found.hexdigest()[:16]})" if total else "none"


def _files(item: Any) -> list[Path]:
    """Image and mask of a sample: a stem with two paths, or a place in a data set of torchvision."""
    if isinstance(item[0], str):
        return [Path(one) for one in item[1:]]
    source, place = item
    columns = (getattr(source, name, None) for name in ("images", "_images", "masks", "targets", "_segs"))
    values = [column[place] for column in columns if column is not None]
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [Path(one) for one in flat if Path(one).is_file()]


def compare(kept: Origin, now: Origin, result: str, report: Callable[[str], None]) -> None:
    """ValueError where a kept result has another origin, naming every difference; another machine is only reported."""
    kept = {name: value for name, value in LATER.items() if name in now} | dict(kept)
    names = [name for name in {**kept, **now} if kept.get(name) != now.get(name)]
    if other := [name for name in names if name.startswith(MACHINE)]:
        was = ", ".join(f"{name.removeprefix(MACHINE)} {kept.get(name)} (now {now.get(name)})" for name in other)
        report(f"note: {result} was computed with {was}: the last digits may differ from an uninterrupted run's")
    if names := [name for name in names if name not in other]:
        before, after = (", ".join(f"{one.get(name)}" for name in names) for one in (kept, now))
        expected = f"{before}, with which {result} was computed"
        remedy = f"Put {'it' if len(names) == 1 else 'them'} back, or begin a new run in another folder."
        raise ValueError(complain(", ".join(names), expected, after, remedy))


def keep(
    path: Path, now: Origin, compute: Callable[[], dict[str, Any]], report: Callable[[str], None]
) -> dict[str, Any]:
    """What `compute` gives, or gave from the same origin before this run was stopped (`load_or_compute`)."""
    found = load_or_compute(path, lambda: {"origin": now, "result": compute()}, report)
    compare(found.get("origin", {}), now, f"{path.parent.name}/{path.name}", report)
    return found["result"]
