// The parts of a chosen row: texts, chats, images, reasoning, tool calls, tokens, differences.
import { byId, el, number, plural } from "./common.js";

const THINKING = /<think(?:ing)?>([\s\S]*?)(?:<\/think(?:ing)?>|$)/g;
const TOOL_CALL = /<tool_call>([\s\S]*?)(?:<\/tool_call>|$)/g;

export function section(title, ...children) {
  return [el("h2", {}, title), ...children.filter(Boolean)];
}

export function text(value, ...classes) {
  return el("pre", { class: ["text", ...classes].join(" "), tabindex: "0" }, String(value));
}

/**
 * An answer; what a model thinks, and tools that it calls, apart from what it says.
 *
 * An engine that has parsed them gives `thought` and `called`; else they are looked for in the text.
 * Of an answer that may cite, `found` has its parts and the passages.
 */
export function answer(output, { thought = "", called = [], found = null } = {}) {
  const parsed = thought || called.length;
  const thoughts = parsed ? [thought].filter(Boolean) : [...output.matchAll(THINKING)].map((each) => each[1].trim());
  const calls = parsed ? [] : [...output.matchAll(TOOL_CALL)].map((each) => each[1].trim());
  const said = parsed ? output : output.replace(THINKING, "").replace(TOOL_CALL, "");
  const parts = reasoning(thoughts.join("\n\n"));
  const whole = !(thoughts.length || calls.length) || said === output;
  if (said.trim() || !(parts.length || called.length)) parts.push(whole && found?.answer.length ? cited(found) : text(whole ? output : said.trim()));
  for (const call of calls) parts.push(...section("Tool call", text(pretty(call), "code")));
  return [...parts, ...toolCalls(called)];
}

/** What an answer has beside its text. */
export function beside({ thought = "", called = [] }) {
  return [...reasoning(thought), ...toolCalls(called)];
}

/** What a model thought before it answered: long, and seldom what is looked for. */
function reasoning(thought) {
  return thought ? [el("details", {}, el("summary", {}, "Reasoning"), text(thought))] : [];
}

function toolCalls(calls) {
  return calls.map((call) => text(`${call.name}(${call.arguments})`, "code", "call"));
}

function pretty(source) {
  try {
    return JSON.stringify(JSON.parse(source), null, 2);
  } catch {
    return source;
  }
}

/** A prompt: a text, or the messages of a chat with their images. */
export function prompt(detail, task) {
  if (!detail.messages.length) return section("Prompt", text(detail.cells.prompt ?? ""));
  return detail.messages.flatMap((message) =>
    section(`Prompt · ${message.role}${message.answers ? ` · ${message.answers}` : ""}`,
      pictures(message.pictures, task), ...reasoning(message.reasoning),
      message.text ? text(message.text) : null,
      ...toolCalls(message.calls)));
}

function pictures(found, task) {
  if (!found.length) return null;
  return el("div", { class: "pictures" }, found.map((each) => {
    const source = each.inline || (each.file && `/ui/data/tasks/${encodeURIComponent(task)}/image/${each.file}`);
    return source ? el("img", { src: source, alt: `Image of the row: ${each.name}`, loading: "lazy" })
      : el("code", {}, `image elsewhere: ${each.name}`);
  }));
}

/** An answer whose citations lead to their passages. */
function cited({ answer: parts, passages: all }) {
  return el("pre", { class: "text", tabindex: "0" }, parts.flatMap((part) => (part.cites.length ? part.cites.map((n) => citation(n, all[n - 1])) : part.text)));
}

function citation(n, passage) {
  if (!passage) return el("span", { class: "cite none", title: `There is no passage ${n}` }, `[${n}]`);
  return el("button", { type: "button", class: "cite", title: passage.document, "aria-label": `Passage ${n}: ${passage.document}`, onclick: () => point(n) }, `[${n}]`);
}

function point(n) {
  const passage = byId(`passage-${n}`);
  passage.focus({ preventScroll: true });
  passage.scrollIntoView({ block: "nearest" });
}

/** What was found for a row, in its order: which of it should have been, and which the answer cites. */
export function passages(found) {
  const { passages: all, chunks, missed, left_out: left } = found;
  const relevant = all.filter((each) => each.relevant).length;
  const known = all.some((each) => each.relevant !== null) || missed.length;
  const notes = [
    found.citation_error && el("p", { class: "problem" }, `Citations: ${found.citation_error}`),
    left ? el("p", { class: "note" }, `${plural(left, "passage")} more found, for which the prompt had no room.`) : null,
    missed.length ? el("p", { class: "problem warn" }, `Relevant, and not here: ${missed.join(", ")}`) : null,
  ];
  const title = chunks ? plural(all.length, "chunk") : `${plural(all.length, "passage")} found${known ? `, ${number(relevant)} relevant` : ""}`;
  return [...section(title, ...notes), ...all.map((each) => passage(each, chunks))];
}

function passage(each, chunk) {
  const said = [...each.headings, each.place].filter(Boolean);
  return el("section", { class: `passage${each.cited ? " cited" : ""}${each.relevant ? " relevant" : ""}`, id: `passage-${each.n}`, tabindex: "-1",
    "aria-label": `${chunk ? "Chunk" : "Passage"} ${each.n}` },
    el("p", { class: "head" }, el("strong", {}, chunk ? `${each.n}` : `[${each.n}] ${each.document}`),
      each.cited ? el("span", { class: "mark" }, "cited") : null,
      each.relevant ? el("span", { class: "mark good" }, "relevant") : null,
      el("span", { class: "grow" }),
      Object.entries(each.scores).map(([name, value]) => el("span", { class: "note", title: `${name}: ${value}` }, `${name} `, el("b", {}, number(Number(value.toPrecision(3))))))),
    said.length ? el("p", { class: "note" }, said.join(" › ")) : null,
    text(each.text));
}

/** The tokens of an answer, coloured by how likely each was. */
export function tokens(list) {
  const shade = (p) => (p < 0.1 ? "p0" : p < 0.3 ? "p1" : p < 0.6 ? "p2" : p < 0.9 ? "p3" : "");
  const legend = [["p0", "< 10 %"], ["p1", "< 30 %"], ["p2", "< 60 %"], ["p3", "< 90 %"]];
  return [
    el("p", { class: "legend" }, "How likely each token was:", legend.map(([name, says]) => el("span", { class: `token ${name}` }, says))),
    el("pre", { class: "text" }, list.map(([token, logprob, top]) => {
      const p = Math.exp(logprob);
      const others = top.map(([other, value]) => `${JSON.stringify(other)} ${(100 * Math.exp(value)).toFixed(1)} %`);
      return el("span", { class: `token ${shade(p)}`, title: [`${(100 * p).toFixed(1)} %`, ...others].join("\n") }, token);
    })),
  ];
}

export function scores(cells, columns) {
  const found = columns.filter((each) => each.group === "score" && each.name in cells);
  if (!found.length) return [];
  return [el("p", { class: "scores" }, found.map((each) =>
    el("span", { class: cells[each.name] === 0 ? "cell-low" : "" }, `${each.name} `, el("b", {}, number(cells[each.name])))))];
}

/** What the row brought along, the right answer first; not again what is the prompt. */
export function inputs(cells, columns, reference = "") {
  const brought = columns.filter((each) => each.group === "input" && cells[each.name] !== null && cells[each.name] !== undefined
    && cells[each.name] !== cells.prompt);
  brought.sort((a, b) => (b.name === reference) - (a.name === reference));
  return brought.flatMap((each) => (each.name === reference
    ? section(`${each.name} · the right answer`, text(cells[each.name], "reference"))
    : section(`${each.name} · of the input`, text(cells[each.name]))));
}

export function allCells(cells) {
  return el("details", {}, el("summary", {}, "All columns"),
    el("dl", { class: "cells" }, Object.entries(cells).flatMap(([name, value]) => [
      el("dt", {}, name), el("dd", {}, value === null ? el("span", { class: "cell-none" }, "null") : String(value))])));
}

const MOST_WORDS = 1500;

/** Two texts, word by word: what only one of them has is marked. Long ones are only shown. */
export function difference(a, b) {
  const words = (source) => source.match(/\s+|[^\s]+/g) ?? [];
  const [left, right] = [words(a), words(b)];
  if (left.length > MOST_WORDS || right.length > MOST_WORDS) return [text(a), text(b)];
  const width = right.length + 1;
  const common = new Uint16Array((left.length + 1) * width);
  for (let i = left.length - 1; i >= 0; i -= 1) {
    for (let j = right.length - 1; j >= 0; j -= 1) {
      common[i * width + j] = left[i] === right[j] ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
    }
  }
  const [shownA, shownB] = [text(""), text("")];
  let i = 0;
  let j = 0;
  while (i < left.length || j < right.length) {
    if (i < left.length && j < right.length && left[i] === right[j]) {
      shownA.append(left[i]);
      shownB.append(right[j]);
      i += 1;
      j += 1;
    } else if (j >= right.length || (i < left.length && common[(i + 1) * width + j] >= common[i * width + j + 1])) {
      shownA.append(el("del", {}, left[i]));
      i += 1;
    } else {
      shownB.append(el("ins", {}, right[j]));
      j += 1;
    }
  }
  return [shownA, shownB];
}
