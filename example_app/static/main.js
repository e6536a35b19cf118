// The page: who we are, which places are open, and what comes over the line.

import { Column, placeOfRoom, placeOfUser } from "./column.js";
import { avatar, byId, icon, make, timeOf, toast } from "./dom.js";
import { Line } from "./line.js";

const SUGGESTED = ["lobby", "garden", "library"];
const OPEN = "example-open"; // in sessionStorage, so per tab: [{room} or {user}, and the draft]
const MAX_ANNOUNCEMENTS = 3;
const LOGGED_OUT = 4501; // CloseCode.REVOKED
const ERRORS = {
  rate_limited: "You are faster than the server wants to read: slow down.",
  unavailable: "Other nodes are out of reach: only this node’s tabs got that.",
};

const columns = new Map(); // place id -> Column
let me = null; // {id, name}; null while nobody is logged in
let directory = {}; // room -> how many users of our node are in it
let node = null; // {name, reaches_others} of the node that serves us; null where there is only one
let countdown = null; // the timer that redraws "Reconnecting in N s"

const line = new Line("/ws", isStillMe);

// Identity

async function post(path, body) {
  const response = await fetch(path, {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body ?? {}),
  });
  if (response.ok) return response.status === 204 ? null : response.json();
  const { detail } = await response.json().catch(() => ({ detail: null }));
  throw new Error(typeof detail === "string" ? detail : explain(detail) ?? "That did not work.");
}

function explain(detail) {
  const error = detail?.[0];
  if (error?.loc?.at(-1) === "name") return "Use 1 to 24 letters, digits, spaces or . ' _ - and begin with a letter or a digit.";
  return error?.msg;
}

async function whoAmI() {
  const response = await fetch("/me");
  if (response.ok) return response.json();
  if (response.status === 401) return null;
  throw new Error(`/me answered ${response.status}`);
}

/** Asked before each attempt to connect: the cookie may have ended, or belong to somebody else by now. */
async function isStillMe() {
  const user = await whoAmI();
  if (user?.id === me?.id) return true;
  leave(user ? `Another tab came in as ${user.name}.` : "The server does not know you any more: it may have been restarted.");
  return false;
}

function enter(user) {
  me = user;
  byId("login").hidden = true;
  byId("chat").hidden = false;
  byId("me").replaceChildren(avatar(me.name), make("bdi", { class: "not-small", text: me.name }));
  const places = JSON.parse(sessionStorage.getItem(OPEN)) ?? [{ room: SUGGESTED[0] }];
  for (const { draft, ...place } of places) open(place).draft = draft ?? "";
  line.start();
  columns.values().next().value?.focus();
}

function leave(why) {
  byId("name").value = me?.name ?? "";
  me = null;
  node = null;
  line.stop();
  for (const column of columns.values()) column.element.remove();
  columns.clear();
  byId("announcements").replaceChildren();
  byId("chat").hidden = true;
  byId("login").hidden = false;
  byId("login-why").hidden = !why;
  byId("login-why").textContent = why ?? "";
  byId("name").select();
  byId("name").focus();
}

// Places

const owner = {
  get me() {
    return me;
  },
  get node() {
    return node;
  },
  send: (message) => line.send(message),
  openDirect: (user) => open({ user }).focus(),
  close,
  changed() {
    remember();
    draw();
  },
};

function open(place) {
  const id = place.user ? placeOfUser(place.user) : placeOfRoom(place.room);
  let column = columns.get(id);
  if (!column) {
    column = new Column(place, owner);
    columns.set(id, column);
    byId("columns").append(column.element);
    if (line.state === "connected") {
      if (place.room) line.send({ type: "join", rooms: [place.room] });
    } else {
      column.sendButton.disabled = true;
    }
    owner.changed();
  }
  return column;
}

function close(column) {
  columns.delete(column.id);
  column.element.remove();
  if (column.room) line.send({ type: "leave", room: column.room });
  owner.changed();
  [...columns.values()].at(-1)?.focus();
}

function remember() {
  sessionStorage.setItem(OPEN, JSON.stringify([...columns.values()].map(({ place, draft }) => ({ ...place, draft }))));
}

function draw() {
  const opened = [...columns.values()];
  const rooms = new Set([...SUGGESTED, ...Object.keys(directory), ...opened.flatMap(({ room }) => room ?? [])]);
  byId("room-list").replaceChildren(...[...rooms].map((room) =>
    placeEntry(columns.get(placeOfRoom(room)), { room }, make("span", { class: "hash", text: "#", "aria-hidden": "true" }), room)));
  const direct = opened.filter(({ user }) => user);
  byId("direct-list").replaceChildren(...direct.map((column) => placeEntry(column, column.place, avatar(column.title), column.title)));
  byId("direct-hint").hidden = direct.length > 0;
  byId("nothing-open").hidden = opened.length > 0;
  const unread = opened.reduce((sum, column) => sum + column.unread, 0);
  document.title = unread ? `(${unread}) Rooms` : "Rooms";
}

function placeEntry(column, place, face, title) {
  const count = place.room && directory[place.room];
  const badge = column?.unread
    ? make("span", { class: "badge", text: String(column.unread), title: "unread" })
    : make("span", { class: "count", text: count ? String(count) : "", title: count ? `${count} ${node ? "on this node" : "here"}` : null });
  const choose = () => {
    showSide(false);
    open(place).focus();
  };
  return make("li", {}, make("button", { class: ["place", column && "open"], click: choose }, face, make("bdi", { text: title }), badge));
}

function showSide(shown) {
  byId("side").classList.toggle("shown", shown);
  byId("menu").setAttribute("aria-expanded", String(shown));
}

// The line

const HANDLERS = {
  said: (message) => columns.get(placeOfRoom(message.room))?.said(message),
  direct: (message) => open({ user: message.sender.id === me.id ? message.recipient : message.sender }).said(message),
  typing: ({ room, user }) => user.id !== me.id && columns.get(placeOfRoom(room))?.showTyping(user),
  members: ({ room, members }) => columns.get(placeOfRoom(room))?.showMembers(members),
  word: (message) => columns.get(placeOfRoom(message.room))?.word(message),
  announced: announced,
  directory({ rooms }) {
    directory = rooms;
    draw();
  },
  refused({ reason, key }) {
    for (const column of columns.values()) column.refused(key);
    toast(reason);
  },
  node(message) {
    node = message;
    drawState();
  },
  missed({ rooms, direct, since, until }) {
    for (const column of columns.values()) if (column.room === null ? direct : rooms.includes(column.room)) column.missed(since, until);
  },
  error: ({ code }) => toast(ERRORS[code] ?? "The server did not take that message."),
};

line.addEventListener("message", ({ detail }) => HANDLERS[detail.type]?.(detail));

line.addEventListener("ended", ({ detail: { code } }) =>
  leave(code === LOGGED_OUT ? "You logged out." : `The server does not want this page back by itself (close code ${code}).`),
);

line.addEventListener("state", ({ detail: { state, at } }) => {
  clearInterval(countdown);
  byId("state").dataset.state = state;
  byId("retry").hidden = state !== "waiting" && state !== "offline";
  if (state === "waiting") {
    const tick = () => (byId("state-text").textContent = `Reconnecting in ${Math.max(1, Math.ceil((at - Date.now()) / 1000))} s`);
    tick();
    countdown = setInterval(tick, 250);
  }
  drawState();
  if (state === "connected") {
    line.send({ type: "join", rooms: [...columns.values()].flatMap(({ room }) => room ?? []) });
    for (const column of columns.values()) column.connectionBack();
  } else if (state === "waiting" || state === "offline") {
    for (const column of columns.values()) column.connectionLost();
  }
});

function drawState() {
  const isAlone = line.state === "connected" && node?.reaches_others === false;
  const aside = (text) => make("span", { class: "not-small", text });
  const connected = !node ? ["Connected"] : isAlone ? [aside(`Connected to node ${node.name}, `), "alone"] : [aside("Connected to "), `node ${node.name}`];
  const [shown, spoken] = {
    connecting: [["Connecting…"], ""],
    connected: [connected, isAlone ? "Other nodes are out of reach" : "Connected"],
    waiting: [null, "Connection lost, trying again"],
    offline: [["Offline"], "Offline"],
    ended: [["Ended"], ""],
  }[line.state];
  byId("state").classList.toggle("alone", isAlone);
  byId("state").title = isAlone ? "Other nodes are out of reach: you talk to the tabs of this node only." : "";
  if (spoken && byId("state-spoken").textContent !== spoken) byId("state-spoken").textContent = spoken;
  if (shown) byId("state-text").replaceChildren(...shown);
}

function announced({ sender, text, at }) {
  const entry = make("div", { class: "announcement" }, icon("announce"),
    make("p", {}, make("strong", {}, make("bdi", { text: sender.name })), " ", make("span", { dir: "auto", text })), timeOf(at),
    make("button", { class: "icon-button", "aria-label": "Dismiss", click: () => entry.remove() }, icon("close")));
  const all = byId("announcements");
  all.append(entry);
  while (all.childElementCount > MAX_ANNOUNCEMENTS) all.firstElementChild.remove();
}

// What the user does

byId("login-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("login-error").textContent = "";
  try {
    enter(await post("/login", { name: byId("name").value }));
  } catch (error) {
    byId("login-error").textContent = error.message;
    byId("name").focus();
  }
});

byId("logout").addEventListener("click", async () => {
  line.stop();
  sessionStorage.removeItem(OPEN);
  try {
    const { everywhere } = await post("/logout");
    leave(everywhere ? "" : "Other nodes are out of reach: tabs of yours that they serve are still logged in.");
  } catch {
    leave("The server was not told: it is out of reach.");
  }
});

byId("open-room").addEventListener("submit", (event) => {
  event.preventDefault();
  const room = byId("room-name").value.trim().replace(/^#/, "").toLowerCase();
  if (!/^[\p{L}\p{N}][\p{L}\p{M}\p{N} _-]*$/u.test(room)) {
    toast("Room names are letters, digits, spaces, _ and -.");
    return;
  }
  byId("room-name").value = "";
  showSide(false);
  open({ room }).focus();
});

byId("announce").addEventListener("click", () => byId("announce-dialog").showModal());
byId("announce-cancel").addEventListener("click", () => byId("announce-dialog").close());
byId("announce-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("announce-error").textContent = "";
  try {
    const { reached } = await post("/announce", { text: byId("announce-text").value });
    byId("announce-text").value = "";
    byId("announce-dialog").close();
    toast(`Announced to ${reached} ${reached === 1 ? "tab" : "tabs"}${node ? " of this node, and to the other nodes" : ""}.`);
  } catch (error) {
    byId("announce-error").textContent = error.message;
  }
});

byId("retry").addEventListener("click", () => line.retry());
byId("menu").addEventListener("click", () => showSide(!byId("side").classList.contains("shown")));
byId("columns").addEventListener("pointerdown", () => showSide(false));

whoAmI().then((user) => (user ? enter(user) : leave("")), () => leave("The server is out of reach."));
