"""The explorer's file: what it stores and how exactly, what it costs, what it refuses, and that no text breaks out."""

import contextlib
import itertools
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import explorer_cases as cases
import pytest
import torch

from perpixel.report.explorer.page import ExplorerPage, context_explorer


def write(folder: Path, **changes: Any) -> ExplorerPage:
    return context_explorer(folder / "page.html", **{**cases.case(), **changes})


def test_effects_are_stored_within_half_a_step_of_the_strongest_on_the_same_cell(tmp_path: Path) -> None:
    given = cases.case()
    page = write(tmp_path)
    found = cases.stored_effects(page.path)
    strongest = given["effects"].abs().amax(0)
    off = (found - given["effects"]).abs()
    assert (off <= strongest / 127 / 2 * (1 + 1e-5)).all()
    assert off.max() == pytest.approx(page.error, rel=1e-5)
    assert (page.levels, page.grid, page.classes) == (127, cases.GRID, (0, 1, 2, 3))
    assert page.size == page.path.stat().st_size
    assert "stored to 0.4 %" in cases.payload(page.path)["stored"]
    assert f"±{page.error:.2g} logits" in cases.payload(page.path)["stored"]


def test_logits_are_stored_exactly(tmp_path: Path) -> None:
    given = cases.case()
    stored = cases.payload(write(tmp_path).path)["logits"]["values"]
    assert torch.equal(torch.from_numpy(stored.copy()), given["logits"])


@pytest.mark.slow
def test_file_of_the_promised_size_stays_under_five_megabytes(tmp_path: Path) -> None:
    """A 480 x 360 photograph-like image, 11 classes, patches of 32, a grid of 60 x 45; effects as hard as noise."""
    size, grid = (360, 480), (45, 60)
    given = cases.case(11, size=size, grid=grid, boxes=cases.boxes(size, 32, 32))
    given["image"] = (given["image"] + 0.05 * torch.randn(given["image"].shape)).clamp(0, 1)
    given["effects"] = torch.randn(180, 11, *grid)
    page = context_explorer(tmp_path / "page.html", **given)
    assert page.path.stat().st_size == page.size <= 5_000_000
    assert cases.payload(page.path)["effects"]["shape"][2:] == list(page.grid)


def plan(folder: Path, given: dict[str, Any]) -> Iterator[ExplorerPage]:
    """The pages of ever smaller budgets, until none is small enough."""
    budget: dict[str, int] = {}
    with contextlib.suppress(ValueError):
        for number in itertools.count():
            page = context_explorer(folder / f"{number}.html", **given, **budget)
            budget = {"max_bytes": page.size - 1}
            yield page


def test_a_budget_is_met_in_the_documented_steps_and_the_page_says_what_it_cost(tmp_path: Path) -> None:
    given = cases.case(grid=(48, 64))
    given["logits"] = given["logits"].index_fill(0, torch.tensor(3), -50.0)  # a class that never wins
    pages = list(plan(tmp_path, given))
    found = [(page.grid, page.classes, page.levels) for page in pages]
    all_four, winners = (0, 1, 2, 3), (0, 1, 2)
    assert found[:3] == [((48, 64), all_four, 127), ((48, 64), all_four, 63), ((48, 64), winners, 63)]
    assert found[3:5] == [((48, 64), winners, 31), ((24, 32), winners, 63)]
    assert found[-1][0][0] < 12
    assert [page.size for page in pages] == sorted((page.size for page in pages), reverse=True)
    page = pages[4]
    data = cases.payload(page.path)
    assert "means over 2 × 2 cells" in data["stored"]
    assert "(1 of 4)" in data["stored"]
    back = cases.full_size(cases.stored_effects(page.path))
    off = (back - given["effects"][:, list(page.classes)]).abs().max()
    assert float(off) == pytest.approx(page.error, rel=1e-4)


def test_classes_are_kept_that_some_pixel_gets_or_nearly_gets(tmp_path: Path) -> None:
    given = cases.case(grid=(48, 64), classes=8, seed=3)
    given["logits"][5] -= 4.0  # wins only where hiding a patch gives it the pixel
    given["logits"][6:] -= 50.0  # never, and never second
    page = next(p for p in plan(tmp_path, given) if p.levels == 31)
    expected = set(given["logits"].topk(2, 0).indices.flatten().tolist())
    for effect in given["effects"]:
        expected |= set((given["logits"] - effect).argmax(0).flatten().tolist())
    assert page.classes == tuple(sorted(expected))


def test_a_class_that_wins_everywhere_is_kept_with_its_rival(tmp_path: Path) -> None:
    given = cases.case(grid=(48, 64))
    given["logits"][1] += 100
    given["logits"][[0, 3]] -= 100
    page = next(p for p in plan(tmp_path, given) if p.levels == 31)
    assert page.classes == (1, 2)


def test_a_page_opens_on_a_sure_pixel_inside_the_largest_object_but_the_background(tmp_path: Path) -> None:
    logits = torch.zeros(3, 48, 64)
    logits[0] = 1.0
    logits[1, 5:11, 5:11] = 3.0  # two areas of one class, together larger than the one below
    logits[1, 5:11, 50:56] = 3.0
    logits[2, 20:30, 30:36] = 2.0
    logits[2, 20:30, 30] = 9.0  # surest at its border,
    logits[2, 24, 32] = 2.5  # then here
    given = {"logits": logits, "effects": torch.zeros(12, 3, 48, 64), "classes": ["Background", "a", "b"]}
    assert cases.payload(write(tmp_path, **given).path)["start"] == [24, 32]
    assert cases.payload(write(tmp_path, **given, start=(1, 2)).path)["start"] == [1, 2]
    only = {**given, "logits": logits[:1].repeat(3, 1, 1) * torch.tensor([1.0, 0, 0])[:, None, None]}
    y, x = cases.payload(write(tmp_path, **only).path)["start"]
    assert 0 < y < 47
    assert 0 < x < 63
    thin = {**given, "logits": torch.zeros(3, 48, 64).index_fill(0, torch.tensor(0), 1.0)}
    thin["logits"][1, 7] = 2.0  # a line has no inside
    assert cases.payload(write(tmp_path, **thin).path)["start"][0] == 7


def test_full_size_logits_are_averaged_where_they_alone_would_fill_the_file(tmp_path: Path) -> None:
    given = cases.case()
    given["logits"] = cases.full_size(given["logits"]).float()
    page = context_explorer(tmp_path / "page.html", **given, max_bytes=100_000)
    data = cases.payload(page.path)
    assert page.size <= 100_000
    assert data["logits"]["shape"] == [4, 24, 32]
    assert "Logits are means over 2 × 2 cells." in data["stored"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_and_views_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    given = cases.case()
    effects = given["effects"].to(dtype).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_(True)
    page = write(tmp_path, effects=effects, logits=given["logits"].to(dtype))
    off = (cases.stored_effects(page.path) - effects.detach().float()).abs().max()
    assert float(off) == pytest.approx(page.error, rel=1e-4)


def test_a_byte_image_equals_its_float_form(tmp_path: Path) -> None:
    bytes_image = (cases.case()["image"] * 255).round().to(torch.uint8)
    first = write(tmp_path, image=bytes_image).path.read_bytes()
    assert write(tmp_path, image=bytes_image / 255).path.read_bytes() == first


def test_inputs_are_left_as_they_were(tmp_path: Path) -> None:
    given = cases.case(labels=torch.randint(0, 4, cases.SIZE))
    before = {k: v.clone() for k, v in given.items() if isinstance(v, torch.Tensor)}
    context_explorer(tmp_path / "page.html", **given)
    assert all(torch.equal(given[name], value) for name, value in before.items())


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)


def test_no_text_becomes_markup(tmp_path: Path) -> None:
    plain, hostile = _Elements(), _Elements()
    plain.feed(write(tmp_path, title="a", note="b").path.read_text())
    names = cases.HOSTILE
    page = write(tmp_path, classes=names, title="".join(names), note=names[0])
    text = page.path.read_text(encoding="utf-8")
    hostile.feed(text)
    assert hostile.tags == plain.tags
    assert "\u2028" not in re.search(r'id="data">(.*?)</script>', text, re.S)[1]  # type: ignore[index]
    data = cases.payload(page.path)
    assert (data["classes"], data["title"], data["note"]) == (names, "".join(names), names[0])


def test_text_that_is_no_unicode_still_gives_a_file(tmp_path: Path) -> None:
    page = write(tmp_path, title="a\ud800b", classes=["\ud800", "", "\0", "é"])
    assert b"<h1>a?b</h1>" in page.path.read_bytes()


def test_the_page_forbids_itself_the_network(tmp_path: Path) -> None:
    text = write(tmp_path).path.read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]  # type: ignore[index]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)


def mixing(values: torch.Tensor) -> torch.Tensor:
    full = cases.full_size(values)
    return full + full.flip(3).roll(1, 2)[..., :48].transpose(2, 3).repeat(1, 1, 1, 2)[:, :, :48, :64]


def bending(values: torch.Tensor) -> torch.Tensor:
    return cases.full_size(values) ** 2


NAN = cases.case()["effects"].clone()
NAN[3, 1, 2, 2] = math.nan
BAD = {
    "image of one channel": ({"image": torch.rand(1, 48, 64)}, r"image: expected shape \(3, H, W\)"),
    "batch of images": ({"image": torch.rand(1, 3, 48, 64)}, r"image: expected shape \(3, H, W\)"),
    "normalised image": ({"image": torch.randn(3, 48, 64)}, "denormalize"),
    "image with NaN": ({"image": torch.full((3, 48, 64), math.nan)}, "image: expected finite"),
    "integer image": ({"image": torch.zeros(3, 48, 64, dtype=torch.int64)}, "image"),
    "empty image": ({"image": torch.zeros(3, 0, 64)}, "image: expected at least one value"),
    "effects with NaN": ({"effects": NAN}, r"effects: expected finite values, .* at \(3, 1, 2, 2\), 1 in"),
    "infinite logits": ({"logits": torch.full((4, 7, 9), math.inf)}, "logits: expected finite"),
    "effects of one patch": ({"effects": torch.zeros(4, 7, 9)}, r"effects: expected shape \(patches, C"),
    "no patch": ({"effects": torch.zeros(0, 4, 7, 9)}, "effects: expected at least one value"),
    "classes of effects": ({"effects": torch.zeros(12, 3, 7, 9)}, "effects: expected 4 classes"),
    "one class": (
        {"logits": torch.zeros(1, 7, 9), "effects": torch.zeros(12, 1, 7, 9), "classes": ["a"]},
        "logits: expected two classes or more",
    ),
    "too few names": ({"classes": ["a", "b"]}, "classes: expected 4 names"),
    "one text as names": ({"classes": "abcd"}, "classes: expected 4 names"),
    "numbers as names": ({"classes": [1, 2, 3, 4]}, "classes: expected 4 names"),
    "no patches": ({"boxes": None}, "boxes, segments: expected one of the two, got neither"),
    "both": ({"segments": torch.zeros(48, 64).long()}, "boxes, segments: .* got both"),
    "boxes of other patches": ({"boxes": cases.boxes()[:5]}, r"boxes: expected shape \(12, 4\)"),
    "box outside": ({"boxes": cases.boxes() + 1}, r"boxes: expected 0 <= y0 < y1 <= 48 .* in row 3"),
    "empty box": ({"boxes": torch.zeros(12, 4).long()}, "boxes: expected 0 <= y0 < y1"),
    "float boxes": ({"boxes": cases.boxes().float()}, "boxes: expected an integer dtype"),
    "segments beyond": (
        {"boxes": None, "segments": torch.full((48, 64), 12)},
        "segments: expected values from -1 to 11",
    ),
    "segments of another size": (
        {"boxes": None, "segments": torch.zeros(8, 8).long()},
        r"segments: expected shape \(48, 64\)",
    ),
    "labels beyond": ({"labels": torch.full((48, 64), 9)}, "labels: expected values below 4"),
    "labels of another size": ({"labels": torch.zeros(7, 9).long()}, r"labels: expected shape \(48, 64\)"),
    "short palette": ({"palette": torch.zeros(3, 3).long()}, r"palette: expected \(4, 3\)"),
    "palette beyond": ({"palette": torch.full((4, 3), 256)}, r"palette: .* in \[0, 255\]"),
    "start outside": ({"start": (48, 0)}, "start: expected an integer >= 0 <= 47"),
    "start of one number": ({"start": 3}, r"start: expected \(row, column\)"),
    "upsampling": ({"upsampling": "bicubic"}, "upsampling: expected one of 'bilinear'"),
    "upsampling of another size": ({"upsampling": lambda x: x}, r"upsampling: .* to \(1, 1, 48, 64\)"),
    "upsampling that mixes": ({"upsampling": mixing}, "upsampling: expected a linear map of r"),
    "upsampling that bends": ({"upsampling": bending}, "upsampling: expected a linear map of r"),
    "title": ({"title": 3}, "title: expected a text"),
    "budget": ({"max_bytes": 0}, "max_bytes: expected an integer >= 1"),
    "budget of a page without data": ({"max_bytes": 2000}, "max_bytes: expected at least"),
}
OF_ANOTHER_TYPE = ("integer image", "float boxes", "start of one number", "title")


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_and_nothing_written(tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    with pytest.raises(TypeError if name in OF_ANOTHER_TYPE else ValueError, match=message):
        write(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path: expected a file in a folder that exists"):
        context_explorer(tmp_path / "none" / "page.html", **cases.case())
