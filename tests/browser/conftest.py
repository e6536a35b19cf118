"""The demo under a real uvicorn, or two of them, and a real Chromium that looks at it."""

import asyncio
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial

import pytest
import pytest_asyncio
import redis
from brokers.ports import free_port

# What Chromium would otherwise prepare in three processes of their own for each page, and nobody here looks at: the
# next page, and what opens below an address bar. It is half of its CPU time.
UNUSED = ("SpareRendererForSitePerProcess", "WebUIOmniboxPopup", "WebUIOmniboxAimPopup")
# What Playwright switches off with the same switch, of which Chromium obeys the last alone.
OFF_FOR_PLAYWRIGHT = (
    "AvoidUnnecessaryBeforeUnloadCheckSync",
    "DestroyProfileOnBrowserClose",
    "HttpsUpgrades",
    "HttpsFirstBalancedModeAutoEnable",
    "LensOverlay",
    "MediaRouter",
    "PaintHolding",
    "ThirdPartyStoragePartitioning",
    "AvoidCorsURLLoaderRestartOnRedirect",
    "OptimizationHints",
    "NetworkTimeServiceQuerying",
    "AimEnabled",
    "PreconnectToSearch",
)
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    f"--disable-features={','.join((*OFF_FOR_PLAYWRIGHT, *UNUSED))}",
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


class DemoCluster:
    """Two nodes of the demo and their Valkey, as `make demo-cluster` starts them."""

    def __init__(self, log_path):
        self.ports = [free_port(), free_port()]
        self.urls = [f"http://127.0.0.1:{port}" for port in self.ports]
        self.process = None  # set by start
        self._log_path = log_path

    @property
    def log(self):
        return self._log_path.read_text()

    @property
    def pids(self):
        """The processes of the nodes in their order, then that of Valkey."""
        return [int(pid) for pid in re.findall(r"^  \S+ +process (\d+)$", self.log, re.MULTILINE)]

    @property
    def broker(self):
        """A client of Valkey."""
        path = re.search(r"^  unix://(\S+)", self.log, re.MULTILINE)[1]
        return redis.Redis(unix_socket_path=path, socket_timeout=5, protocol=2)

    def start(self):
        command = [sys.executable, "-m", "example_app.cluster", *map(str, self.ports)]
        # A session of its own, so that one can do to it what Ctrl+C does in a terminal.
        with self._log_path.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        deadline = time.monotonic() + 2 * START_WITHIN
        while "Ctrl+C ends everything" not in self.log:
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the cluster did not start:\n{self.log}")
            time.sleep(0.02)  # between two looks at the log

    def end(self):
        """Press Ctrl+C, if it runs, and wait for the end; return the exit status."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGINT)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            for pid in [self.process.pid, *self.pids]:
                os.kill(pid, signal.SIGKILL)
            pytest.fail(f"the cluster did not end:\n{self.log}")


@contextmanager
def running_cluster(folder):
    running = DemoCluster(folder / "cluster.log")
    running.start()
    yield running
    assert running.end() == 0, running.log
    assert "Traceback" not in running.log, running.log


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with running_cluster(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster_of_its_own(tmp_path):
    """A cluster to break."""
    with running_cluster(tmp_path) as running:
        yield running


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


@asynccontextmanager
async def visitors(browser):
    """Log new users in: `page, visitor = await enter(url, "Ada")`. Afterwards no page may have complained."""
    came = []

    async def enter(url, name, **options):
        visitor = Visitor(await browser.new_context(reduced_motion="reduce", **options), name)
        came.append(visitor)
        return await visitor.log_in(url), visitor

    yield enter
    await asyncio.gather(*(visitor.context.close() for visitor in came))
    assert [problem for visitor in came for problem in visitor.problems] == []


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser, demo):
    """Log a new user in: `page, visitor = await visit("Ada")`."""
    async with visitors(browser) as enter:
        yield partial(enter, demo.url)


@pytest_asyncio.fixture(loop_scope="module")
async def visit_node(browser, cluster):
    """Log a new user in on one of two nodes: `page, visitor = await visit_node(0, "Ada")`."""
    async with visitors(browser) as enter:
        yield lambda index, name, **options: enter(cluster.urls[index], name, **options)
