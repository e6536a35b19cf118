"""The table of `may_reconnect` for the page: `python -m example_app.close_codes` writes it anew."""

from pathlib import Path

from fastapi_rooms.domain.close_codes import FINAL

FILE = Path(__file__).parent / "static" / "close-codes.js"


def as_javascript() -> str:
    """Return a module that says what `fastapi_rooms.may_reconnect` does."""
    rows = "".join(f"  [{first}, {last}], // {why}\n" for first, last, why in FINAL)
    return f"""\
// Made by `python -m example_app.close_codes` from the table of fastapi_rooms: a test compares. Copy it to your client.

/** The first and the last of the close codes after which a client must not come back by itself. */
const FINAL = [
{rows}];

/** Whether a client that was closed with a code may connect again; with a growing and random delay. */
export const mayReconnect = (code) => !FINAL.some(([first, last]) => first <= code && code <= last);
"""


if __name__ == "__main__":
    FILE.write_text(as_javascript(), encoding="utf-8")
