"""What the tests do on a page, and where they look."""

from playwright.async_api import expect


def room(page, name="lobby"):
    return page.get_by_role("region", name=f"Room {name}", exact=True)


def direct(page, name):
    return page.get_by_role("region", name=f"Direct messages with {name}", exact=True)


def messages(column):
    return column.locator(".bubble")


async def say(column, text):
    box = column.get_by_role("textbox")
    await box.fill(text)
    await box.press("Enter")


async def open_room(page, name):
    await page.get_by_label("Open a room by name").fill(name)
    await page.get_by_label("Open a room by name").press("Enter")
    await expect(room(page, name)).to_be_visible()


async def announce(page, text):
    await page.get_by_role("button", name="Announce").click()
    await page.get_by_label("Announcement", exact=True).fill(text)
    await page.get_by_role("dialog").get_by_role("button", name="Announce").click()
