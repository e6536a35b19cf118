// Made by `python -m example_app.close_codes` from the table of fastapi_rooms: a test compares. Copy it to your client.

/** The first and the last of the close codes after which a client must not come back by itself. */
const FINAL = [
  [1000, 1000], // it is over
  [1002, 1003], // the client would make the same mistake again: the protocol, a kind of message
  [1007, 1009], // likewise: data that cannot be read, too many messages, a message that is too large
  [1010, 1010], // an extension is missing, and will be
  [4500, 4999], // by our convention: logged out, replaced, banned
];

/** Whether a client that was closed with a code may connect again; with a growing and random delay. */
export const mayReconnect = (code) => !FINAL.some(([first, last]) => first <= code && code <= last);
