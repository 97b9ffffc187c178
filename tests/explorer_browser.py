"""A page of `context_explorer` open in a headless Chromium: points by image pixel, numbers by element."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import explorer_cases as cases
import pytest
import torch
from playwright.sync_api import Browser, sync_playwright
from torch import Tensor

from perpixel.report import ExplorerPage, context_explorer

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class ExplorerTab:
    """A page in a browser tab of its own; mouse, touch and keys are real input events, in CSS pixels."""

    def __init__(self, browser: Browser, **options: Any) -> None:
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 1000}, **options})
        self.page = self.context.new_page()
        self.complaints: list[str] = []  # exceptions, and what is logged as an error or a warning
        self.requests: list[str] = []  # but for the file itself and data addresses
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", self._keep_complaint)
        self.page.on("request", self._keep_request)

    def open(self, page: ExplorerPage) -> "ExplorerTab":
        """Load a page and wait until it is drawn, or says that it cannot be. Forgets earlier complaints."""
        self.error = page.error
        self.complaints.clear()
        self.requests.clear()
        self.page.goto(page.path.resolve().as_uri())
        self.page.wait_for_selector("body[data-ready], #status:has-text('could not')", state="attached")
        return self

    def _keep_complaint(self, message: Any) -> None:
        if message.type in ("error", "warning", "assert"):
            self.complaints.append(message.text)

    def _keep_request(self, request: Any) -> None:
        if not request.url.startswith(("data:", "file:", "blob:")):
            self.requests.append(request.url)

    def run(self, expression: str, argument: Any = None) -> Any:
        """Value of a JavaScript expression, or of a function of `argument`; promises awaited."""
        return self.page.evaluate(expression, argument)

    def settle(self) -> None:
        """Wait for two frames: what input events set off has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def point(self, y: float, x: float, stage: str = "#stage") -> tuple[float, float]:
        """Where the middle of an image pixel is on the screen."""
        box = self.page.locator(stage).bounding_box()
        assert box
        height, width = cases.SIZE
        return box["x"] + (x + 0.5) * box["width"] / width, box["y"] + (y + 0.5) * box["height"] / height

    def hover(self, y: int, x: int, stage: str = "#stage") -> None:
        self.page.mouse.move(*self.point(y, x, stage))
        self.settle()

    def click(self, y: int, x: int) -> None:
        self.page.mouse.click(*self.point(y, x))
        self.settle()

    def drag(self, *points: tuple[float, float]) -> None:
        """Press at the first point, move through the others, release at the last."""
        self.page.mouse.move(*points[0])
        self.page.mouse.down()
        for point in points[1:]:
            self.page.mouse.move(*point)
            self.settle()
        self.page.mouse.up()
        self.settle()

    def touch(self, *points: tuple[float, float]) -> None:
        """A finger put down at the first point, moved through the others and lifted: one point is a tap."""
        devtools = self.context.new_cdp_session(self.page)
        for kind, point in zip(["touchStart", *["touchMove"] * len(points)], points):
            places = [{"x": point[0], "y": point[1]}]
            devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})
        devtools.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        self.settle()

    def press(self, key: str) -> None:
        """A key, named as in KeyboardEvent.key, with modifiers before it: "Shift+ArrowUp"."""
        self.page.keyboard.press(key)
        self.settle()

    def press_button(self, selector: str) -> None:
        """A click on the middle of an element, scrolled into view."""
        self.page.locator(selector).first.click()
        self.settle()
        self.run("scrollTo(0, 0)")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.text_content() or ""

    def value(self, selector: str) -> float:
        """The number an element holds; what is written there is that number, rounded."""
        exact, shown = self.run("s => (e => [e.value, e.textContent])(document.querySelector(s))", selector)
        assert float(shown.replace("−", "-")) == pytest.approx(float(exact), rel=0.05, abs=0.006)
        return float(exact)

    def patches(self) -> dict[int, float]:
        """Listed patches and their effects: supporters first, strongest first."""
        read = "b => [Number(b.dataset.patch), Number(b.querySelector('data').value)]"
        return dict(self.run(f"[...document.querySelectorAll('.patch')].map({read})"))

    def pixels(self, canvas: str) -> Tensor:
        """(H, W, 3) of a canvas."""
        data = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data"
        text, width = self.page.eval_on_selector(canvas, f"c => [btoa(String.fromCharCode(...{data})), c.width]")
        return torch.tensor(list(base64.b64decode(text))).view(-1, width, 4)[..., :3]

    def opaque(self) -> None:
        self.run("(o => { o.value = 100; o.dispatchEvent(new Event('input')) })(document.querySelector('#opacity'))")

    def palette(self) -> Tensor:
        return torch.tensor(self.run("JSON.parse(document.querySelector('#data').textContent).palette"))

    def labels(self) -> Tensor:
        """The labels painted on the left, at full opacity."""
        self.opaque()
        distance = (self.pixels("#labels")[:, :, None] - self.palette()).abs().sum(-1)
        assert int(distance.amin(-1).max()) == 0
        return distance.argmin(-1)

    def pinned(self) -> bool:
        return self.run("document.body.dataset.pinned") == "true"

    def check_answer(self, region: Tensor, why: int | None = None, rival: int | str = "") -> None:
        """Everything shown about the pixels of `region` equals the arrays, up to the quantisation.

        why: the class asked about; None: the label most of them have. rival: "" for the margin, "logit", or a class.
        """
        bound, logits, effects = self.error, cases.LOGITS, cases.EFFECTS
        why = int(cases.LABELS[region].bincount().argmax()) if why is None else why
        now = cases.means(logits, region, why)
        for name, value in now.items():
            assert float(self.run(f"document.querySelector('#{name}').value")) == pytest.approx(value, abs=1e-5)
        each = [cases.means(logits - effect, region, why) for effect in effects]
        means = effects[:, why][:, region].mean(1)
        if rival == "":
            means, bound = torch.tensor([now["margin"] - without["margin"] for without in each]), 2 * bound
        elif rival != "logit":
            means, bound = means - effects[:, rival][:, region].mean(1), 2 * bound
        shown = self.patches()
        for patch, effect in shown.items():
            assert effect == pytest.approx(float(means[patch]), abs=bound)
        order = means.argsort(descending=True).tolist()
        listed = [p for p in order if means[p] > 0][:3] + [p for p in order[::-1] if means[p] < 0][:3]
        assert [float(means[p]) for p in shown] == pytest.approx([float(means[p]) for p in listed], abs=2 * bound)
        hidden = (logits - effects[next(iter(shown))])[:, region]
        counts = torch.bincount(hidden.argmax(0), minlength=len(logits))
        named = json.loads(self.run("document.querySelector('#verdict').dataset.classes"))
        best = hidden.topk(2, 0).values
        doubtful = int((best[0] - best[1] < 2 * bound).sum())
        assert sorted(named, key=lambda c: -int(counts[c]))[:1] == named[:1] or doubtful
        assert set(named) >= {c for c in range(len(counts)) if counts[c] > doubtful}
        parts = self.run("[...document.querySelectorAll('#verdict data')].map(d => Number(d.value))")
        for c, part in zip(named, parts):
            assert part * int(region.sum()) == pytest.approx(int(counts[c]), abs=doubtful + 1e-6)
        for name, value in each[next(iter(shown))].items():
            assert float(self.run(f"document.querySelector('#{name}-after').value")) == pytest.approx(
                value, abs=bound + 1e-5
            )


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The Chromium that is installed, not one of playwright's own."""
    if PROGRAM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=PROGRAM, args=["--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def desktop(browser: Browser) -> ExplorerTab:
    return ExplorerTab(browser)


@pytest.fixture
def opener(browser: Browser, desktop: ExplorerTab) -> Iterator[Callable[..., ExplorerTab]]:
    """Opens a page, on another screen if asked; afterwards none has complained or asked for anything."""
    tabs: list[ExplorerTab] = []

    def open_page(page: ExplorerPage, **screen: Any) -> ExplorerTab:
        tabs.append(ExplorerTab(browser, **screen) if screen else desktop)
        return tabs[-1].open(page)

    yield open_page
    for tab in tabs:
        assert tab.complaints == []
        assert tab.requests == []


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> ExplorerPage:
    truth = cases.LABELS.clone()
    truth[:, :20] = 2
    truth[:5] = 255
    return context_explorer(tmp_path_factory.mktemp("explorer") / "page.html", **cases.case(labels=truth))


@pytest.fixture
def tab(opener: Callable[..., ExplorerTab], page: ExplorerPage) -> ExplorerTab:
    return opener(page)
