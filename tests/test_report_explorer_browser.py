"""The explorer in a real headless Chromium: what it answers equals the arrays, by mouse, touch and keys alone."""

import re
from typing import TYPE_CHECKING, Any

import explorer_cases as cases
import pytest
import torch
from explorer_cases import EFFECTS, LABELS, LOGITS, pixel
from matplotlib.colors import to_rgb

from perpixel.report import ExplorerPage, theme

if TYPE_CHECKING:
    from explorer_browser import ExplorerTab

pytest.importorskip("playwright.sync_api")
pytest_plugins = ["explorer_browser"]
HEIGHT, WIDTH = cases.SIZE


@pytest.mark.parametrize("stage", ["#stage", "#context-stage"])
def test_hovering_shows_logit_margin_patches_and_the_label_without_the_strongest(
    tab: "ExplorerTab", stage: str
) -> None:
    for y, x in ((0, 0), (47, 63), (10, 33), (29, 5)):
        tab.hover(y, x, stage)
        label = int(LABELS[y, x])
        assert tab.text("#headline") == f"{cases.CLASSES[label]}column {x}, row {y}"
        tab.check_answer(pixel(y, x), label)
        assert not tab.pinned()


def test_labels_and_patches_are_painted_orange_in_support_and_blue_against(tab: "ExplorerTab") -> None:
    assert torch.equal(tab.labels(), LABELS)
    tab.hover(10, 33)
    margin = cases.means(LOGITS, pixel(10, 33), int(LABELS[10, 33]))["margin"]
    effects = torch.tensor(
        [margin - cases.means(LOGITS - e, pixel(10, 33), int(LABELS[10, 33]))["margin"] for e in EFFECTS]
    )
    top = tab.value("#high")
    assert top == pytest.approx(float(effects.abs().max()), abs=2 * tab.error)
    assert tab.value("#low") == -top
    picture = tab.pixels("#context").float()
    bar = tab.pixels("#gradient")[0].float()
    ends = (255 * torch.tensor([to_rgb(theme.AGAINST), to_rgb(theme.FOR)]) - 140) * 0.92 + 140  # as in the charts
    assert bar[0].tolist() == pytest.approx(ends[0].tolist(), abs=2)
    assert bar[-1].tolist() == pytest.approx(ends[1].tolist(), abs=2)
    assert torch.equal(bar[120], torch.full((3,), 140.0))
    for (y0, x0, y1, x1), effect in zip(cases.boxes().tolist(), effects.tolist()):
        inside = picture[y0:y1, x0:x1].mean((0, 1))
        warmth = float(inside[0] - inside[2])
        expected = 0.92 * abs(effect) / top * (230 if effect > 0 else -204)
        assert warmth == pytest.approx(expected, abs=3 + 204 * 2 * tab.error / top)


def test_a_click_keeps_the_answer_until_released(tab: "ExplorerTab") -> None:
    tab.click(10, 33)
    shown = tab.text("#headline")
    tab.hover(40, 5)
    assert tab.pinned()
    assert tab.text("#headline") == shown
    tab.press("Escape")
    assert not tab.pinned()
    tab.hover(40, 5)
    assert "column 5, row 40" in tab.text("#headline")
    tab.click(40, 5)
    tab.press_button("#release")
    assert not tab.pinned()
    assert tab.run("document.activeElement.id") == "stage"


def test_a_class_asks_about_all_its_pixels(tab: "ExplorerTab") -> None:
    for c in LABELS.unique().tolist():
        tab.press_button(f"#classes [data-class='{c}']")
        tab.check_answer(c == LABELS, c)
        assert tab.text("#context-caption") == f"Why {cases.CLASSES[c]}?"
    pressed = "[...document.querySelectorAll('#classes [aria-pressed=true]')].map(b => Number(b.dataset.class))"
    assert tab.run(pressed) == [c]
    tab.press_button(f"#classes [data-class='{c}']")
    assert tab.run(pressed) == []
    assert not tab.pinned()


def test_dragging_asks_about_a_rectangle(tab: "ExplorerTab") -> None:
    tab.drag(tab.point(30, 50), tab.point(20, 40), tab.point(12, 21))
    region = torch.zeros(cases.SIZE, dtype=torch.bool)
    region[12:31, 21:51] = True
    assert tab.text("#headline").endswith(f"rectangle, {int(region.sum())} px")
    tab.check_answer(region)
    assert tab.pinned()


def test_a_lasso_asks_about_the_pixels_inside(tab: "ExplorerTab") -> None:
    tab.press_button("#tools label:nth-of-type(3)")
    corners = [(8.2, 10.3), (6.1, 50.2), (40.3, 45.1), (20.2, 30.4), (44.1, 12.3)]  # no edge through a centre
    points = [tab.point(*corner) for corner in corners]
    tab.drag(*points)
    left, top = tab.point(-0.5, -0.5)
    right, bottom = tab.point(HEIGHT - 0.5, WIDTH - 0.5)
    polygon = [((x - left) * WIDTH / (right - left), (y - top) * HEIGHT / (bottom - top)) for x, y in points]
    region = cases.inside_polygon(polygon, cases.SIZE)
    found = re.search(r"drawn region, (\d+) px", tab.text("#headline"))
    assert found
    assert int(found[1]) == int(region.sum())
    tab.check_answer(region)


def test_another_class_and_a_rival_can_be_asked_for(tab: "ExplorerTab") -> None:
    tab.click(10, 33)
    label = int(LABELS[10, 33])
    why, rival = [c for c in range(4) if c != label][:2]
    tab.page.select_option("#why", value=str(why))
    tab.check_answer(pixel(10, 33), why)
    assert tab.value("#margin") < 0
    tab.page.select_option("#rival", value=str(rival))
    tab.check_answer(pixel(10, 33), why, rival)
    assert tab.text("#context-caption") == f"Why {cases.CLASSES[why]} rather than {cases.CLASSES[rival]}?"
    tab.page.select_option("#rival", value="logit")
    tab.check_answer(pixel(10, 33), why, "logit")
    assert tab.text("#measure") == "logit lost with each patch hidden"
    tab.page.select_option("#rival", value="")
    tab.check_answer(pixel(10, 33), why)
    assert tab.text("#measure") == "margin lost with each patch hidden"


def test_with_an_answer_kept_the_patch_under_the_pointer_is_hidden(tab: "ExplorerTab") -> None:
    tab.click(10, 33)
    label = int(LABELS[10, 33])
    shown = tab.patches()
    for y, x, stage in ((40, 5, "#stage"), (20, 60, "#context-stage")):
        tab.hover(y, x, stage)
        patch = next(i for i, (a, b, c, d) in enumerate(cases.boxes().tolist()) if a <= y < c and b <= x < d)
        after = cases.means(LOGITS - EFFECTS[patch], pixel(10, 33), label)
        assert tab.value("#margin-after") == pytest.approx(after["margin"], abs=2 * tab.error)
        assert int(tab.run("JSON.parse(document.querySelector('#verdict').dataset.classes)[0]")) == int(
            (LOGITS - EFFECTS[patch])[:, 10, 33].argmax()
        )
        assert tab.patches() == shown
        badge = "ABC"[list(shown).index(patch) - 3] if patch in list(shown)[3:] else None
        expected = f"patch {badge or list(shown).index(patch) + 1}" if patch in shown else "this patch"
        assert tab.text("#hidden-title") == f"if {expected} is hidden"
    tab.page.mouse.move(1, 1)
    tab.settle()
    assert tab.text("#hidden-title") == "if patch 1 is hidden"
    tab.check_answer(pixel(10, 33), label)


def test_the_picture_can_be_seen_with_a_patch_hidden(tab: "ExplorerTab") -> None:
    tab.click(10, 33)
    for selector, patch in (("#preview", next(iter(tab.patches()))), ("#opponents .patch", list(tab.patches())[3])):
        tab.press_button(selector)
        expected = LOGITS - EFFECTS[patch]
        best = expected.topk(2, 0).values
        sure = best[0] - best[1] > 2 * tab.error
        assert torch.equal(tab.labels()[sure], expected.argmax(0)[sure])
        changed = float((expected.argmax(0) != LABELS).double().mean())
        assert f"{int(100 * changed + 0.5)} % of the picture" in tab.text("#changed")
    assert tab.text("#labels-caption") == "Labels with patch A hidden"
    tab.press_button("#opponents .patch")
    assert torch.equal(tab.labels(), LABELS)


def test_the_truth_can_be_shown(tab: "ExplorerTab") -> None:
    truth = LABELS.clone()
    truth[:, :20] = 2
    tab.hover(30, 5)
    wrong = int(LABELS[30, 5]) != 2
    assert tab.text("#was") == ("truth: car ✗ wrong" if wrong else "truth: car ✓ right")
    tab.hover(2, 2)
    assert tab.text("#was") == "truth: void"
    region = LABELS == 1
    valid = region & (torch.arange(HEIGHT) >= 5)[:, None]
    right = float((truth == 1)[valid].double().mean())
    tab.press_button("#classes [data-class='1']")
    assert tab.text("#was") == f"{int(100 * right + 0.5)} % of its pixels are labelled right"
    tab.press("Escape")
    tab.press_button("#truth")
    tab.opaque()
    assert tab.text("#labels-caption") == "Truth"
    assert torch.equal(tab.pixels("#labels")[5:], tab.palette()[truth[5:]])


def test_the_scale_can_be_held(tab: "ExplorerTab") -> None:
    tab.hover(10, 33)
    held = tab.value("#high")
    tab.press_button("#hold")
    tab.hover(40, 5)
    assert tab.value("#high") == held
    tab.press_button("#hold")
    tab.hover(40, 6)
    assert tab.value("#high") != held


def test_keys_alone_reach_everything(tab: "ExplorerTab", page: ExplorerPage) -> None:
    tab.press("Tab")
    assert tab.run("document.activeElement.id") == "stage"
    assert tab.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    step_y, step_x = round(HEIGHT / cases.GRID[0]), round(WIDTH / cases.GRID[1])
    y, x = cases.payload(page.path)["start"]
    moves = {"ArrowLeft": (0, -step_x), "ArrowUp": (-step_y, 0), "Alt+ArrowRight": (0, 1), "Alt+ArrowDown": (1, 0)}
    for key, (dy, dx) in moves.items():
        tab.press(key)
        y, x = y + dy, x + dx
        assert tab.text("#headline").endswith(f"column {x}, row {y}")
    label = cases.CLASSES[int(LABELS[y, x])]
    assert tab.text("#live").startswith(f"Column {x}, row {y}: {label}. Why {label}: probability ")
    assert "If patch 1 is hidden: " in tab.text("#live")
    tab.press("Enter")
    assert tab.pinned()
    tab.press("h")
    assert tab.text("#labels-caption") == "Labels with patch 1 hidden"
    tab.press("Escape")
    assert not tab.pinned()
    assert tab.text("#labels-caption") == "Labels"
    for _ in range(2):
        tab.press("Shift+ArrowRight")
    tab.press("Shift+ArrowDown")
    region = torch.zeros(cases.SIZE, dtype=torch.bool)
    region[y : y + step_y + 1, x : x + 2 * step_x + 1] = True
    tab.check_answer(region)
    name = "(e => e.id || e.name || e.dataset.patch || e.dataset.class || e.tagName)(document.activeElement)"
    order = []
    while len(order) < 40 and order[-1:] != ["stage"]:
        tab.press("Tab")
        order.append(tab.run(name))
    for control in ("opacity", "hold", "tool", "release", "why", "rival", "preview", "SUMMARY"):
        assert control in order
    assert order.index("why") < order.index("preview") < order.index("SUMMARY")
    tab.run("document.querySelector('#stage').focus()")
    for _ in range(9):
        tab.press("ArrowUp")
        tab.press("ArrowLeft")
    assert tab.text("#headline").endswith("column 0, row 0")  # the cursor stays on the picture


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling_and_a_tap_keeps_the_answer(
    opener: Any, page: ExplorerPage, dark: bool
) -> None:
    screen = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}
    tab = opener(page, **screen, color_scheme="dark" if dark else "light")
    assert tab.run("document.documentElement.scrollWidth") == 390
    outside = (
        "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('svg, .quiet, #live') && "
        "e.getBoundingClientRect().width > 1 && e.getBoundingClientRect().right > 390.5).map(e => e.id || e.className)"
    )
    assert tab.run(outside) == []
    tab.touch(tab.point(10, 33, "#context-stage"))
    assert tab.pinned()
    tab.check_answer(pixel(10, 33))
    ground = [int(v) for v in re.findall(r"\d+", tab.run("getComputedStyle(document.body).backgroundColor"))]
    assert (sum(ground) < 150) == dark
    tab.press_button("#tools label:nth-of-type(2)")
    tab.touch(*(tab.point(y, x, "#context-stage") for y, x in ((20, 20), (25, 30), (30, 40))))
    assert tab.text("#headline").endswith(f"rectangle, {11 * 21} px")
    assert not tab.page.locator("#stage").is_visible()
    tab.press_button("#preview")  # what changes are the labels
    assert tab.page.locator("#stage").is_visible()
    assert tab.page.locator("input[value=labels]").is_checked()
    tab.run("scrollTo(0, document.body.scrollHeight)")
    tab.settle()
    box = tab.page.locator("#stage").bounding_box()
    assert box
    assert tab.run("scrollY") > 200
    assert box["y"] >= 0  # the picture is still in view, and leaves half of the screen to the answer
    assert tab.run("document.querySelector('.panes').getBoundingClientRect().bottom") < 844 / 2


def test_answer_and_pictures_are_in_view_at_once_on_a_desktop(opener: Any, page: ExplorerPage) -> None:
    tab = opener(page, viewport={"width": 1280, "height": 800})
    for cell in ("#stage", "#context-stage", "#called", "#verdict", "#margin-after"):
        box = tab.page.locator(cell).bounding_box()
        assert box
        assert box["y"] + box["height"] < 800


def test_a_screenshot_shows_something(tab: "ExplorerTab") -> None:
    from torchvision.io import decode_png

    tab.hover(10, 33)
    shot = tab.page.screenshot(full_page=True)
    picture = decode_png(torch.frombuffer(bytearray(shot), dtype=torch.uint8))[:3]
    assert picture.shape[2] >= 1000
    red, green, blue = picture.long()
    assert len((65536 * red + 256 * green + blue).unique()) > 500
