"""What one sees when fixations are printed."""

import torch
from torch import Tensor

from perpixel.fixations import Fixations
from perpixel.fixations.result import PointMap


def points(labels: list[int], images: int = 2) -> Tensor:
    """One point per label, at image and place of its number."""
    return torch.tensor([[n % images, label, 0, n, n] for n, label in enumerate(labels)], dtype=torch.int64).view(-1, 5)


def fix(labels: list[int], mass: list[float], classes: int, **other: object) -> Fixations:
    on = {"points": points(labels), "mass": torch.tensor(mass).double(), "sign": torch.ones(len(labels)).long()}
    nothing: dict[str, object] = {key: {} for key in ("dropped_at", "capped", "jumps", "layers", "nodes")} | {
        "dropped": 0.0
    }
    given = {**on, "size": (12, 10), "images": 2, "classes": classes, "started": 240.0, **nothing, **other}
    return Fixations(**given)


def test_printed_with_what_was_lost_and_the_labels_by_mass() -> None:
    found = fix(
        [1, 3, 3], [60.0, 100.0, 50.0], 4, dropped=30.0, dropped_at={"conv": 5.9, "pool": 24.1}, capped={"pool": 0.1}
    )
    assert repr(found).splitlines() == [
        "Fixations: 3 points in 2 images of 12x10, labels 0 to 3",
        "  started 240 output pixels; dropped 12.5% of it, most at 'pool' (10.0%); cut by the cap <0.1%",
        "  mass 210: label 3 71.4%, label 1 28.6%",
    ]


def test_printed_with_hundreds_of_classes_and_recorded_layers() -> None:
    layer = PointMap(points([5]), torch.ones(1).double(), torch.ones(1).long(), (6, 5), 2, 300)
    mass = [float(label + 1) for label in range(300)]
    found = fix(list(range(300)), mass, 300, jumps={"pool": 60.0}, layers={"conv": layer})
    assert repr(found).splitlines()[2:] == [
        "  mass 45150: label 299 0.7%, label 298 0.7%, label 297 0.7%, label 296 0.7%, label 295 0.7%, 295 more",
        "  through global pooling 25.0%, which may go anywhere in the map",
        "  recorded on 1 tensor: .on(layer)",
    ]
    assert repr(layer) == "PointMap: 1 point in 2 images of 6x5, labels 0 to 299\n  mass 1: label 5 100.0%"


def test_printed_without_a_point() -> None:
    lines = repr(fix([], [], 4, started=0.0)).splitlines()
    assert lines[1:] == ["  started 0 output pixels; dropped 0.0% of it; cut by the cap 0.0%", "  no mass"]
