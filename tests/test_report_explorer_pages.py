"""Explorers of other pictures in a real headless Chromium: upsampling, segments, names, few classes, old browsers."""

from pathlib import Path
from typing import Any

import explorer_cases as cases
import pytest
import torch
from explorer_cases import LABELS, pixel
from torch import Tensor
from torch.nn import functional as F

from perpixel.report import ExplorerPage, context_explorer

pytest.importorskip("playwright.sync_api")
pytest_plugins = ["explorer_browser"]


def test_overlapping_patches_are_painted_by_their_mean(opener: Any, tmp_path: Path) -> None:
    given = cases.case(boxes=torch.tensor([(0, 0, 48, 40), (0, 20, 48, 64)]))
    start = (24, 30)
    label = int(cases.full_size(given["logits"])[:, start[0], start[1]].argmax())
    for patch, effect in enumerate((1.0, -0.5)):
        given["effects"][patch] = 0
        given["effects"][patch, label] = effect  # small, so that the rival stays the same
    given["logits"][label] += 5
    given["start"] = start
    tab = opener(context_explorer(tmp_path / "page.html", **given))
    picture = tab.pixels("#context").float()
    warmth = (picture[..., 0] - picture[..., 2]).mean(0)
    assert tab.value("#high") == pytest.approx(1)
    assert warmth[:20].mean() == pytest.approx(0.92 * 230, abs=2)
    assert warmth[20:40].mean() == pytest.approx(0.92 * 230 * 0.25, abs=2)
    assert warmth[40:].mean() == pytest.approx(-0.92 * 204 * 0.5, abs=2)
    assert tab.text("#supporters data") == "+1.00"


def in_two_steps(values: Tensor) -> Tensor:
    half = F.interpolate(values, size=(20, 30), mode="bicubic", align_corners=False)
    return F.interpolate(half, size=cases.SIZE, mode="bilinear", align_corners=True)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("bilinear_aligned", {"mode": "bilinear", "align_corners": True}),
        ("nearest", {"mode": "nearest"}),
        (in_two_steps, None),
    ],
)
def test_other_upsamplings(opener: Any, tmp_path: Path, name: Any, mode: Any) -> None:
    given = cases.case()
    tab = opener(context_explorer(tmp_path / "page.html", **given, upsampling=name, start=(13, 46)))
    if mode is None:
        logits, effects = in_two_steps(given["logits"][None].double())[0], in_two_steps(given["effects"].double())
    else:
        logits, effects = (cases.full_size(given[key], **mode) for key in ("logits", "effects"))
    assert torch.equal(tab.labels(), logits.argmax(0))
    label = int(logits[:, 13, 46].argmax())
    assert tab.text("#headline") == f"{cases.CLASSES[label]}column 46, row 13"
    before = cases.means(logits, pixel(13, 46), label)["margin"]
    for patch, effect in tab.patches().items():
        after = cases.means(logits - effects[patch], pixel(13, 46), label)["margin"]
        assert effect == pytest.approx(before - after, abs=2 * tab.error)


def test_segments_answer_as_boxes_do_and_may_leave_pixels_out(opener: Any, tmp_path: Path) -> None:
    segments = torch.full(cases.SIZE, -1)
    for number, (y0, x0, y1, x1) in enumerate(cases.boxes().tolist()):
        segments[y0 : y1 - 2, x0:x1] = number
    given = {**cases.case(), "boxes": None, "segments": segments}
    tab = opener(context_explorer(tmp_path / "page.html", **given))
    tab.click(10, 33)
    tab.check_answer(pixel(10, 33))
    picture = tab.pixels("#context")
    left_out = picture[segments < 0]
    assert int((left_out.amax(1) - left_out.amin(1)).max()) == 0  # grey
    tab.press_button("#preview")
    assert tab.text("#supporters .where") in ("covers the pixel", *(f"{n} px away" for n in range(80)))
    assert tab.text("#labels-caption") == "Labels with segment 1 hidden"
    assert "orange segments speak for" in tab.text("#help")


def test_hostile_names_are_shown_as_they_are(opener: Any, tmp_path: Path) -> None:
    names = cases.HOSTILE
    given = cases.case(title=f"<b>{names[0]}", note=names[3])
    tab = opener(context_explorer(tmp_path / "page.html", **{**given, "classes": names}))
    for c in LABELS.unique().tolist():
        tab.press_button(f"#classes [data-class='{c}']")
        assert tab.text("#headline .name") == names[c]
        assert tab.text("#towards") == names[c]
    assert tab.run("document.title") == f"<b>{names[0]}"
    assert tab.text("h1") == f"<b>{names[0]}"
    assert tab.text("#note") == names[3]
    options = tab.run("[...document.querySelector('#why').options].map(o => o.text)")
    assert [" ".join(o.split()) for o in options] == [" ".join(n.split()) for n in names]
    assert tab.run("document.querySelectorAll('img, b:not(.for):not(.against)').length") == 0


def test_two_classes_one_patch_and_an_absent_class(opener: Any, tmp_path: Path) -> None:
    given = cases.case(2, boxes=torch.tensor([(0, 0, 20, 20)]))
    given["logits"] = torch.stack([torch.zeros(cases.GRID), torch.ones(cases.GRID)])
    given["effects"] = torch.tensor([0.25, -0.25])[None, :, None, None].expand(1, 2, *cases.GRID)
    tab = opener(context_explorer(tmp_path / "page.html", **given))
    assert tab.text("#absent") == "Nothing here is labelled road."
    assert tab.text("#supporters") == "No patch supports it."
    assert tab.text("#opponents data") == "−0.50"  # of the margin: of two classes the difference
    assert tab.text("#hidden-title") == "nothing to hide"
    assert not tab.page.locator("#rival").is_visible()
    assert not tab.page.locator("#logit").is_visible()
    assert tab.run("document.querySelector('#preview').disabled")
    tab.press_button("#classes button")
    assert tab.value("#margin") == 1


def test_margins_of_very_many_pixels_are_taken_at_some_of_them_and_the_page_says_so(
    opener: Any, tmp_path: Path
) -> None:
    given = cases.case(26, boxes=cases.boxes(cases.SIZE, 16, 4))
    given["logits"][3] += 100  # one class has all pixels
    tab = opener(context_explorer(tmp_path / "page.html", **given))
    tab.press_button("#classes button")
    assert tab.text("#measure") == "margin lost with each patch hidden, at one pixel in 2"
    some = torch.zeros(cases.SIZE, dtype=torch.bool)
    some.view(-1)[::2] = True
    logits = cases.full_size(given["logits"])
    before = cases.means(logits, some, 3)["margin"]
    for patch, effect in tab.patches().items():
        after = cases.means(logits - cases.full_size(given["effects"][patch]), some, 3)["margin"]
        assert effect == pytest.approx(before - after, abs=2 * tab.error)


def test_no_effect_at_all(opener: Any, tmp_path: Path) -> None:
    given = cases.case()
    given["effects"].zero_()
    tab = opener(context_explorer(tmp_path / "page.html", **given))
    assert (tab.text("#low"), tab.text("#high")) == ("0", "0")
    assert tab.text("#opponents") == "No patch speaks against it."
    picture = tab.pixels("#context")
    assert int((picture.amax(-1) - picture.amin(-1)).max()) == 0


def test_classes_left_out_for_space_cannot_be_asked_about(opener: Any, tmp_path: Path) -> None:
    given = cases.case(grid=(48, 64))
    given["logits"][3] = -50
    size = context_explorer(tmp_path / "page.html", **given).size
    page = context_explorer(tmp_path / "page.html", **given, max_bytes=int(size * 0.6))
    assert page.classes == (0, 1, 2)
    tab = opener(page)
    assert tab.run("[...document.querySelector('#why').options].map(o => o.disabled)") == [False] * 3 + [True]
    assert "(1 of 4)" in tab.text("#stored")
    assert torch.equal(tab.labels(), given["logits"].argmax(0))
    assert tab.patches()


def test_an_old_browser_is_named_as_the_cause(browser: Any, page: ExplorerPage) -> None:
    from explorer_browser import ExplorerTab

    tab = ExplorerTab(browser)
    tab.context.add_init_script("delete window.DecompressionStream")
    tab.open(page)
    assert "it needs Chrome or Edge 80" in tab.text("#status")
    assert any("it needs Chrome or Edge 80" in text for text in tab.complaints)
