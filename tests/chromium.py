"""A headless Chromium for tests, driven over the DevTools protocol through its pipe: standard library only.

`chromium_path()` finds the program (None: skip the test). `Chromium` is a context manager with one open page; its
mouse, touch and keys are real input events of the browser, in CSS pixels.
"""

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-default-browser-check",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--force-color-profile=srgb",
    "--remote-debugging-pipe",
)
KEYS = {"Enter": "\r", " ": " "}
CODES = {
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
    "Enter": 13,
    "Escape": 27,
    "Tab": 9,
    " ": 32,
}
ALT, CONTROL, SHIFT = 1, 2, 8


def chromium_path() -> str | None:
    """The first Chromium on the path."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


class Chromium:
    """One page of a fresh browser, without profile. Events of the page (console, network, exceptions) are kept."""

    def __init__(self, width: int = 1280, height: int = 900, timeout: float = 60) -> None:
        program = chromium_path()
        if program is None:
            raise FileNotFoundError(f"none of {', '.join(PROGRAMS)} is installed")
        self.timeout, self._number, self._buffer = timeout, 0, b""
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.mkdtemp(prefix="chromium-test-")
        self._start(program)
        try:
            target = self.send("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self.send(f"{domain}.enable")
            self.resize(width, height)
        except BaseException:
            self.close()
            raise

    def _start(self, program: str) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Moved up first: the browser wants 3 and 4, which may be among the four.
        high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 20) for end in (theirs_in, theirs_out)]
        log = os.open(Path(self._profile) / "stderr", os.O_WRONLY | os.O_CREAT)
        actions = [
            (os.POSIX_SPAWN_DUP2, high[0], 3),
            (os.POSIX_SPAWN_DUP2, high[1], 4),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
        ]
        command = [program, *FLAGS, f"--user-data-dir={self._profile}", "about:blank"]
        self._session, self._open = None, (ours_in, ours_out)
        try:
            self.pid: int | None = os.posix_spawn(program, command, os.environ, file_actions=actions, setpgroup=0)
        finally:
            for end in (theirs_in, theirs_out, *high, log):
                os.close(end)

    def __enter__(self) -> "Chromium":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and take its profile away."""
        if self.pid is None:
            return
        pid, self.pid = self.pid, None
        for end in self._open:
            os.close(end)  # the browser ends when its pipe closes
        deadline = time.monotonic() + 5
        while os.waitpid(pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                break
            time.sleep(0.02)
        shutil.rmtree(self._profile, ignore_errors=True)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Result of a DevTools command; RuntimeError with its message if it fails."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None and not method.startswith("Target."):
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._open[1], data) :]
        deadline = time.monotonic() + self.timeout
        while True:
            answer = self._read(deadline, method)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            if "method" in answer:
                self.events.append(answer)

    def _read(self, deadline: float, waiting_for: str) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._open[0]], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError(f"no answer to {waiting_for} within {self.timeout} s")
            chunk = os.read(self._open[0], 1 << 20)
            if not chunk:
                text = (Path(self._profile) / "stderr").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"Chromium ended while waiting for {waiting_for}: {text}")
            self._buffer += chunk
        line, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(line)

    def open(self, path: Path, ready: str = "document.readyState === 'complete'") -> None:
        """Load a local file and wait until the expression `ready` is true. Forgets earlier events."""
        self.events.clear()
        self.send("Page.navigate", url=path.resolve().as_uri())
        self.wait_for(f"location.protocol === 'file:' && document.body && ({ready})")

    def run(self, expression: str) -> Any:
        """Value of a JavaScript expression, promises awaited; RuntimeError with the page's exception."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until the expression is true."""
        deadline = time.monotonic() + self.timeout
        while not self.run(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} stayed false for {self.timeout} s")
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for two frames: what input events set off has been drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def resize(self, width: int, height: int, *, touch: bool = False, dark: bool = False, scale: float = 1) -> None:
        """Size of the window in CSS pixels; `touch`: a phone, with touch input and the mobile viewport."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def mouse(self, kind: str, x: float, y: float, *, pressed: bool = False) -> None:
        """`kind`: "Moved", "Pressed" or "Released"."""
        button = "none" if kind == "Moved" and not pressed else "left"
        held = int(pressed or kind == "Pressed")
        self.send("Input.dispatchMouseEvent", type=f"mouse{kind}", x=x, y=y, button=button, buttons=held, clickCount=1)
        self.settle()

    def click(self, x: float, y: float) -> None:
        """Move there, press and release."""
        for kind in ("Moved", "Pressed", "Released"):
            self.mouse(kind, x, y)

    def drag(self, *points: tuple[float, float]) -> None:
        """Press at the first point, move through the others, release at the last."""
        self.mouse("Moved", *points[0])
        self.mouse("Pressed", *points[0])
        for point in points[1:]:
            self.mouse("Moved", *point, pressed=True)
        self.mouse("Released", *points[-1])

    def touch(self, *points: tuple[float, float]) -> None:
        """A finger put down at the first point, moved through the others and lifted: one point is a tap."""
        for kind, point in [("touchStart", points[0]), *(("touchMove", point) for point in points[1:])]:
            self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": point[0], "y": point[1]}])
        self.send("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press and release a key, named as in KeyboardEvent.key."""
        text = {"text": KEYS.get(key, key)} if key in KEYS or len(key) == 1 else {}
        code = CODES.get(key, ord(key[0].upper()))
        both = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.send("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **both, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **both)
        self.settle()

    def screenshot(self, path: Path | None = None, *, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        image = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        data = base64.b64decode(image["data"])
        if path is not None:
            path.write_bytes(data)
        return data

    def requests(self) -> list[str]:
        """Addresses asked for since `open`, but for the file itself and data addresses."""
        self.run("0")
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "file:", "blob:"))]

    def complaints(self) -> list[str]:
        """Exceptions, console errors and warnings, and what the browser logged, since `open`."""
        self.run("0")
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif event["method"] == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
                found.append(str([argument.get("value") for argument in params["args"]]))
            elif event["method"] == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
                found.append(params["entry"]["text"])
        return found
