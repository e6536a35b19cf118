// Making elements. Text only ever becomes text: nothing here parses markup, and the Content-Security-Policy forbids it.

const COLOURS = ["#0b6e5f", "#8a4b12", "#5b4bb7", "#a8324f", "#1f6591", "#5a6b14", "#8b3a8f", "#3e6a3a", "#b0421c", "#3f5d7d"];

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes, except `class` as a word or a list, `text`, and listeners as functions. */
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name, value);
    else if (name === "class") element.className = [value].flat().filter(Boolean).join(" ");
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  const use = document.createElementNS(space, "use");
  svg.setAttribute("aria-hidden", "true");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** The first letters of the first and the last word of a name, on the colour that belongs to the name. */
export function avatar(name) {
  const words = name.split(/[\s._-]+/).filter(Boolean);
  const letters = [words[0], words.length > 1 ? words.at(-1) : ""].map((word) => [...word][0] ?? "").join("");
  const element = make("span", { class: "avatar", "aria-hidden": "true", text: letters.toLocaleUpperCase() });
  let hash = 7;
  for (const letter of name) hash = (hash * 31 + letter.codePointAt(0)) % 9973;
  element.style.backgroundColor = COLOURS[hash % COLOURS.length];
  return element;
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });

export function timeOf(moment) {
  const date = new Date(moment);
  return make("time", { datetime: date.toISOString(), text: clock.format(date), title: date.toLocaleString() });
}

export function toast(text) {
  const element = make("p", { class: "toast", text });
  byId("toasts").append(element);
  setTimeout(() => element.remove(), 6000);
}
