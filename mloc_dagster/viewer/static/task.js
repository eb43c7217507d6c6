// The page of a task.
import { ask, byId, bytes, copy, el, moment, number, plural, stateText, taskLink } from "./common.js";
import { curve, frequent, histogram, timeline } from "./charts.js";
import { allCells, answer, beside, inputs, passages, prompt, scores, section, text, tokens } from "./row_parts.js";
import { Rows } from "./rows.js";

const task = document.body.dataset.task;
const TABS = ["rows", "distributions", "shards", "training", "files"];
const FIRST_CURVES = ["loss", "eval_loss", "reward", "learning_rate", "grad_norm"];

let view;
let drawnQuestion = "";

function quickFilters(columns) {
  const has = (name) => columns.some((each) => each.name === name);
  const filters = [];
  for (const each of columns.filter((one) => one.group === "score" && one.kind === "number")) {
    filters.push({ text: `${each.name}: worst first`, sort: each.name, title: `Sort by ${each.name}, lowest first` });
    if (/^\w+$/.test(each.name)) filters.push({ text: `${each.name} < 1`, where: `${each.name} < 1` });
  }
  if (has("error")) filters.push({ text: "Errors", where: "error is not null" });
  const silent = has("tool_calls") ? " and tool_calls is null" : ""; // results of earlier versions have none
  filters.push({ text: "Empty outputs", where: `output == "" and error is null${silent}` });
  filters.push({ text: "Cut off", where: 'finish_reason == "length"' });
  filters.push({ text: "Longest outputs", sort: "output_chars", descending: true });
  if (has("latency_s")) filters.push({ text: "Slowest", sort: "latency_s", descending: true });
  return filters;
}

function drawRow(detail, columns) {
  const answered = drawAnswer(detail, columns);
  if (!detail.found) return answered;
  return [el("div", { class: "beside" }, el("div", {}, answered), el("div", {}, passages(detail.found)))];
}

/** Whether the output says what stands in the row anyway: the document's text, or the best passage. */
function isRepeated({ cells, found, outputs }) {
  if (!found || outputs.length !== 1) return false;
  return outputs[0] === cells.prompt || (!found.answer.length && outputs[0] === found.passages[0]?.text);
}

function drawAnswer(detail, columns) {
  const { cells, found } = detail;
  const parts = [...scores(cells, columns)];
  if (cells.error) parts.push(...section("Error", text(cells.error, "failed")));
  parts.push(...prompt(detail, task));
  (isRepeated(detail) ? [] : detail.outputs).forEach((output, place) => {
    const many = detail.outputs.length > 1;
    const why = found?.abstained ? "abstained" : detail.finish_reasons[place] ?? (many ? "" : cells.finish_reason);
    parts.push(...section(`Output${many ? ` ${place + 1} of ${detail.outputs.length}` : ""}${why ? ` · ${why}` : ""}`));
    const list = detail.tokens[place];
    const aside = { thought: detail.reasoning[place], called: detail.calls[place], found: many ? null : found };
    parts.push(...(list?.length ? [...tokens(list), ...beside(aside)] : answer(output, aside)));
  });
  if (!detail.outputs.length && !cells.error && !cells.embedding) parts.push(...section("Output", text("")));
  if (cells.embedding) parts.push(...section("Vector", text(cells.embedding, "code")));
  parts.push(...inputs(cells, columns, view.reference), allCells(cells));
  return parts;
}

function drawHead() {
  byId("title").textContent = view.template ? (view.node && view.node !== view.template ? `${view.template} › ${view.node}` : view.template) : task;
  document.title = `${byId("title").textContent} · mloc`;
  byId("state").textContent = stateText(view);
  byId("state").className = `state ${view.state}`;
  byId("facts").textContent = [view.task_type, view.model, view.source, moment(view.submitted_at)].filter(Boolean).join(" · ");
  byId("problems").replaceChildren(...view.problems.map((each) => el("p", { class: "problem" }, each)));
  const stages = Object.entries(view.stages);
  byId("stages").replaceChildren(...(stages.length ? ["stages: ", ...stages.flatMap(([node, id]) => [taskLink(id, node), " "])] : []));
  byId("figures").replaceChildren(...view.figures.map((each) => el("div", {}, el("dt", {}, each.name),
    el("dd", { class: typeof each.value === "string" ? "text" : "" }, number(each.value), each.note ? el("small", {}, each.note) : null))));
  byId("tab-training").hidden = view.training === null;
  drawProgress();
}

function drawProgress() {
  const running = view.state === "unfinished" && view.rows !== null && view.rows > 0;
  byId("progress").hidden = !running;
  if (!running) return;
  const { finished } = view;
  const share = Math.floor((100 * finished) / view.rows);
  const bar = byId("progress").firstElementChild;
  bar.style.setProperty("--share", `${share}%`);
  bar.setAttribute("aria-valuenow", share);
  const attempts = view.shards.length;
  byId("progress").lastElementChild.textContent = `${number(finished)} of ${plural(view.rows, "row")} (${share} %)${attempts ? `, ${plural(attempts, "shard attempt")}` : ""}`;
}

async function drawDistributions() {
  const question = rows.question();
  const key = JSON.stringify([question.where, question.search, rows.version]);
  if (key === drawnQuestion) return;
  const place = byId("distributions");
  place.replaceChildren(el("p", { class: "note" }, "Computing…"));
  try {
    const found = await ask("distributions", { ...question, sort: "" });
    drawnQuestion = key;
    const narrowed = question.where || question.search;
    place.replaceChildren(
      el("p", { class: "note" }, narrowed ? `Of the ${plural(found.selected, "row")} that the filter of the Rows tab leaves.` : `Of all ${plural(found.selected, "row")}.`),
      el("div", { class: "charts" }, found.histograms.map(histogram), found.values.map((each) => frequent(each, found.selected))));
  } catch (error) {
    place.replaceChildren(el("p", { class: "problem" }, error.message));
  }
}

function drawShards() {
  byId("shards").replaceChildren(view.shards.length ? timeline(view.shards)
    : el("p", { class: "note" }, "No shard has left rows of its own here: the task is small, is a training, or has not begun."));
}

function drawTraining() {
  const { history, before, after, gate } = view.training;
  const names = [...new Set(history.flatMap((each) => Object.keys(each)))].filter((each) => !["step", "epoch"].includes(each));
  const rank = (name) => (FIRST_CURVES.indexOf(name) + 1 || FIRST_CURVES.length + 1);
  const series = names.sort((a, b) => rank(a) - rank(b)).map((name) => [name, history.filter((each) => name in each).map((each) => [each.step, each[name]])]);
  const measured = Object.keys(after ?? {});
  byId("training").replaceChildren(
    ...(gate ? [el("p", { class: "note" }, `Gate: ${gate}`)] : []),
    ...(measured.length ? [el("table", { class: "plain narrow" },
      el("thead", {}, el("tr", {}, ["Evaluation", "Before", "After"].map((each, place) => el("th", { scope: "col", class: place ? "num" : "" }, each)))),
      el("tbody", {}, measured.map((name) => el("tr", {}, el("td", {}, name), el("td", { class: "num" }, number(before?.[name])), el("td", { class: "num" }, number(after[name]))))))] : []),
    el("div", { class: "charts" }, series.filter(([, points]) => points.length > 1).map(([name, points]) => curve(name, points))));
}

function drawFiles() {
  const address = (name) => `/ui/data/tasks/${encodeURIComponent(task)}/files/${name.split("/").map(encodeURIComponent).join("/")}`;
  byId("files").replaceChildren(view.files.length
    ? el("div", { class: "scroll" }, el("table", { class: "plain narrow" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "File"), el("th", { scope: "col", class: "num" }, "Size"))),
      el("tbody", {}, view.files.map((each) => el("tr", {}, el("td", {}, el("a", { href: address(each.name), download: "" }, each.name)), el("td", { class: "num" }, bytes(each.size)))))))
    : el("p", { class: "note" }, "Files are listed when the task is done: its manifest is written last."));
}

function show(name) {
  for (const each of TABS) {
    byId(each).hidden = each !== name;
    byId(`tab-${each}`).setAttribute("aria-selected", String(each === name));
    byId(`tab-${each}`).tabIndex = each === name ? 0 : -1;
  }
  history.replaceState(null, "", `${location.pathname}${location.search}${name === "rows" ? "" : `#${name}`}`);
  if (name === "distributions") drawDistributions();
  if (name === "shards") drawShards();
  if (name === "training" && view.training) drawTraining();
  if (name === "files") drawFiles();
}

function listenToTabs() {
  for (const each of TABS) byId(`tab-${each}`).addEventListener("click", () => show(each));
  document.querySelector("[role=tablist]").addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const open = TABS.filter((each) => !byId(`tab-${each}`).hidden);
    const now = open.findIndex((each) => byId(`tab-${each}`).getAttribute("aria-selected") === "true");
    const next = open[(now + by + open.length) % open.length];
    show(next);
    byId(`tab-${next}`).focus();
  });
}

const rows = new Rows({ task }, drawRow, quickFilters);

/** Follows a task until it is done; less often when nothing has happened for a minute. */
function follow() {
  if (view.state !== "unfinished") return;
  const latest = Math.max(0, ...view.shards.map((each) => each.stop_ms), Date.parse(view.submitted_at) || 0);
  setTimeout(async () => {
    if (!document.hidden) {
      try {
        view = await ask(`tasks/${encodeURIComponent(task)}`);
        drawHead();
        if (!byId("shards").hidden) drawShards();
        await rows.refresh();
      } catch {
        // The server is away for a moment: the next look finds it, or says so when something is clicked.
      }
    }
    follow();
  }, Date.now() - latest < 60_000 ? 2000 : 10_000);
}

async function start() {
  byId("copy").addEventListener("click", ({ target }) => copy(task, target));
  const listing = rows.start();
  listing.catch(() => {}); // said below, when the head of the page is there
  await rows.answered; // the head has the server list every file of the task: rows come first
  view = await ask(`tasks/${encodeURIComponent(task)}`);
  drawHead();
  listenToTabs();
  const wanted = location.hash.slice(1);
  try {
    await listing;
  } catch (error) {
    byId("counts").textContent = "";
    rows.problem(error.message);
  }
  if (TABS.includes(wanted)) show(wanted);
  else if (view.training && !rows.total) show("training");
  follow();
}

start().catch((error) => byId("problems").append(el("p", { class: "problem" }, error.message)));
