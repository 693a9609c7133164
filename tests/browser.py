"""Debian's chromium without a window, driven over a pair of pipes by its DevTools protocol; needs nothing from PyPI."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium")


class Browser:
    """One page of a headless chromium, up as long as it is used as a context manager.

    Args:
        folder: for the browser's profile.
        width: of the window, in CSS pixels.
        dark: whether pages are told that the reader prefers dark colours.
    """

    def __init__(self, folder: Path, width: int, height: int = 900, dark: bool = False):
        (read, self.commands), (self.events, write) = os.pipe(), os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        # The browser reads commands from descriptor 3 and writes to 4.
        script = f'exec "$0" "$@" 3<&{read} 4>&{write}'
        self.process = subprocess.Popen(
            ["bash", "-c", script, CHROMIUM, *flags], pass_fds=(read, write), stderr=subprocess.DEVNULL
        )
        os.close(read), os.close(write)
        self.buffer, self.sent = b"", 0
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *error) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.commands), os.close(self.events)

    def call(self, method: str, **params) -> dict:
        """The result of a command of the protocol."""
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if hasattr(self, "session") and not method.startswith("Target."):
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self.read()).get("id") != self.sent:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def read(self) -> dict:
        """The next answer or event."""
        while b"\0" not in self.buffer:
            part = os.read(self.events, 1 << 20)
            assert part, "the browser is gone"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, url: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=url)

    def run(self, script: str):
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, script: str, seconds: float = 30):
        """The value of a JavaScript expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, script
            time.sleep(0.05)
        return value

    def picture(self, file: Path) -> None:
        """Write a PNG of the whole page."""
        height = self.run("document.documentElement.scrollHeight")
        width = self.run("window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(shot["data"]))
