import asyncio
import re
import signal

import pytest
from pages import announce, direct, messages, open_room, room, say
from playwright.async_api import expect

from fastapi_rooms import may_reconnect

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

INJECTION = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

HOW_A_LINE_GOES_ON = """async (codes) => {
    const {Line} = await import("/static/line.js");
    const real = window.WebSocket;
    const states = [];
    for (const code of codes) {
        window.WebSocket = class extends EventTarget {
            constructor() {
                super();
                setTimeout(() => this.dispatchEvent(new CloseEvent("close", {code})));
            }
        };
        const line = new Line("/ws", async () => true);
        states.push(await new Promise((resolve) => {
            line.addEventListener("state", ({detail: {state}}) => state !== "connecting" && resolve(state));
            line.start();
        }));
        line.stop();
    }
    window.WebSocket = real;
    return states;
}"""

WATCH_BOT = """() => {
    window.seen = [];
    const look = () => window.seen.push(document.querySelector(".from-bot .bubble")?.textContent ?? "");
    new MutationObserver(look).observe(document.querySelector(".log"), {childList: true, subtree: true});
}"""


async def members(page, *others, of="lobby"):
    names = ("You", *others)
    await expect(room(page, of).locator(".chip bdi")).to_have_text(names)
    await expect(room(page, of).locator(".count")).to_have_text(f"{len(names)} here")


async def test_two_users_talk_in_a_room_and_see_who_is_here(visit):
    (ada, _), (bo, bo_visitor) = await asyncio.gather(visit("Ada"), visit("Bo"))
    await members(ada, "Bo")
    await members(bo, "Ada")

    await say(room(ada), "Hello, Bo")
    await say(room(bo), "Hello, Ada")
    for page in (ada, bo):
        await expect(messages(room(page))).to_have_text(["Hello, Bo", "Hello, Ada"])
        await expect(page.locator(".pending")).to_have_count(0)

    second_tab = await bo_visitor.open_tab(bo.url)
    await members(second_tab, "Ada")
    await members(ada, "Bo")  # once, with two tabs
    await bo.close()
    await say(room(second_tab), "Still here")
    await expect(messages(room(ada)).last).to_have_text("Still here")
    await members(ada, "Bo")
    await second_tab.close()
    await members(ada)


async def test_what_is_said_in_one_room_is_not_heard_in_another(visit):
    (ada, _), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    await open_room(ada, "garden")
    await open_room(bo, "garden")
    await members(ada, "Bo", of="garden")
    await say(room(ada, "garden"), "Among the roses")
    await say(room(bo), "In the lobby")
    for page in (ada, bo):
        await expect(messages(room(page, "garden"))).to_have_text(["Among the roses"])
        await expect(messages(room(page))).to_have_text(["In the lobby"])

    await room(bo, "garden").get_by_role("button", name="Close garden").click()
    await members(ada, of="garden")
    await expect(ada.locator("#room-list").get_by_role("button", name="garden")).to_have_text("#garden1")


async def test_typing_is_shown_to_the_others_alone(visit):
    (ada, ada_visitor), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    ada_too = await ada_visitor.open_tab(ada.url)
    await members(bo, "Ada")
    await ada.bring_to_front()
    await room(ada).get_by_role("textbox").press_sequentially("Well")
    await expect(room(bo).locator(".typing")).to_have_text("Ada is typing")
    await say(room(bo), "Yes?")
    for page in (ada, ada_too):  # order per connection: had they been told, they would have been told before this
        await expect(messages(room(page))).to_have_text(["Yes?"])
        await expect(room(page).locator(".typing")).to_have_text("")
    await room(ada).get_by_role("textbox").press("Enter")
    await expect(messages(room(bo)).last).to_have_text("Well")
    await expect(room(bo).locator(".typing")).to_have_text("")


async def test_a_direct_message_reaches_all_tabs_of_both_users_and_nobody_else(visit):
    (ada, ada_visitor), (bo, bo_visitor), (cy, _) = await asyncio.gather(visit("Ada"), visit("Bo"), visit("Cy"))
    ada_too, bo_too = await asyncio.gather(ada_visitor.open_tab(ada.url), bo_visitor.open_tab(bo.url))
    await members(ada, "Bo", "Cy")

    await ada.bring_to_front()
    await room(ada).get_by_role("button", name="Bo").click()
    await say(direct(ada, "Bo"), "Between us")
    for page, other in ((ada, "Bo"), (ada_too, "Bo"), (bo, "Ada"), (bo_too, "Ada")):
        await expect(messages(direct(page, other))).to_have_text(["Between us"])
    await say(direct(bo_too, "Ada"), "Of course")
    await expect(messages(direct(ada, "Bo"))).to_have_text(["Between us", "Of course"])

    await say(room(bo), "Good evening")
    await expect(messages(room(cy))).to_have_text(["Good evening"])
    await expect(messages(cy)).to_have_count(1)


async def test_an_announcement_reaches_everybody(visit):
    (ada, _), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    await room(bo).get_by_role("button", name="Close lobby").click()  # in no room at all
    await announce(ada, "Tea is ready")
    for page in (ada, bo):
        await expect(page.locator(".announcement p")).to_have_text("Ada Tea is ready")
    await expect(ada.locator(".toast")).to_have_text("Announced to 2 tabs.")


async def test_an_answer_streams_in_to_the_one_who_asked(visit):
    (ada, ada_visitor), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    ada_too = await ada_visitor.open_tab(ada.url)
    await members(ada, "Bo")
    await ada.bring_to_front()
    await ada.evaluate(WATCH_BOT)
    await say(room(ada), "/ask who is here, and how many connections are there?")
    full = "In lobby there are Ada and Bo. 3 connections are open on this node."
    await expect(room(ada).locator(".from-bot:not(.streaming) .bubble")).to_have_text(full)
    seen = await ada.evaluate("() => window.seen")
    assert len(seen) > 5
    assert all(full.startswith(text.strip()) for text in seen)
    assert seen == sorted(seen, key=len)

    await say(room(bo), "Did you say something?")
    for page in (ada_too, bo):
        await expect(messages(room(page))).to_have_text(["Did you say something?"])


async def test_script_is_shown_as_text(visit, demo):
    (ada, ada_visitor), (bo, bo_visitor) = await asyncio.gather(visit("Ada"), visit("Bo"))
    await members(ada, "Bo")
    await say(room(bo), INJECTION)
    await room(bo).get_by_role("button", name="Ada").click()
    await say(direct(bo, "Ada"), INJECTION)
    await bo.request.post(f"{demo.url}/announce", data={"text": INJECTION})
    await expect(messages(room(ada))).to_have_text([INJECTION])
    await expect(messages(direct(ada, "Bo"))).to_have_text([INJECTION])
    await expect(ada.locator(".announcement span")).to_have_text(INJECTION)
    assert await ada.locator("img, script:not([src])").count() == 0
    assert "owned" not in await ada.title()
    # Were a script to insert markup after all, the Content-Security-Policy would stop it.
    inserted = "() => { try { document.body.innerHTML = '<b>x</b>' } catch (error) { return error.name } }"
    assert await ada.evaluate(inserted) == "TypeError"
    ada_visitor.problems.clear()  # which the browser reported
    assert bo_visitor.problems == []


async def test_after_a_restart_the_page_comes_back_into_its_rooms(visit, demo):
    (ada, _), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    await open_room(ada, "garden")
    await open_room(bo, "garden")
    await members(ada, "Bo", of="garden")
    await room(ada, "garden").get_by_role("textbox").fill("Not sent yet")

    demo.end(signal.SIGKILL)
    try:
        for page in (ada, bo):
            await expect(page.locator("#state")).to_have_attribute("data-state", re.compile("waiting|connecting"))
            await expect(room(page).locator(".notice").last).to_have_text("Connection lost")
        await expect(ada.locator("#state")).to_have_text(re.compile(r"Reconnecting in \d+ s"))
        await room(ada, "garden").get_by_role("textbox").press("Enter")
        await expect(room(ada, "garden").get_by_role("textbox")).to_have_value("Not sent yet")
    finally:
        demo.start()

    for page in (ada, bo):
        await expect(page.locator("#state")).to_have_text("Connected", timeout=20_000)
        await expect(room(page).locator(".notice", has_text="Connected again")).to_be_visible()
    for name in ("lobby", "garden"):
        await members(ada, "Bo", of=name)
        await members(bo, "Ada", of=name)
    await room(ada, "garden").get_by_role("textbox").press("Enter")
    await expect(messages(room(bo, "garden"))).to_have_text(["Not sent yet"])


async def test_logging_out_ends_all_tabs_for_good(visit):
    (ada, ada_visitor), (bo, _) = await asyncio.gather(visit("Ada"), visit("Bo"))
    ada_too = await ada_visitor.open_tab(ada.url)
    await members(bo, "Ada")
    await ada.bring_to_front()
    await ada.get_by_role("button", name="Log out").click()
    for page in (ada, ada_too):
        await expect(page.get_by_role("heading", name="Come in")).to_be_visible()
    await expect(ada_too.locator("#login-why")).to_have_text("You logged out.")
    await members(bo)

    await ada.get_by_label("Your name").fill("Bo")
    ada_visitor.problems.clear()
    await ada.get_by_role("button", name="Enter").click()
    await expect(ada.locator("#login-error")).to_have_text("Bo is here already: choose another name.")
    ada_visitor.problems.clear()  # the browser reports the 409


async def test_the_page_comes_back_after_the_same_codes_as_the_library_says(visit):
    ada, _ = await visit("Ada")
    codes = [-1, *range(5_001), 65_535, None]
    table = "import('/static/close-codes.js')"
    said = await ada.evaluate(f"async (codes) => codes.map((await {table}).mayReconnect)", codes)
    assert said == [may_reconnect(code) for code in codes]

    codes = [0, *range(1000, 1016), 3000, 4000, 4401, 4499, 4500, 4501, 4999]
    states = await ada.evaluate(HOW_A_LINE_GOES_ON, codes)
    assert states == ["waiting" if may_reconnect(code) else "ended" for code in codes]


@pytest.mark.parametrize(("scheme", "lightness"), [("light", range(200, 256)), ("dark", range(40))])
async def test_follows_the_system_into_light_and_dark(visit, tmp_path, scheme, lightness):
    ada, _ = await visit("Ada", color_scheme=scheme, viewport={"width": 1280, "height": 800})
    assert await background(ada) in lightness
    picture = await ada.screenshot(path=tmp_path / f"{scheme}.png")
    assert len(picture) > 5_000
    await ada.get_by_role("button", name="Switch between light and dark").click()
    assert await background(ada) not in lightness
    await ada.reload()
    assert await background(ada) not in lightness  # remembered


async def test_fits_a_small_screen(visit):
    ada, _ = await visit("Ada", viewport={"width": 375, "height": 700})
    rooms = ada.get_by_role("button", name="Rooms and people")
    await rooms.click()
    await open_room(ada, "garden")
    await expect(rooms).to_have_attribute("aria-expanded", "false")
    await expect(room(ada, "garden")).to_be_in_viewport(ratio=0.9)
    assert await ada.evaluate("document.documentElement.scrollWidth") == 375


async def background(page):
    colour = await page.evaluate("getComputedStyle(document.body).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (red + green + blue) // 3
