// One open place: a room, or the direct messages with one user.

import { avatar, icon, make, timeOf, toast } from "./dom.js";

const TYPING_EVERY = 2000; // milliseconds between two "typing" messages
const TYPING_LASTS = 3500;
const GROUPED = 3 * 60_000; // what one person says within this time stands under one name
const MAX_ENTRIES = 500;

let keys = 0;
const page = Math.random().toString(36).slice(2, 10);
const newKey = () => `${page}-${(keys += 1)}`;

export const placeOfRoom = (room) => `room:${room}`;
export const placeOfUser = (user) => `user:${user.id}`;

export class Column {
  unread = 0;
  #owner;
  #pending = new Map(); // key -> {text, entry}: sent, not yet echoed
  #answers = new Map(); // key -> {entry, bubble}: answers of the bot that are still coming
  #members = null; // of a room; null until told, and again after the connection was lost
  #typists = new Map(); // user id -> {name, timer}
  #lastTyping = 0;
  #atBottom = true; // of the log; written by its scroll events
  #outage = null; // the line that says that the connection was lost, while it is
  #visible = false; // written by the observer
  #toldElsewhere = false; // that nobody knows whether what is written here arrives

  /**
   * @param {{room: string} | {user: {id: string, name: string}}} place
   * @param owner {me, node, send(message), openDirect(user), close(column), changed(column)}
   */
  constructor(place, owner) {
    this.place = place;
    this.room = place.room ?? null;
    this.user = place.user ?? null;
    this.id = this.room !== null ? placeOfRoom(this.room) : placeOfUser(this.user);
    this.title = this.room ?? this.user.name;
    this.#owner = owner;
    this.#build();
    this.element.addEventListener("focusin", () => this.#saw());
    this.log.addEventListener("scroll", () => {
      this.#atBottom = this.log.scrollHeight - this.log.clientHeight - this.log.scrollTop < 60;
    });
    new ResizeObserver(() => this.#keepBottom()).observe(this.log);
    new IntersectionObserver(([entry]) => {
      this.#visible = entry.isIntersecting;
      if (this.#visible) this.#saw();
    }, { threshold: 0.6 }).observe(this.element);
    document.addEventListener("visibilitychange", () => this.#visible && this.#saw());
  }

  get draft() {
    return this.input.value;
  }

  set draft(text) {
    this.input.value = text;
    this.#grow();
  }

  focus() {
    this.element.scrollIntoView({ inline: "nearest", block: "nearest" });
    this.input.focus({ preventScroll: true });
  }

  /** Somebody said something here, perhaps we ourselves: then it is the echo of what is pending. */
  said({ sender, text, key, at, is_elsewhere }) {
    const mine = sender.id === this.#owner.me.id;
    if (mine) this.#takePending(key);
    this.#stopTyping(sender.id);
    this.#append(this.#message({ sender, text, at, mine }), { mine });
    if (!mine) this.#arrived();
    if (mine && is_elsewhere && !this.#toldElsewhere) this.#notice(`${this.user.name} has no tab on this node. If there is one on another, it got this.`);
    this.#toldElsewhere = Boolean(is_elsewhere);
  }

  /** The node that serves us did not hear the others for a while. */
  missed(since, until) {
    const [from, to] = [since, until].map((moment) => new Date(moment).toLocaleTimeString());
    this.#notice(`What other nodes said ${from === to ? `at ${to}` : `between ${from} and ${to}`} may be missing`);
  }

  /** What was sent was refused: back into the box with it. */
  refused(key) {
    const pending = this.#takePending(key);
    if (pending) this.draft = [pending.text, this.draft].filter(Boolean).join("\n");
    return Boolean(pending);
  }

  word({ key, text, is_last }) {
    let answer = this.#answers.get(key);
    if (!answer) {
      const entry = this.#message({ bot: true, text: "", at: Date.now() });
      answer = { entry, bubble: entry.querySelector(".bubble") };
      entry.classList.add("streaming");
      entry.setAttribute("aria-busy", "true"); // read out when it is complete, not word by word
      this.#answers.set(key, answer);
      this.#append(entry);
    }
    answer.bubble.append(text);
    this.#keepBottom();
    if (is_last) this.#endAnswer(key);
  }

  showMembers(members) {
    if (this.#members !== null) {
      const [before, now] = [this.#members, members].map((users) => new Set(users.map((user) => user.id)));
      for (const user of members) if (!before.has(user.id)) this.#notice(`${user.name} came in`);
      for (const user of this.#members) if (!now.has(user.id)) this.#notice(`${user.name} left`), this.#stopTyping(user.id);
    }
    this.#members = members;
    const me = this.#owner.me;
    const chips = [...members]
      .sort((a, b) => (b.id === me.id) - (a.id === me.id) || a.name.localeCompare(b.name))
      .map((user) => make("li", {}, this.#chip(user, user.id === me.id)));
    this.memberList.replaceChildren(...chips);
    this.count.textContent = `${members.length} ${this.#owner.node ? "on this node" : "here"}`;
  }

  showTyping(user) {
    clearTimeout(this.#typists.get(user.id)?.timer);
    const timer = setTimeout(() => this.#stopTyping(user.id), TYPING_LASTS);
    this.#typists.set(user.id, { name: user.name, timer });
    this.#drawTyping();
  }

  connectionLost() {
    this.#members = null;
    for (const id of [...this.#typists.keys()]) this.#stopTyping(id);
    for (const key of [...this.#answers.keys()]) this.#endAnswer(key);
    for (const key of [...this.#pending.keys()].reverse()) this.refused(key);
    this.sendButton.disabled = true;
    this.#outage ??= this.#notice("Connection lost");
  }

  connectionBack() {
    this.sendButton.disabled = false;
    if (!this.#outage) return;
    this.#outage.querySelector("span").textContent = "Connected again. What was said meanwhile is not shown.";
    this.#outage = null;
  }

  #build() {
    const name = this.room !== null ? `Room ${this.room}` : `Direct messages with ${this.user.name}`;
    this.count = make("span", { class: "count" });
    this.memberList = make("ul", { class: "members", "aria-label": "Who is here" });
    this.empty = make("div", { class: "empty" },
      icon(this.room !== null ? "door" : "letter"),
      this.room !== null
        ? make("p", {}, make("strong", { text: `This is ${this.room}` }), make("br"), "Say something, or ", make("kbd", { text: "/ask" }), " who is here.")
        : make("p", {}, make("strong", { text: `You and ${this.user.name}` }), make("br"), "Nobody else reads this."));
    this.log = make("div", { class: "log", role: "log", "aria-label": `Messages, ${name}`, tabindex: "0" }, this.empty);
    this.typing = make("p", { class: "typing", "aria-live": "off" });
    const box = `box-${this.id}`;
    this.input = make("textarea", {
      id: box, rows: "1", maxlength: "2000", dir: "auto", placeholder: this.room !== null ? `Message ${this.room}` : `Message ${this.user.name}`,
      input: () => this.#edited(),
      keydown: (event) => {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
        event.preventDefault();
        this.#submit();
      },
    });
    this.sendButton = make("button", { class: "send", "aria-label": "Send" }, icon("send"));
    const composer = make("form", { class: "composer", submit: (event) => (event.preventDefault(), this.#submit()) },
      make("label", { class: "spoken", for: box, text: `Message, ${name}` }), this.input, this.sendButton);
    const close = make("button", { class: "icon-button", "aria-label": `Close ${this.title}`, click: () => this.#owner.close(this) }, icon("close"));
    const heading = this.room !== null
      ? make("h2", {}, make("span", { class: "hash", "aria-hidden": "true", text: "#" }), make("bdi", { text: this.room }))
      : make("h2", {}, avatar(this.user.name), make("bdi", { text: this.user.name }));
    const head = make("header", {}, heading, this.room !== null ? this.count : make("span", { class: "count", text: "direct" }), close);
    this.element = make("section", { class: ["column", this.user && "direct"], "aria-label": name },
      head, this.room !== null ? this.memberList : null, this.log, this.typing, composer);
  }

  #chip(user, isMe) {
    const content = [avatar(user.name), make("bdi", { text: isMe ? "You" : user.name })];
    if (isMe) return make("span", { class: "chip", title: user.name }, ...content);
    return make("button", { class: "chip", title: `Write to ${user.name} alone`, click: () => this.#owner.openDirect(user) }, ...content);
  }

  #submit() {
    const text = this.draft.trim();
    if (!text) return;
    const key = newKey();
    const [, isQuestion, question] = text.match(/^(\/ask\b)\s*(.*)$/s) ?? [];
    if (isQuestion && this.room === null) return toast("The bot answers in rooms only.");
    const message = isQuestion
      ? { type: "ask", room: this.room, question: question || "help", key }
      : this.room !== null ? { type: "say", room: this.room, text, key } : { type: "direct", to: this.user, text, key };
    if (!this.#owner.send(message)) return; // the draft stays
    this.draft = "";
    this.#lastTyping = 0;
    this.#owner.changed(this);
    const entry = this.#message({ sender: this.#owner.me, text: isQuestion ? question || "help" : text, at: Date.now(), mine: true });
    entry.classList.add(isQuestion ? "question" : "pending");
    if (!isQuestion) this.#pending.set(key, { text, entry });
    this.#append(entry, { mine: true });
  }

  #edited() {
    this.#grow();
    this.#owner.changed(this);
    const now = Date.now();
    if (this.room === null || !this.draft.trim() || this.draft.startsWith("/") || now - this.#lastTyping < TYPING_EVERY) return;
    if (this.#owner.send({ type: "typing", room: this.room })) this.#lastTyping = now;
  }

  #grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${this.input.scrollHeight}px`;
  }

  #message({ sender, text, at, mine = false, bot = false }) {
    const name = bot ? "Bot" : sender.name;
    const face = bot ? make("span", { class: "avatar bot", "aria-hidden": "true" }, icon("bot")) : avatar(name);
    const entry = make("article", { class: ["entry", mine ? "mine" : "theirs", bot && "from-bot"] },
      mine ? null : face,
      make("div", { class: "said" },
        make("p", { class: "byline" }, this.#author(sender, mine ? "You" : name, { mine, bot }), timeOf(at)),
        make("p", { class: "bubble", dir: "auto", text })));
    entry.dataset.from = bot ? "bot" : sender.id;
    entry.dataset.at = String(new Date(at).getTime());
    return entry;
  }

  #author(user, name, { mine, bot }) {
    const element = make("bdi", { class: mine ? "spoken" : "name", text: name });
    if (mine || bot || this.room === null) return element;
    // The only way to write to somebody on another node, who is not among the members that ours knows.
    return make("button", { class: "author", title: `Write to ${name} alone`, click: () => this.#owner.openDirect(user) }, element);
  }

  #append(entry, { mine = false } = {}) {
    const last = this.log.lastElementChild;
    const follows = last?.dataset.from && last.dataset.from === entry.dataset.from && entry.dataset.at - last.dataset.at < GROUPED
      && last.classList.contains("question") === entry.classList.contains("question");
    entry.classList.toggle("follows", Boolean(follows));
    this.empty.remove();
    this.log.append(entry);
    this.#atBottom ||= mine;
    this.#keepBottom();
    while (this.log.childElementCount > MAX_ENTRIES) this.log.firstElementChild.remove();
  }

  #notice(text) {
    const entry = make("p", { class: "notice" }, make("span", { text }));
    // The invitation stays while nothing was said: who comes and goes stands below it.
    this.log.append(entry);
    this.#keepBottom();
    return entry;
  }

  /** Stay at the end of the log if that is where we are; whoever reads further up is not moved. */
  #keepBottom() {
    if (this.#atBottom) this.log.scrollTop = this.log.scrollHeight;
  }

  #takePending(key) {
    const pending = this.#pending.get(key);
    this.#pending.delete(key);
    pending?.entry.remove();
    return pending;
  }

  #endAnswer(key) {
    const { entry } = this.#answers.get(key);
    this.#answers.delete(key);
    entry.classList.remove("streaming");
    entry.removeAttribute("aria-busy");
  }

  #stopTyping(id) {
    clearTimeout(this.#typists.get(id)?.timer);
    if (this.#typists.delete(id)) this.#drawTyping();
  }

  #drawTyping() {
    const names = [...this.#typists.values()].map(({ name }) => name);
    const who = names.length > 2 ? `${names.length} people are` : names.length === 2 ? `${names.join(" and ")} are` : `${names[0]} is`;
    const dots = make("span", { class: "dots", "aria-hidden": "true" }, make("i"), make("i"), make("i"));
    this.typing.replaceChildren(...(names.length ? [dots, `${who} typing`] : []));
  }

  #arrived() {
    if (this.#visible && !document.hidden) return;
    this.unread += 1;
    this.#owner.changed(this);
  }

  #saw() {
    if (!this.unread || document.hidden) return;
    this.unread = 0;
    this.#owner.changed(this);
  }
}
