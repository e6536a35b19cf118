"""The demo under a real uvicorn, and a real Chromium that looks at it."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing

import pytest
import pytest_asyncio

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
START_WITHIN = 15  # seconds


class Demo:
    """The demo as `make demo` starts it; killed and started again, it keeps its port and its secret."""

    def __init__(self, log_path):
        with closing(socket.socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._log_path = log_path
        self._process = None  # set while it runs

    @property
    def log(self):
        return self._log_path.read_text()

    def start(self):
        command = [sys.executable, "-m", "uvicorn", "example_app.app:app", "--port", str(self.port)]
        environment = {**os.environ, "EXAMPLE_SECRET": "only for tests"}
        with self._log_path.open("a") as log:
            self._process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + START_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the demo did not start:\n{self.log}")
            time.sleep(0.02)  # between two looks at the socket

    def end(self, how=signal.SIGTERM):
        """End the process, if it runs, and wait for it."""
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            pytest.fail(f"the demo did not end:\n{self.log}")
        finally:
            self._process = None

    def _answers(self):
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    running = Demo(tmp_path_factory.mktemp("demo") / "uvicorn.log")
    running.start()
    yield running
    running.end()
    assert "Traceback" not in running.log, running.log


@pytest.fixture(scope="session")
def browser_path():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is not None:
        return path
    reason = f"no browser found (looked for {', '.join(BROWSERS)}): install one, for example `apt install chromium`"
    if os.environ.get("ROOMS_TEST_NEEDS_BROWSER"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser(browser_path):
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=browser_path, args=ARGUMENTS)
        yield browser
        await browser.close()


class Visitor:
    """One user in one browser context, with one tab or more."""

    def __init__(self, context, name):
        self.context = context
        self.name = name
        self.problems = []  # what the pages complained about on their consoles

    async def log_in(self, url):
        page = await self._open_page(url)
        await page.get_by_label("Your name").fill(self.name)
        await page.get_by_role("button", name="Enter").click()
        await in_lobby(page)
        return page

    async def open_tab(self, url):
        """Open a further tab, which comes in by the cookie."""
        page = await self._open_page(url)
        await in_lobby(page)
        return page

    async def _open_page(self, url):
        page = await self.context.new_page()
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("console", self._on_console)
        await page.goto(url)
        return page

    def _on_console(self, message):
        # A refused or broken connection is what some tests are about; anything else is a fault of the page.
        if message.type == "error" and "ERR_" not in message.text and "status of 401" not in message.text:
            self.problems.append(message.text)


async def in_lobby(page):
    """Wait until the server has told the tab who is in the lobby, so that it is a member itself."""
    from playwright.async_api import expect

    await expect(page.locator(".chip").first).to_have_text(re.compile("You$"), timeout=20_000)


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser, demo):
    """Log a new user in: `page, visitor = await visit("Ada")`. Afterwards no page may have complained."""
    visitors = []

    async def enter(name, **options):
        visitor = Visitor(await browser.new_context(reduced_motion="reduce", **options), name)
        visitors.append(visitor)
        return await visitor.log_in(demo.url), visitor

    yield enter
    await asyncio.gather(*(visitor.context.close() for visitor in visitors))
    assert [problem for visitor in visitors for problem in visitor.problems] == []
