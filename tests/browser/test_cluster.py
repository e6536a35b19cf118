"""Two nodes of the demo, joined by Valkey, and pages on both."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from pages import announce, direct, messages, room, say
from playwright.async_api import expect

in_browser = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]


def marked(test):
    for mark in in_browser:
        test = mark(test)
    return test


@marked
async def test_two_pages_on_two_nodes_talk_to_each_other(visit_node, cluster):
    (ada, _), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(1, "Bo"))
    await expect(ada.locator("#state")).to_have_text(re.compile(r"^Connected to node [0-9a-f]{4}$"))
    assert await ada.locator("#state").text_content() != await bo.locator("#state").text_content()
    await say(room(ada), "Hello, other node")
    await expect(messages(room(bo))).to_have_text(["Hello, other node"])
    await room(bo).get_by_role("textbox").press_sequentially("Well")
    await expect(room(ada).locator(".typing")).to_have_text("Bo is typing")
    await say(room(bo), "Hello back")
    for page in (ada, bo):
        await expect(messages(room(page))).to_have_text(["Hello, other node", "Hello back"])
        await expect(page.locator(".pending")).to_have_count(0)

    await announce(bo, "Tea on all nodes")
    for page in (ada, bo):
        await expect(page.locator(".announcement p")).to_have_text("Bo Tea on all nodes")
    await expect(bo.locator(".toast")).to_have_text("Announced to 1 tab of this node, and to the other nodes.")


@marked
async def test_what_one_node_knows_alone_is_labelled_so(visit_node):
    (ada, _), (cy, _), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(0, "Cy"), visit_node(1, "Bo"))
    for page, names in ((ada, ["You", "Cy"]), (cy, ["You", "Ada"]), (bo, ["You"])):
        await expect(room(page).locator(".chip bdi")).to_have_text(names)
        await expect(room(page).locator(".count")).to_have_text(f"{len(names)} on this node")
    await say(room(bo), "/ask who is here?")
    alone = "You are alone in lobby, as far as this node knows."
    await expect(room(bo).locator(".from-bot:not(.streaming) .bubble")).to_have_text(alone)


@marked
async def test_a_direct_message_reaches_another_node(visit_node):
    (ada, _), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(1, "Bo"))
    await say(room(bo), "Who is there?")
    await room(ada).get_by_role("button", name="Bo").click()
    await say(direct(ada, "Bo"), "I am")
    await expect(messages(direct(bo, "Ada"))).to_have_text(["I am"])
    await expect(direct(ada, "Bo").locator(".notice")).to_have_text(re.compile("Bo has no tab on this node."))
    await say(direct(bo, "Ada"), "Good")
    await expect(messages(direct(ada, "Bo"))).to_have_text(["I am", "Good"])
    await expect(messages(room(ada))).to_have_text(["Who is there?"])


@marked
async def test_one_user_has_tabs_on_two_nodes_and_logs_out_of_both(visit_node, cluster):
    (ada, visitor), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(1, "Bo"))
    ada_too = await visitor.open_tab(cluster.urls[1])  # the cookie belongs to the host, not to the port
    await expect(room(bo).locator(".chip bdi")).to_have_text(["You", "Ada"])
    await ada.bring_to_front()
    await say(room(ada), "Here and there")
    await expect(room(ada_too).locator(".mine .bubble")).to_have_text(["Here and there"])
    await ada.get_by_role("button", name="Log out").click()
    for page in (ada, ada_too):
        await expect(page.get_by_role("heading", name="Come in")).to_be_visible()
    await expect(ada_too.locator("#login-why")).to_have_text("You logged out.")


@marked
async def test_a_page_says_when_its_node_is_alone(visit_node, cluster):
    (ada, _), (cy, _), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(0, "Cy"), visit_node(1, "Bo"))
    valkey = cluster.pids[2]
    os.kill(valkey, signal.SIGSTOP)
    try:
        for page in (ada, bo):
            await expect(page.locator("#state")).to_have_text(re.compile(", alone$"), timeout=15_000)
        await say(room(ada), "Does anybody hear me?")
        await expect(messages(room(ada))).to_have_text(["Does anybody hear me?"])
        await expect(ada.locator(".toast")).to_have_text(re.compile("^Other nodes are out of reach: only"))
        await room(ada).get_by_role("button", name="Cy").click()
        await say(direct(ada, "Cy"), "You at least")
        await expect(messages(direct(cy, "Ada"))).to_have_text(["You at least"])
        await expect(messages(direct(ada, "Cy"))).to_have_text(["You at least"])
    finally:
        os.kill(valkey, signal.SIGCONT)
    for page in (ada, bo):
        await expect(page.locator("#state")).to_have_text(re.compile("Connected to node [0-9a-f]{4}$"), timeout=15_000)
    await say(room(ada), "And now?")
    await expect(messages(room(bo))).to_have_text(["And now?"])


@marked
async def test_a_page_says_what_its_node_may_have_missed(visit_node, cluster):
    (ada, _), (bo, _) = await asyncio.gather(visit_node(0, "Ada"), visit_node(1, "Bo"))
    with cluster.broker as broker:
        assert broker.client_kill_filter(_type="pubsub") == 2
    for page in (ada, bo):
        notice = re.compile("^What other nodes said (at|between) .* may be missing$")
        await expect(room(page).locator(".notice").last).to_have_text(notice)
    await say(room(ada), "Did I miss anything?")
    await expect(messages(room(bo))).to_have_text(["Did I miss anything?"])


def test_ctrl_c_ends_all_processes_and_leaves_nothing(cluster_of_its_own):
    pids = cluster_of_its_own.pids
    assert len(pids) == 3
    os.kill(pids[2], signal.SIGSTOP)  # frozen, as the start proposes
    assert cluster_of_its_own.end() == 0
    assert [pid for pid in pids if is_running(pid)] == []
    for part in (*(f"node {port}" for port in cluster_of_its_own.ports), "valkey"):
        assert f"{part} | ended\n" in cluster_of_its_own.log


def test_a_node_that_is_killed_takes_nobody_along(cluster_of_its_own):
    first, second, valkey = cluster_of_its_own.pids
    os.kill(first, signal.SIGKILL)
    wait_for_text(cluster_of_its_own, f"node {cluster_of_its_own.ports[0]} | ended with -9")
    assert is_running(second)
    assert is_running(valkey)


def test_a_port_that_is_taken_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "example_app.cluster", port],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr == f'port {port} is taken: make demo-cluster PORTS="8100 8101"\n'


def is_running(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for_text(cluster, text):
    deadline = time.monotonic() + 10
    while text not in cluster.log:
        assert time.monotonic() < deadline, cluster.log
        time.sleep(0.01)  # between two looks at the log
