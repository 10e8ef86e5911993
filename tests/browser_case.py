"""A headless Chromium, driven over the W3C WebDriver protocol: plain HTTP and JSON, so no package is needed."""

import base64
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
    "--window-size=1180,1400",
)  # fmt: skip
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # of the standard


class Browser:
    """One window. Used in a ``with`` block; everything it writes lies in a temporary folder."""

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="browser-")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        home = {**os.environ, "HOME": self.folder}
        self.driver = subprocess.Popen(
            [DRIVER, f"--port={self.port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=home
        )
        options = {"binary": CHROMIUM, "args": [*FLAGS, f"--user-data-dir={self.folder}/profile"]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        try:
            self.wait(self._ready, "chromedriver")
            self.session = f"/session/{self._call('POST', '/session', wanted)['sessionId']}"
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        if hasattr(self, "session"):
            self._call("DELETE", self.session)
        self.driver.terminate()
        self.driver.wait(20)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _ready(self):
        try:
            return self._call("GET", "/status")["ready"]
        except OSError:
            return False

    def _call(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, address):
        self._call("POST", f"{self.session}/url", {"url": address})

    def run(self, script, *arguments):
        """The value that the script returns."""
        return self._call("POST", f"{self.session}/execute/sync", {"script": script, "args": arguments})

    def choose(self, selector, *files):
        """Give files to an ``<input type="file">``."""
        found = self._call("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        text = "\n".join(str(Path(f).resolve()) for f in files)
        self._call("POST", f"{self.session}/element/{found[_ELEMENT]}/value", {"text": text})

    def drag(self, selector, start, end):
        """Drag inside an element; places are shares of its size."""
        x, y, w, h = self.run(
            "const r = document.querySelector(arguments[0]).getBoundingClientRect(); "
            "return [r.x, r.y, r.width, r.height]",
            selector,
        )
        steps = [
            {"type": "pointerMove", "duration": 0, "x": round(x + a * w), "y": round(y + b * h)}
            for a, b in (start, end)
        ]
        actions = [steps[0], {"type": "pointerDown", "button": 0}, steps[1], {"type": "pointerUp", "button": 0}]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self._call("POST", f"{self.session}/actions", {"actions": [pointer]})

    def screenshot(self, path):
        Path(path).write_bytes(base64.b64decode(self._call("GET", f"{self.session}/screenshot")))

    @staticmethod
    def wait(condition, what, seconds=40):
        """The first true value of ``condition()``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if value := condition():
                return value
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {seconds} s")
