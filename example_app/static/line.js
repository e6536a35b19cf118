// One WebSocket that comes back: exponential backoff with full jitter
// (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), so that a thousand tabs do not return to
// a restarted server in the same second.

import { mayReconnect } from "./close-codes.js";

const BASE = 500;
const CAP = 20_000;
const STEADY = 5_000; // open for so long, a connection counts as good and the backoff begins anew
const PING_EVERY = 20_000;
const PONG_WITHIN = 10_000;

/**
 * Events: `state` {state, at?}, `message` {the parsed message}, `ended` {code}.
 * States: connecting, connected, waiting (until `at`), offline, ended.
 */
export class Line extends EventTarget {
  state = "ended";
  #path;
  #mayConnect; // async () => boolean: asked before each attempt; false ends the line, an exception counts as a failure
  #socket = null;
  #attempts = 0;
  #timer = null; // the next attempt
  #steady = null;
  #heartbeat = null;
  #heard = 0; // when the last message came

  constructor(path, mayConnect) {
    super();
    this.#path = path;
    this.#mayConnect = mayConnect;
    addEventListener("online", () => this.retry());
    addEventListener("offline", () => {
      if (this.state === "waiting") this.#become("offline");
      else if (this.state === "connected") this.#ping(this.#socket); // it may live on, for one to this very host
    });
  }

  start() {
    this.#attempts = 0;
    this.#connect();
  }

  /** Do not wait any longer. */
  retry() {
    if (this.state === "waiting" || this.state === "offline") this.#connect();
  }

  stop() {
    this.#become("ended");
    this.#forgetSocket()?.close(1000);
    clearTimeout(this.#timer);
  }

  /** Send, and say whether there was a connection to send on. Whether it arrived, only an echo can tell. */
  send(message) {
    if (this.state !== "connected") return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  async #connect() {
    clearTimeout(this.#timer);
    this.#become("connecting");
    try {
      if (!(await this.#mayConnect())) {
        this.stop();
        return;
      }
    } catch {
      this.#lost();
      return;
    }
    if (this.state !== "connecting") return; // stopped meanwhile
    const socket = (this.#socket = new WebSocket(new URL(this.#path, location.href.replace(/^http/, "ws"))));
    socket.addEventListener("open", () => this.#opened(socket));
    socket.addEventListener("message", ({ data }) => {
      this.#heard = Date.now();
      const message = JSON.parse(data);
      if (message.type !== "pong") this.dispatchEvent(new CustomEvent("message", { detail: message }));
    });
    socket.addEventListener("close", ({ code }) => {
      if (socket !== this.#socket) return;
      this.#forgetSocket();
      if (mayReconnect(code)) {
        this.#lost();
      } else {
        this.#become("ended");
        this.dispatchEvent(new CustomEvent("ended", { detail: { code } }));
      }
    });
  }

  #opened(socket) {
    if (socket !== this.#socket) return;
    this.#steady = setTimeout(() => (this.#attempts = 0), STEADY);
    this.#heartbeat = setInterval(() => this.#ping(socket), PING_EVERY);
    this.#become("connected");
  }

  /** Find out about a connection that is dead without having been closed. */
  #ping(socket) {
    const asked = Date.now();
    socket.send('{"type":"ping"}');
    setTimeout(() => {
      if (socket !== this.#socket || this.#heard >= asked) return;
      this.#forgetSocket();
      socket.close();
      this.#lost();
    }, PONG_WITHIN);
  }

  #lost() {
    if (this.state === "ended") return;
    const delay = Math.random() * Math.min(CAP, BASE * 2 ** this.#attempts);
    this.#attempts += 1;
    this.#timer = setTimeout(() => this.retry(), delay);
    if (navigator.onLine) this.#become("waiting", Date.now() + delay);
    else this.#become("offline");
  }

  #forgetSocket() {
    const socket = this.#socket;
    this.#socket = null;
    clearTimeout(this.#steady);
    clearInterval(this.#heartbeat);
    return socket;
  }

  #become(state, at) {
    this.state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, at } }));
  }
}
