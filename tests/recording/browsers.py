"""Two headless browsers, and the HAR files that the code of their developer tools writes."""

import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

WATCHDOG = 120  # seconds for a visit

# Chromium: the modules of its developer tools, which run as a page.
CHROMIUM_EXPORT = """(async () => {
    const { NetworkLog } = await import("./models/logs/logs.js");
    const { Writer } = await import("./models/har/har.js");
    const progress = { createSubProgress: () => progress };
    const requests = NetworkLog.NetworkLog.instance().requests().slice();
    return Writer.Writer.harStringForRequests(requests, { sanitize: SANITIZE }, progress);
})()"""
NETWORK_IS_READY = """import("./models/logs/logs.js")
    .then(() => import("./core/sdk/sdk.js"))
    .then(({ TargetManager }) => TargetManager.TargetManager.instance().primaryPageTarget() !== null)"""

# Firefox: the function that the menu of its network panel calls.
FIREFOX_OPEN = """
    const [resolve] = arguments;
    const { require } = ChromeUtils.importESModule("resource://devtools/shared/loader/Loader.sys.mjs");
    const { gDevTools } = require("devtools/client/framework/devtools");
    gDevTools.showToolboxForTab(gBrowser.selectedTab, { toolId: "netmonitor" })
        .then(toolbox => { window.toolbox = toolbox; resolve(true); });
"""
FIREFOX_EXPORT = """
    const [resolve] = arguments;
    window.toolbox.getHARFromNetMonitor().then(log => resolve(JSON.stringify({ log })));
"""


class Failed(Exception):
    """Why nothing was recorded."""


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first value of a condition that is true."""
    end = time.monotonic() + WATCHDOG
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.1)
    raise Failed(f"timed out waiting for {what}")


@contextmanager
def started(name: str, *options: str) -> Iterator[None]:
    """A browser that runs until the `with` ends."""
    program = shutil.which(name)
    if program is None:
        raise Failed(f"{name} is not installed")
    silent = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    browser = subprocess.Popen([program, *options], **silent)  # type: ignore[call-overload]
    try:
        yield
    finally:
        browser.terminate()
        browser.wait()


class Tab:
    """A page of Chromium, controlled by its own protocol."""

    def __init__(self, target: dict[str, str]) -> None:
        import websocket

        self.socket = websocket.create_connection(target["webSocketDebuggerUrl"], timeout=WATCHDOG)
        self.number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv())
            if answer.get("id") == self.number:
                return dict(answer.get("result", {}))

    def value(self, expression: str) -> Any:
        """The value of an expression in this page."""
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        return answer.get("result", {}).get("value")


def by_chromium(url: str, sanitize: bool) -> str:
    """The HAR of a visit by Chromium; `sanitize` leaves out headers with tokens and cookies."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = [f"--user-data-dir={profile}", "--remote-debugging-port=0", "--remote-allow-origins=*"]
        options += ["--headless=new", "--disable-gpu", "--auto-open-devtools-for-tabs", "--no-first-run"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            options.append("--no-sandbox")  # otherwise it does not start as root
        with started("chromium", *options, "about:blank"):
            told = Path(profile, "DevToolsActivePort")
            port = wait_for(lambda: told.is_file() and told.read_text().split("\n")[0], "Chromium")
            tools, page = (
                Tab(wait_for(lambda end=end: target(port, end), end)) for end in ("devtools:", "about:blank")
            )
            wait_for(lambda: tools.value(NETWORK_IS_READY), "the developer tools")
            time.sleep(1)  # until they observe the page
            page.call("Page.navigate", url=url)
            wait_until_done(lambda: str(page.value("document.title")))
            return str(tools.value(CHROMIUM_EXPORT.replace("SANITIZE", str(sanitize).lower())))


def target(port: str, start: str) -> dict[str, str] | None:
    """The page of Chromium whose address begins so."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=WATCHDOG) as answer:
        targets: list[dict[str, str]] = json.load(answer)
    return next((each for each in targets if each["url"].startswith(start)), None)


def by_firefox(url: str) -> str:
    from marionette_driver.marionette import Marionette

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        Path(profile, "user.js").write_text('user_pref("marionette.port", 0);\n', encoding="utf-8")
        options = ["--headless", "-no-remote", "--profile", profile, "--marionette", "-remote-allow-system-access"]
        with started("firefox-esr", *options, "about:blank"):
            told = Path(profile, "MarionetteActivePort")
            port = int(wait_for(lambda: told.is_file() and told.read_text().strip(), "Firefox"))
            browser = Marionette(host="127.0.0.1", port=port)
            browser.start_session()
            browser.timeout.script = WATCHDOG
            with browser.using_context("chrome"):
                browser.execute_async_script(FIREFOX_OPEN, sandbox="system")
            browser.navigate(url)
            wait_until_done(lambda: str(browser.title))
            with browser.using_context("chrome"):
                return str(browser.execute_async_script(FIREFOX_EXPORT, sandbox="system"))


def wait_until_done(title: Callable[[], str]) -> None:
    """Wait until the page says that its visit is over."""

    def over() -> str:
        now = title()
        return now if now == "done" or now.startswith("failed") else ""

    if (said := wait_for(over, "the visit")) != "done":
        raise Failed(said)
