// Two tasks side by side.
import { ask, byId, el, number, plural } from "./common.js";
import { allCells, difference, inputs, prompt, section, text } from "./row_parts.js";
import { Rows } from "./rows.js";

const { a, b } = document.body.dataset;

function quickFilters(columns) {
  const filters = [{ text: "Answers differ", where: "changed == true" }];
  for (const each of columns.filter((one) => one.name.endsWith("_delta"))) {
    const name = each.name.slice(0, -"_delta".length);
    filters.push({ text: `${name}: got worse`, where: `${each.name} < 0` });
    filters.push({ text: `${name}: got better`, where: `${each.name} > 0` });
    filters.push({ text: `${name}: largest loss first`, sort: each.name });
  }
  return filters.filter((each) => each.where === undefined || /^\w+ /.test(each.where));
}

function drawRow(detail, columns) {
  const { cells } = detail;
  const deltas = columns.filter((each) => each.name.endsWith("_delta"));
  const shown = deltas.map(({ name }) => {
    const stem = name.slice(0, -"_delta".length);
    return el("span", { class: cells[name] < 0 ? "cell-low" : "" }, `${stem} `, el("b", {}, `${number(cells[`${stem}_a`])} → ${number(cells[`${stem}_b`])}`));
  });
  const [left, right] = difference(cells.output_a ?? "", cells.output_b ?? "");
  const failed = (side) => (cells[`error_${side}`] ? [text(cells[`error_${side}`], "failed")] : []);
  return [
    shown.length ? el("p", { class: "scores" }, shown) : null,
    ...prompt(detail, a),
    ...section("Output of a", ...failed("a"), left),
    ...section("Output of b", ...failed("b"), right),
    ...inputs(cells, columns),
    allCells(cells),
  ].filter(Boolean);
}

function drawDeltas(found) {
  byId("facts").textContent = [plural(found.rows, "row") + " in both",
    found.only_a ? `${number(found.only_a)} in a only` : "", found.only_b ? `${number(found.only_b)} in b only` : ""].filter(Boolean).join(" · ");
  byId("deltas").hidden = !found.deltas.length;
  byId("deltas").tBodies[0].replaceChildren(...found.deltas.map((each) => {
    const delta = each.a === null || each.b === null ? null : each.b - each.a;
    const direction = each.score && delta ? (delta > 0 ? "up" : "down") : "";
    const cell = (value, extra = "") => el("td", { class: `num ${extra}` }, value);
    return el("tr", {}, el("td", {}, each.name), cell(number(each.a)), cell(number(each.b)),
      cell(delta === null ? "–" : `${delta > 0 ? "+" : ""}${number(delta)}`, direction), cell(number(each.higher)), cell(number(each.lower)), cell(number(each.rows)));
  }));
}

const rows = new Rows({ task: a, beside: b }, drawRow, quickFilters);

async function start() {
  for (const side of ["a", "b"]) byId(`link-${side}`).href = `/ui/tasks/${encodeURIComponent({ a, b }[side])}`;
  byId("swap").addEventListener("click", () => location.assign(`/ui/compare?a=${encodeURIComponent(b)}&b=${encodeURIComponent(a)}`));
  drawDeltas(await ask("deltas", { task: a, beside: b }));
  await rows.start();
}

start().catch((error) => {
  byId("counts").textContent = "";
  rows.problem(error.message);
});
