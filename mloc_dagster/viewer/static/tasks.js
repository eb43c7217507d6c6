// The list of tasks.
import { ask, byId, el, moment, number, stateText, taskLink } from "./common.js";

const chosen = new Set();

function line(task) {
  const name = task.template ? (task.node && task.node !== task.template ? `${task.template} › ${task.node}` : task.template) : task.task_id;
  const box = el("input", { type: "checkbox", "aria-label": `Choose ${task.task_id} to compare`, onchange: ({ target }) => {
    if (target.checked) chosen.add(task.task_id);
    else chosen.delete(task.task_id);
    byId("compare").disabled = chosen.size !== 2;
  } });
  const metrics = Object.entries(task.metrics).slice(0, 3).map(([metric, mean]) => `${metric} ${number(mean)}`).join(", ");
  return el("tr", { "data-text": `${name} ${task.task_id} ${task.task_type}`.toLowerCase() },
    el("td", {}, box),
    el("td", {}, taskLink(task.task_id, name), el("small", {}, task.task_id)),
    el("td", {}, task.task_type),
    el("td", {}, el("span", { class: `state ${task.state}` }, stateText(task))),
    el("td", { class: "num" }, number(task.rows)),
    el("td", { class: `num ${task.errors ? "down" : ""}` }, number(task.errors)),
    el("td", {}, metrics),
    el("td", {}, moment(task.submitted_at)));
}

function filter() {
  const wanted = byId("find").value.trim().toLowerCase();
  for (const row of byId("tasks").tBodies[0].rows) row.hidden = !row.dataset.text.includes(wanted);
}

async function start() {
  const given = new URLSearchParams(location.search), batch = given.get("batch");
  const tasks = await ask("tasks", batch ? { batch } : {});
  if (batch) byId("heading").textContent = `Tasks of batch ${batch}`;
  byId("tasks").tBodies[0].replaceChildren(...tasks.map(line));
  byId("tasks").hidden = !tasks.length;
  byId("status").hidden = tasks.length > 0;
  byId("status").textContent = "No task has left anything here yet. Start one: mloc run demo";
  byId("find").value = given.get("find") ?? "";
  byId("find").addEventListener("input", filter);
  filter();
  byId("compare").addEventListener("click", () => {
    const [a, b] = tasks.map((each) => each.task_id).filter((each) => chosen.has(each)).reverse(); // the older one first
    location.assign(`/ui/compare?a=${encodeURIComponent(a)}&b=${encodeURIComponent(b)}`);
  });
}

start().catch((error) => (byId("status").textContent = error.message));
