"""Chromium without a window, driven through its debugging pipe; for tests of pages."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
"""The browser, None where there is none."""


class Browser:
    """One tab of a headless browser.

    Attributes:
        errors: uncaught errors and failed requests of the page, in words.
    """

    def __init__(self) -> None:
        assert PROGRAM is not None
        self.errors: list[str] = []
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        commands, answers = os.pipe(), os.pipe()
        # The browser reads its file descriptor 3 and writes 4.
        script = f'exec "$0" "$@" 3<&{commands[0]} 4>&{answers[1]}'
        options = [
            *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe"),
            *("--no-first-run", "--mute-audio", f"--user-data-dir={self._folder.name}", "about:blank"),
        ]
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", script, PROGRAM, *options],
            pass_fds=(commands[0], answers[1]),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands[0])
        os.close(answers[1])
        self._write, self._read = os.fdopen(commands[1], "wb"), os.fdopen(answers[0], "rb")
        self._rest, self._number, self._session = b"", 0, None
        target = next(t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self._call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: Any) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._write.close()
        self._read.close()
        self._folder.cleanup()

    def look(self, width: int, height: int, *, dark: bool = False, still: bool = True) -> None:
        """Set the size of the window, the colours and whether the reader prefers reduced motion."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"},
        ]
        self._call("Emulation.setEmulatedMedia", features=features)

    def open(self, page: Path, fragment: str = "") -> None:
        """Load a page from the disk and wait for it."""
        self._call("Page.navigate", url="about:blank")
        self._call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.run(
            "new Promise(done => { const wait = () => document.readyState === 'complete' && location.href !== "
            "'about:blank' ? done() : setTimeout(wait, 10); wait(); })"
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page, of the promise if it is one."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"].get("exception", answer["exceptionDetails"])))
        return answer["result"].get("value")

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write a picture of the page."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                found: dict[str, Any] = answer["result"]
                return found
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._read.fileno(), 1 << 20)
            if not more:
                raise RuntimeError("the browser has stopped")
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        parsed: dict[str, Any] = json.loads(first)
        return parsed

    def _note(self, event: dict[str, Any]) -> None:
        method, values = event.get("method"), event.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(values["exceptionDetails"].get("exception", {}).get("description")))
        if method == "Network.requestWillBeSent" and not values["request"]["url"].startswith(
            ("file:", "blob:", "data:", "about:")
        ):
            self.errors.append(f"a request to {values['request']['url']}")
