"""The explorer in a real headless Chromium: what it answers equals the arrays, by mouse, touch and keys alone."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import explorer_cases as cases
import pytest
import torch
from chromium import ALT, SHIFT, Chromium, chromium_path
from torch import Tensor
from torch.nn import functional as F

from perpixel.report.explorer.page import ExplorerPage, context_explorer

pytestmark = pytest.mark.skipif(chromium_path() is None, reason="needs Chromium (apt-get install chromium)")
HEIGHT, WIDTH = cases.SIZE
READY = "document.body.dataset.ready"


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    with Chromium(1280, 1000) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ExplorerPage:
    truth = cases.full_size(cases.case()["logits"]).argmax(0)
    truth[:, :20] = 2
    truth[:5] = 255
    return context_explorer(tmp_path_factory.mktemp("explorer") / "page.html", **cases.case(labels=truth))


@pytest.fixture
def at(browser: Chromium, page: ExplorerPage) -> Iterator["Driver"]:
    """The page freshly opened; afterwards it has neither complained nor asked for anything."""
    browser.resize(1280, 1000)
    yield Driver(browser, page.path)
    assert browser.complaints() == []
    assert browser.requests() == []


class Driver:
    """The open page: points by image pixel, numbers by element."""

    def __init__(self, browser: Chromium, path: Path) -> None:
        self.browser = browser
        browser.open(path, READY)

    def point(
        self, y: float, x: float, stage: str = "#stage", size: tuple[int, int] = cases.SIZE
    ) -> tuple[float, float]:
        find = (
            f"const r = document.querySelector('{stage}').getBoundingClientRect(); return [r.x, r.y, r.width, r.height]"
        )
        left, top, width, height = self.browser.run(f"(() => {{{find}}})()")
        return left + (x + 0.5) * width / size[1], top + (y + 0.5) * height / size[0]

    def hover(self, y: int, x: int, stage: str = "#stage") -> None:
        self.browser.mouse("Moved", *self.point(y, x, stage))

    def click(self, y: int, x: int) -> None:
        self.browser.click(*self.point(y, x))

    def press_button(self, selector: str) -> None:
        """A real click on the middle of an element, scrolled into view."""
        where = (
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
            " const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]})()"
        )
        self.browser.click(*self.browser.run(where))
        self.browser.run("scrollTo(0, 0)")

    def choose(self, select: str, value: str) -> None:
        self.browser.run(
            f"(() => {{const s = document.querySelector('{select}'); s.value = {json.dumps(value)};"
            " s.dispatchEvent(new Event('change', {bubbles: true}))})()"
        )

    def text(self, selector: str) -> str:
        return self.browser.run(f"document.querySelector({json.dumps(selector)}).textContent")

    def value(self, selector: str) -> float:
        """The number an element holds; what is written there is that number, rounded."""
        exact, shown = self.browser.run(
            f"(() => {{const e = document.querySelector({json.dumps(selector)}); return [e.value, e.textContent]}})()"
        )
        written = shown.replace("−", "-")
        assert float(written) == pytest.approx(float(exact), rel=0.05, abs=0.006)
        return float(exact)

    def patches(self) -> dict[int, float]:
        """Listed patches and their effects: supporters first, strongest first."""
        read = "b => [Number(b.dataset.patch), Number(b.querySelector('data').value)]"
        return dict(self.browser.run(f"[...document.querySelectorAll('.patch')].map({read})"))

    def pixels(self, canvas: str) -> Tensor:
        """(H, W, 3) of a canvas."""
        data, width = self.browser.run(
            f"(() => {{const c = document.querySelector('{canvas}'); const d = c.getContext('2d')"
            ".getImageData(0, 0, c.width, c.height).data; return [Array.from(d), c.width]})()"
        )
        return torch.tensor(data).view(-1, width, 4)[..., :3]

    def opaque(self) -> None:
        set_value = "o.value = 100; o.dispatchEvent(new Event('input'))"
        self.browser.run(f"(() => {{const o = document.querySelector('#opacity'); {set_value}}})()")

    def labels(self) -> Tensor:
        """The labels painted on the left, at full opacity."""
        self.opaque()
        palette = torch.tensor(self.browser.run("JSON.parse(document.querySelector('#data').textContent).palette"))
        distance = (self.pixels("#labels")[:, :, None] - palette).abs().sum(-1)
        assert int(distance.amin(-1).max()) == 0
        return distance.argmin(-1)

    def pinned(self) -> bool:
        return self.browser.run("document.body.dataset.pinned") == "true"


def truths() -> tuple[Tensor, Tensor, Tensor]:
    """Full-size logits, effects and labels from the arrays."""
    given = cases.case()
    logits = cases.full_size(given["logits"])
    return logits, cases.full_size(given["effects"]), logits.argmax(0)


def check_answer(at: Driver, region: Tensor, why: int, bound: float, rival: int | None = None) -> None:
    """Everything shown about the pixels of `region` equals the arrays, up to the quantisation."""
    logits, effects, _ = truths()
    own = logits[why][region]
    others = logits.index_fill(0, torch.tensor(why), -torch.inf).amax(0)[region]
    assert at.value("#logit") == pytest.approx(float(own.mean()), abs=1e-5)
    assert at.value("#margin") == pytest.approx(float((own - others).mean()), abs=1e-5)
    means = effects[:, why][:, region].mean(1)
    if rival is not None:
        means, bound = means - effects[:, rival][:, region].mean(1), 2 * bound
    shown = at.patches()
    for patch, effect in shown.items():
        assert effect == pytest.approx(float(means[patch]), abs=bound)
    order = means.argsort(descending=True).tolist()
    listed = [p for p in order if means[p] > 0][:3] + [p for p in order[::-1] if means[p] < 0][:3]
    assert [float(means[p]) for p in shown] == pytest.approx([float(means[p]) for p in listed], abs=2 * bound)
    strongest = next(iter(shown))
    hidden = (logits - effects[strongest])[:, region]
    counts = torch.bincount(hidden.argmax(0), minlength=len(logits))
    first = json.loads(at.browser.run("document.querySelector('#verdict').dataset.classes"))
    best = hidden.topk(2, 0).values
    doubtful = int((best[0] - best[1] < 2 * bound).sum())
    assert sorted(first, key=lambda c: -int(counts[c]))[:1] == first[:1] or doubtful
    assert set(first) >= {c for c in range(len(counts)) if counts[c] > doubtful}
    parts = at.browser.run("[...document.querySelectorAll('#verdict data')].map(d => Number(d.value))")
    for c, part in zip(first, parts):
        assert part * int(region.sum()) == pytest.approx(int(counts[c]), abs=doubtful + 1e-6)
    assert at.value("#logit-after") == pytest.approx(float(hidden[why].mean()), abs=bound + 1e-5)


def pixel(y: int, x: int) -> Tensor:
    mask = torch.zeros(cases.SIZE, dtype=torch.bool)
    mask[y, x] = True
    return mask


@pytest.mark.parametrize(("y", "x"), [(0, 0), (47, 63), (10, 33), (29, 5)])
@pytest.mark.parametrize("stage", ["#stage", "#context-stage"])
def test_hovering_tells_logit_margin_patches_and_the_label_without_the_strongest(
    at: Driver, page: ExplorerPage, y: int, x: int, stage: str
) -> None:
    at.hover(y, x, stage)
    label = int(truths()[2][y, x])
    assert at.text("#headline") == f"{cases.CLASSES[label]}column {x}, row {y}"
    check_answer(at, pixel(y, x), label, page.error)
    assert not at.pinned()


def test_the_labels_painted_are_those_of_the_network(at: Driver) -> None:
    assert torch.equal(at.labels(), truths()[2])


def test_blue_patches_support_and_orange_ones_oppose_at_the_scale_of_the_bar(at: Driver, page: ExplorerPage) -> None:
    at.hover(10, 33)
    effects = truths()[1][:, truths()[2][10, 33], 10, 33]
    top = at.value("#high")
    assert top == pytest.approx(float(effects.abs().max()), abs=page.error)
    assert at.value("#low") == -top
    picture = at.pixels("#context").float()
    bar = at.pixels("#gradient")[0].float()
    assert bar[0].tolist() == pytest.approx([223, 100, 11], abs=2)  # orange against, blue towards
    assert bar[-1].tolist() == pytest.approx([11, 101, 199], abs=2)
    assert torch.equal(bar[120], torch.full((3,), 140.0))
    for (y0, x0, y1, x1), effect in zip(cases.boxes().tolist(), effects.tolist()):
        inside = picture[y0:y1, x0:x1].mean((0, 1))
        blueness = float(inside[2] - inside[0])
        expected = 0.92 * abs(effect) / top * (204 if effect > 0 else -230)
        assert blueness == pytest.approx(expected, abs=3)


def test_overlapping_patches_are_painted_by_their_mean(browser: Chromium, tmp_path: Path) -> None:
    given = cases.case(boxes=torch.tensor([(0, 0, 48, 40), (0, 20, 48, 64)]))
    for patch, effect in enumerate((1.0, -0.5)):
        given["effects"][patch] = effect
    at = Driver(browser, context_explorer(tmp_path / "page.html", **given).path)
    picture = at.pixels("#context").float()
    blueness = (picture[..., 2] - picture[..., 0]).mean(0)
    assert at.value("#high") == pytest.approx(1)
    assert blueness[:20].mean() == pytest.approx(0.92 * 204, abs=2)
    assert blueness[20:40].mean() == pytest.approx(0.92 * 204 * 0.25, abs=2)
    assert blueness[40:].mean() == pytest.approx(-0.92 * 230 * 0.5, abs=2)
    assert at.text("#supporters data") == "+1.00"


def test_a_click_keeps_the_answer_until_released(at: Driver) -> None:
    at.click(10, 33)
    shown = at.text("#headline")
    at.hover(40, 5)
    assert at.pinned()
    assert at.text("#headline") == shown
    at.browser.press("Escape")
    assert not at.pinned()
    at.hover(40, 5)
    assert "column 5, row 40" in at.text("#headline")
    at.click(40, 5)
    at.press_button("#release")
    assert not at.pinned()
    assert at.browser.run("document.activeElement.id") == "stage"


def test_a_class_asks_about_all_its_pixels(at: Driver, page: ExplorerPage) -> None:
    labels = truths()[2]
    for c in labels.unique().tolist():
        at.press_button(f"#classes [data-class='{c}']")
        check_answer(at, labels == c, c, page.error)
        assert at.text("#context-caption") == f"Context: why {cases.CLASSES[c]}?"
    pressed = "[...document.querySelectorAll('#classes [aria-pressed=true]')].map(b => Number(b.dataset.class))"
    assert at.browser.run(pressed) == [c]
    at.press_button(f"#classes [data-class='{c}']")
    assert at.browser.run(pressed) == []
    assert not at.pinned()


def test_dragging_asks_about_a_rectangle(at: Driver, page: ExplorerPage) -> None:
    at.browser.drag(at.point(30, 50), at.point(20, 40), at.point(12, 21))
    region = torch.zeros(cases.SIZE, dtype=torch.bool)
    region[12:31, 21:51] = True
    labels = truths()[2][region]
    assert at.text("#headline").endswith(f"rectangle, {int(region.sum())} px")
    check_answer(at, region, int(labels.bincount().argmax()), page.error)
    assert at.pinned()


def test_a_lasso_asks_about_the_pixels_inside(at: Driver, page: ExplorerPage) -> None:
    at.press_button("#tools label:nth-of-type(3)")
    corners = [(8, 10), (6, 50), (40, 45), (20, 30), (44, 12)]
    points = [at.point(*corner) for corner in corners]
    at.browser.drag(*points)
    left, top = at.point(-0.5, -0.5)
    right, bottom = at.point(HEIGHT - 0.5, WIDTH - 0.5)
    polygon = [((x - left) * WIDTH / (right - left), (y - top) * HEIGHT / (bottom - top)) for x, y in points]
    region = cases.inside_polygon(polygon, cases.SIZE)
    found = re.search(r"drawn region, (\d+) px", at.text("#headline"))
    assert found
    assert int(found[1]) == int(region.sum())
    check_answer(at, region, int(truths()[2][region].bincount().argmax()), page.error)


def test_another_class_and_a_rival_can_be_asked_for(at: Driver, page: ExplorerPage) -> None:
    at.click(10, 33)
    label = int(truths()[2][10, 33])
    why, rival = [c for c in range(4) if c != label][:2]
    at.choose("#why", str(why))
    check_answer(at, pixel(10, 33), why, page.error)
    assert at.value("#margin") < 0
    at.choose("#rival", str(rival))
    check_answer(at, pixel(10, 33), why, page.error, rival)
    at.choose("#rival", "runner-up")
    check_answer(at, pixel(10, 33), why, page.error, label)
    assert at.text("#context-caption") == f"Context: why {cases.CLASSES[why]} rather than {cases.CLASSES[label]}?"
    assert at.browser.run("document.querySelector('#rival').value") == "runner-up"
    at.choose("#rival", "")
    check_answer(at, pixel(10, 33), why, page.error)


def test_the_picture_can_be_seen_with_a_patch_hidden(at: Driver, page: ExplorerPage) -> None:
    at.click(10, 33)
    logits, effects, labels = truths()
    for selector, patch in (("#preview", next(iter(at.patches()))), ("#opponents .patch", list(at.patches())[3])):
        at.press_button(selector)
        expected = logits - effects[patch]
        best = expected.topk(2, 0).values
        sure = best[0] - best[1] > 2 * page.error
        assert torch.equal(at.labels()[sure], expected.argmax(0)[sure])
        changed = float((expected.argmax(0) != labels).double().mean())
        assert f"{int(100 * changed + 0.5)} % of the picture" in at.text("#changed")
    assert at.text("#labels-caption") == "Labels with patch A hidden"
    at.press_button("#opponents .patch")
    assert torch.equal(at.labels(), labels)


def test_the_truth_can_be_shown(at: Driver) -> None:
    truth = truths()[2].clone()
    truth[:, :20] = 2
    at.hover(30, 5)
    wrong = int(truths()[2][30, 5]) != 2
    assert at.text("#was") == ("truth: car ✗ wrong" if wrong else "truth: car ✓ right")
    at.hover(2, 2)
    assert at.text("#was") == "truth: void"
    region = truths()[2] == 1
    valid = region & (torch.arange(HEIGHT) >= 5)[:, None]
    right = float((truth == 1)[valid].double().mean())
    at.press_button("#classes [data-class='1']")
    assert at.text("#was") == f"{int(100 * right + 0.5)} % of its pixels are labelled right"
    at.browser.press("Escape")
    at.press_button("#truth")
    at.opaque()
    palette = torch.tensor(at.browser.run("JSON.parse(document.querySelector('#data').textContent).palette"))
    assert at.text("#labels-caption") == "Truth"
    assert torch.equal(at.pixels("#labels")[5:], palette[truth[5:]])


def test_the_scale_can_be_held(at: Driver) -> None:
    at.hover(10, 33)
    held = at.value("#high")
    at.press_button("#hold")
    at.hover(40, 5)
    assert at.value("#high") == held
    at.press_button("#hold")
    at.hover(40, 6)
    assert at.value("#high") != held


def test_keys_alone_reach_everything(at: Driver, page: ExplorerPage) -> None:
    at.browser.press("Tab")
    assert at.browser.run("document.activeElement.id") == "stage"
    assert at.browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    step_y, step_x = round(HEIGHT / cases.GRID[0]), round(WIDTH / cases.GRID[1])
    y, x = HEIGHT // 2, WIDTH // 2
    for key, modifiers, dy, dx in [
        ("ArrowLeft", 0, 0, -step_x),
        ("ArrowUp", 0, -step_y, 0),
        ("ArrowRight", ALT, 0, 1),
        ("ArrowDown", ALT, 1, 0),
    ]:
        at.browser.press(key, modifiers)
        y, x = y + dy, x + dx
        assert at.text("#headline").endswith(f"column {x}, row {y}")
    label = cases.CLASSES[int(truths()[2][y, x])]
    assert at.text("#live").startswith(f"Column {x}, row {y}: {label}. Why {label}: logit ")
    assert "If patch 1 is hidden: it " in at.text("#live")
    at.browser.press("Enter")
    assert at.pinned()
    at.browser.press("h")
    assert at.text("#labels-caption") == "Labels with patch 1 hidden"
    at.browser.press("Escape")
    assert not at.pinned()
    assert at.text("#labels-caption") == "Labels"
    for _ in range(2):
        at.browser.press("ArrowRight", SHIFT)
    at.browser.press("ArrowDown", SHIFT)
    region = torch.zeros(cases.SIZE, dtype=torch.bool)
    region[y : y + step_y + 1, x : x + 2 * step_x + 1] = True
    check_answer(at, region, int(truths()[2][region].bincount().argmax()), page.error)
    order = []
    for _ in range(40):
        at.browser.press("Tab")
        name = at.browser.run(
            "(e => e.id || e.name || e.dataset.patch || e.dataset.class || e.tagName)(document.activeElement)"
        )
        if name == "stage":
            break
        order.append(name)
    for control in ("opacity", "hold", "tool", "release", "why", "rival", "preview", "SUMMARY"):
        assert control in order
    assert order.index("why") < order.index("preview") < order.index("SUMMARY")


def test_the_cursor_stays_on_the_picture(at: Driver) -> None:
    at.browser.press("Tab")
    for _ in range(8):
        at.browser.press("ArrowUp")
        at.browser.press("ArrowLeft")
    assert at.text("#headline").endswith("column 0, row 0")


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling_and_a_tap_keeps_the_answer(
    at: Driver, page: ExplorerPage, dark: bool
) -> None:
    at.browser.resize(360, 740, touch=True, dark=dark, scale=2)
    at.browser.open(page.path, READY)
    assert at.browser.run("document.documentElement.scrollWidth") == 360
    outside = (
        "[...document.querySelectorAll('main *, header *')].filter(e => !e.closest('svg, .quiet, #live') && "
        "e.getBoundingClientRect().width > 1 && e.getBoundingClientRect().right > 360.5).map(e => e.id || e.className)"
    )
    assert at.browser.run(outside) == []
    at.browser.touch(at.point(10, 33))
    assert at.pinned()
    check_answer(at, pixel(10, 33), int(truths()[2][10, 33]), page.error)
    ground = [int(v) for v in re.findall(r"\d+", at.browser.run("getComputedStyle(document.body).backgroundColor"))]
    assert (sum(ground) < 150) == dark
    at.press_button("#tools label:nth-of-type(2)")
    at.browser.touch(at.point(20, 20), at.point(25, 30), at.point(30, 40))
    assert at.text("#headline").endswith(f"rectangle, {11 * 21} px")


def test_a_screenshot_shows_something(at: Driver, tmp_path: Path) -> None:
    from torchvision.io import decode_png

    at.hover(10, 33)
    shot = at.browser.screenshot(whole=True)
    picture = decode_png(torch.frombuffer(bytearray(shot), dtype=torch.uint8))[:3]
    assert picture.shape[2] >= 1000
    assert len(picture.flatten(1).unique(dim=1).T) > 500


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
def test_other_ways_of_upsampling(browser: Chromium, tmp_path: Path, name: Any, mode: Any) -> None:
    given = cases.case()
    page = context_explorer(tmp_path / "page.html", **given, upsampling=name, start=(13, 46))
    at = Driver(browser, page.path)
    if mode is None:
        logits, effects = in_two_steps(given["logits"][None].double())[0], in_two_steps(given["effects"].double())
    else:
        logits, effects = (cases.full_size(given[key], **mode) for key in ("logits", "effects"))
    assert torch.equal(at.labels(), logits.argmax(0))
    label = int(logits[:, 13, 46].argmax())
    assert at.text("#headline") == f"{cases.CLASSES[label]}column 46, row 13"
    for patch, effect in at.patches().items():
        assert effect == pytest.approx(float(effects[patch, label, 13, 46]), abs=page.error)


def test_segments_answer_as_boxes_do_and_may_leave_pixels_out(browser: Chromium, tmp_path: Path) -> None:
    given = cases.case()
    segments = torch.full(cases.SIZE, -1)
    for number, (y0, x0, y1, x1) in enumerate(cases.boxes().tolist()):
        segments[y0 : y1 - 2, x0:x1] = number
    given["boxes"] = None
    page = context_explorer(tmp_path / "page.html", **given, segments=segments)
    at = Driver(browser, page.path)
    at.click(10, 33)
    check_answer(at, pixel(10, 33), int(truths()[2][10, 33]), page.error)
    picture = at.pixels("#context")
    left_out = picture[segments < 0]
    assert int((left_out.amax(1) - left_out.amin(1)).max()) == 0  # grey
    at.press_button("#preview")
    assert at.browser.complaints() == []
    assert at.text("#supporters .where") in ("covers the pixel", *(f"{n} px away" for n in range(80)))
    assert at.text("#labels-caption") == "Labels with segment 1 hidden"
    assert "blue segments push" in at.text("#help")


def test_hostile_names_are_shown_as_they_are(browser: Chromium, tmp_path: Path) -> None:
    names = [
        "</script><script>document.title='broken'</script>",
        "<!-- <script>",
        "\u2028\"'`\\ & &lt; {{data}}",
        "<img src=http://example.invalid/x onerror=\"document.title='broken'\">",
    ]
    given = cases.case(title=f"<b>{names[0]}", note=names[3])
    at = Driver(browser, context_explorer(tmp_path / "page.html", **{**given, "classes": names}).path)
    for c in truths()[2].unique().tolist():
        at.press_button(f"#classes [data-class='{c}']")
        assert at.text("#headline .name") == names[c]
        assert at.text("#towards") == names[c]
    assert browser.run("document.title") == f"<b>{names[0]}"
    assert at.text("h1") == f"<b>{names[0]}"
    assert at.text("#note") == names[3]
    options = browser.run("[...document.querySelector('#why').options].map(o => o.text)")
    assert [" ".join(o.split()) for o in options] == [" ".join(n.split()) for n in names]
    assert browser.run("document.querySelectorAll('img, b:not(.for):not(.against)').length") == 0
    assert browser.complaints() == []
    assert browser.requests() == []


def test_two_classes_one_patch_and_an_absent_class(browser: Chromium, tmp_path: Path) -> None:
    given = cases.case(2, boxes=torch.tensor([(0, 0, 20, 20)]))
    given["logits"] = torch.stack([torch.zeros(cases.GRID), torch.ones(cases.GRID)])
    given["effects"] = torch.full((1, 2, *cases.GRID), -0.25)
    at = Driver(browser, context_explorer(tmp_path / "page.html", **given).path)
    assert at.text("#absent") == "Nothing here is labelled road."
    assert at.text("#supporters") == "No patch supports it."
    assert at.text("#opponents data") == "−0.25"
    assert at.text("#hidden-title") == "Nothing to hide"
    assert browser.run("document.querySelector('#preview').disabled")
    at.press_button("#classes button")
    assert at.value("#logit") == 1
    assert browser.complaints() == []


def test_no_effect_at_all(browser: Chromium, tmp_path: Path) -> None:
    given = cases.case()
    given["effects"].zero_()
    at = Driver(browser, context_explorer(tmp_path / "page.html", **given).path)
    assert (at.text("#low"), at.text("#high")) == ("0", "0")
    assert at.text("#opponents") == "No patch speaks against it."
    picture = at.pixels("#context")
    assert int((picture.amax(-1) - picture.amin(-1)).max()) == 0
    assert browser.complaints() == []


def test_classes_left_out_for_space_cannot_be_asked_about(browser: Chromium, tmp_path: Path) -> None:
    given = cases.case(grid=(48, 64))
    given["logits"][3] = -50
    size = context_explorer(tmp_path / "page.html", **given).size
    page = context_explorer(tmp_path / "page.html", **given, max_bytes=int(size * 0.6))
    assert page.classes == (0, 1, 2)
    at = Driver(browser, page.path)
    assert browser.run("[...document.querySelector('#why').options].map(o => o.disabled)") == [False] * 3 + [True]
    assert "(1 of 4)" in at.text("#stored")
    assert torch.equal(at.labels(), given["logits"].argmax(0))
    assert at.patches()


def test_an_old_browser_is_told_so(browser: Chromium, page: ExplorerPage) -> None:
    script = browser.send("Page.addScriptToEvaluateOnNewDocument", source="delete window.DecompressionStream")
    try:
        browser.open(page.path, "document.querySelector('#status').textContent.includes('could not')")
    finally:
        browser.send("Page.removeScriptToEvaluateOnNewDocument", identifier=script["identifier"])
    assert "it needs Chrome or Edge 80" in browser.run("document.querySelector('#status').textContent")
