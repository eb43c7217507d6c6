// The parts of a chosen row: texts, chats, images, reasoning, tool calls, tokens, differences.
import { el, number } from "./common.js";

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
 */
export function answer(output, { thought = "", called = [] } = {}) {
  const parsed = thought || called.length;
  const thoughts = parsed ? [thought].filter(Boolean) : [...output.matchAll(THINKING)].map((each) => each[1].trim());
  const calls = parsed ? [] : [...output.matchAll(TOOL_CALL)].map((each) => each[1].trim());
  const said = parsed ? output : output.replace(THINKING, "").replace(TOOL_CALL, "");
  const parts = reasoning(thoughts.join("\n\n"));
  if (said.trim() || !(parts.length || called.length)) parts.push(text(thoughts.length || calls.length ? said.trim() : output));
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
