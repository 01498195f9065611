"""Headless Chromium by its DevTools protocol: as much of it as the tests of the page need."""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request

import websocket

PATIENCE = 60
NAMES = ["chromium", "chromium-browser", "google-chrome"]
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9}
SHIFT = 8


class Chromium:
    """A browser with a fresh profile, gone with all it knew when it is closed."""

    def __init__(self):
        program = os.environ.get("NV_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
        if program is None:
            raise RuntimeError(f"none of {', '.join(NAMES)} is installed: install Chromium, or name it in NV_CHROMIUM")
        self.profile = tempfile.mkdtemp()
        # A container has no user namespaces, and little shared memory.
        options = ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-first-run"]
        options += ["--disable-background-networking", "--remote-debugging-port=0", f"--user-data-dir={self.profile}"]
        self.process = subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.DEVNULL)
        try:
            self.port = wait(self._port, "Chromium's port")
        except BaseException:
            self.close()
            raise

    def _port(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"Chromium ended: {self.process.returncode}")
        try:
            with open(os.path.join(self.profile, "DevToolsActivePort")) as file:
                return int(file.readline())
        except (FileNotFoundError, ValueError):
            return None

    def tab(self):
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request) as answer:
            return Tab(json.load(answer)["webSocketDebuggerUrl"])

    def close(self):
        self.process.terminate()
        self.process.wait()
        shutil.rmtree(self.profile, ignore_errors=True)


class Tab:
    """A tab, what it asked the network for, and what it complained of."""

    def __init__(self, url):
        self.socket = websocket.create_connection(url, timeout=PATIENCE, suppress_origin=True)
        self.num_calls = 0
        self.requests = []
        self.complaints = []
        for domain in ["Page", "Runtime", "Log", "Network"]:
            self.call(f"{domain}.enable")

    def call(self, method, **params):
        self.num_calls += 1
        self.socket.send(json.dumps({"id": self.num_calls, "method": method, "params": params}))
        while True:
            message = json.loads(self.socket.recv())
            if message.get("id") == self.num_calls:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            if "method" in message:
                self._event(message["method"], message["params"])

    def _event(self, method, params):
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled" and params["type"] in ["error", "warning", "assert"]:
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ["error", "warning"]:
            self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif method == "Page.javascriptDialogOpening":
            # Who waits for an answer waits for one with a number of its own.
            accept = {"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}}
            self.socket.send(json.dumps(accept))

    def go(self, url):
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, expression):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, expression):
        return wait(lambda: self.run(expression), expression)

    def write(self, text):
        """Writes into what has the focus, as if it were pasted."""
        self.call("Input.insertText", text=text)

    def press(self, key, modifiers=0):
        code = KEYS[key]
        event = dict(key=key, code=key, windowsVirtualKeyCode=code, modifiers=modifiers)
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **event, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def click(self, selector):
        """Clicks the middle of an element, which must be there to be seen."""
        rect = f"document.querySelector({json.dumps(selector)}).getBoundingClientRect().toJSON()"
        box = self.run(rect)
        if not box["width"]:
            raise RuntimeError(f"{selector} can't be seen")
        at = dict(x=box["x"] + box["width"] / 2, y=box["y"] + box["height"] / 2, button="left", clickCount=1)
        self.call("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.call("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def look(self, width, height, scheme):
        """Sizes the window, and asks for light or dark."""
        size = dict(width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)

    def touch(self, enabled):
        """Has a finger in place of a mouse, or no longer."""
        self.call("Emulation.setTouchEmulationEnabled", enabled=enabled, maxTouchPoints=1)

    def screenshot(self, path):
        # What has changed is drawn in the next frame.
        self.run("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(1))))")
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def close(self):
        self.call("Page.close")
        self.socket.close()


def wait(condition, what):
    """What `condition` gives, as soon as that is true."""
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {PATIENCE} s for {what}")
        time.sleep(0.02)
    return found
