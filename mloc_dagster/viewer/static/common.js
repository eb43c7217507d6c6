// What all pages share: asking the server, making elements, showing numbers and times.

/** Makes an element. Texts become text nodes: what a row holds is never markup. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((each) => each !== null && each !== undefined));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Returns a query string; empty values are left out, lists repeat their name. */
export function query(values) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== "" && each !== null && each !== undefined && each !== false) found.append(name, each);
    }
  }
  return found.toString();
}

/** Asks the server for JSON. Throws an Error with the server's words. */
export async function ask(path, values = {}, options = {}) {
  let answer;
  try {
    answer = await fetch(`/ui/data/${path}?${query(values)}`, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  if (answer.status === 401) {
    location.assign(`/ui/login?next=${encodeURIComponent(location.pathname + location.search)}`);
    throw new Error("Sign in again.");
  }
  const body = await answer.json().catch(() => ({ detail: `the server answers ${answer.status}` }));
  if (!answer.ok) throw new Error(body.detail ?? `the server answers ${answer.status}`);
  return body;
}

const whole = new Intl.NumberFormat("en");

/** Shows a number with as many digits as help. */
export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return whole.format(value);
  const size = Math.abs(value);
  if (size >= 1000) return whole.format(Math.round(value));
  if (size !== 0 && size < 1e-4) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}

export function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (size >= 1024 && place < units.length - 1) {
    size /= 1024;
    place += 1;
  }
  return `${size < 10 && place ? size.toFixed(1) : Math.round(size)} ${units[place]}`;
}

export const plural = (count, noun) => `${number(count)} ${noun}${count === 1 ? "" : "s"}`;

export function moment(text) {
  return text ? new Date(text).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" }) : "";
}

const STATES = { done: "done", refused: "refused by its gate", failed: "failed", unfinished: "not done" };

export function stateText(view) {
  return view.said ? view.said.toLowerCase().replaceAll("_", " ") : STATES[view.state];
}

export function taskLink(id, text = id) {
  return el("a", { href: `/ui/tasks/${encodeURIComponent(id)}` }, text);
}

export async function copy(text, button) {
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Select it and copy";
  }
  setTimeout(() => (button.textContent = before), 1500);
}
