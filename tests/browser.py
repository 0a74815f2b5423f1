"""A real headless Chromium, driven over its DevTools protocol: what a page asks for and says, and
how it looks. `python tests/browser.py` says where it is; root on Debian gets it so."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import websocket

NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"]
MISSING = (
    "the report is tested in a browser, and there is no Chromium: apt-get install "
    "chromium-headless-shell, or give BROWSER=/path/to/chromium"
)
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars"
FLAGS += " --no-first-run --remote-debugging-port=0 --disable-background-networking"


def executable():
    """Path of the browser, None without one."""
    found = map(shutil.which, [os.environ["BROWSER"]] if os.environ.get("BROWSER") else NAMES)
    return next(filter(None, found), None)


class Browser:
    """Use as a context; one page at a time."""

    def __enter__(self):
        assert executable(), MISSING
        self.folder = tempfile.TemporaryDirectory()
        given = [executable(), *FLAGS.split(), f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(given, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        lines = (line.decode(errors="replace") for line in self.process.stderr)
        url = next(line.split()[-1] for line in lines if "DevTools listening on" in line)
        self.socket = websocket.create_connection(url, timeout=60, suppress_origin=True)
        self.numbers, self.events, self.session = itertools.count(1), [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime", "Accessibility"):
            self.ask(f"{domain}.enable")
        return self

    def __exit__(self, *_):
        self.session = None
        self.ask("Browser.close")  # a signal would reach only the script that started it
        self.socket.close()
        self.process.wait(60)
        self.process.stderr.close()
        self.folder.cleanup()

    def ask(self, method, **parameters):
        """The answer to one command; events that come meanwhile are kept."""
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": parameters}
        self.socket.send(
            json.dumps(message | ({"sessionId": self.session} if self.session else {}))
        )
        while True:
            said = json.loads(self.socket.recv())
            if said.get("id") == number:
                assert "error" not in said, said
                return said["result"]
            self.events.append(said)

    def open(self, path, width=1280, height=900, media="screen", dark=False):
        """Load a file anew, at a width in CSS pixels; forget what earlier pages did."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=media, features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.ask("Page.navigate", url=Path(path).resolve().as_uri())
        begun = time.monotonic()
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            assert time.monotonic() - begun < 60, "the page does not load"
            self.events.append(json.loads(self.socket.recv()))
        return self

    def value(self, expression):
        """What an expression has in the page."""
        asked = {"expression": expression, "returnByValue": True}
        return self.ask("Runtime.evaluate", **asked)["result"].get("value")

    def requests(self):
        """URLs of what the page asked for, itself and data within it left out."""
        sent = [e for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [event["params"]["request"]["url"] for event in sent]
        return [url for url in urls[1:] if not url.startswith("data:")]

    def complaints(self):
        """What the page wrote to the console, and errors."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [event["params"] for event in self.events if event.get("method") in kinds]

    def screenshot(self, path, whole=True):
        """A PNG of the page."""
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(taken["data"]))

    def pdf(self, path):
        """The page as it is printed on A4."""
        size = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": True}
        Path(path).write_bytes(base64.b64decode(self.ask("Page.printToPDF", **size)["data"]))

    def names(self):
        """What a screen reader says of every element, by role."""
        found = {}
        for node in self.ask("Accessibility.getFullAXTree")["nodes"]:
            role, name = (node.get(key, {}).get("value", "") for key in ("role", "name"))
            found.setdefault(role, []).append(name)
        return found


def install():
    """The browser of the distribution, where this process may install it."""
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"stdout": subprocess.DEVNULL, "check": False}
        subprocess.run(["apt-get", "update", "-qq"], **quiet)
        words = f"apt-get install -y -qq --no-install-recommends {NAMES[0]}"
        subprocess.run(words.split(), **quiet)


if __name__ == "__main__":
    if not executable():
        install()
    print(executable() or f"error: {MISSING}", file=sys.stdout if executable() else sys.stderr)
    sys.exit(0 if executable() else 2)
