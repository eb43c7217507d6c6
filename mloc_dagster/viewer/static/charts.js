// Histograms, frequent values, curves and the timeline of shards.
import { el, number, plural } from "./common.js";

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function axes() {
  const stroke = colour("--dim");
  const grid = { stroke: colour("--line"), width: 1 };
  const ticks = { stroke: colour("--line"), width: 1 };
  const values = (_, splits) => splits.map((each) => (each === null ? "" : number(each)));
  return [{ stroke, grid, ticks, values }, { stroke, grid, ticks, values, size: 56 }];
}

/** Draws when the element has a width, and again when the width or the theme changes. */
function drawn(parent, make, height) {
  const place = el("div", {});
  parent.append(place);
  let chart;
  const draw = () => {
    const width = place.clientWidth;
    if (!width) return;
    chart?.destroy();
    chart = make(place, width, height);
  };
  new ResizeObserver(() => (chart && place.clientWidth ? chart.setSize({ width: place.clientWidth, height }) : draw())).observe(place);
  addEventListener("mloc-theme", draw);
}

export function histogram(found) {
  const spread = `mean ${number(found.mean)} · median ${number(found.p50)} · 5–95 % ${number(found.p5)}–${number(found.p95)} · ${plural(found.count, "row")}`;
  const card = el("section", { class: "chart", "aria-label": `Distribution of ${found.name}: ${spread}` },
    el("h2", {}, found.name), el("p", {}, spread));
  const middles = found.counts.map((_, place) => (found.edges[place] + found.edges[place + 1]) / 2);
  const [low, high] = [found.edges[0], found.edges.at(-1)];
  drawn(card, (place, width, height) => new uPlot({
    width, height, legend: { show: true, live: true }, cursor: { drag: { setScale: false } },
    scales: { x: { time: false, range: [low, high] }, y: { range: (_, __, most) => [0, most * 1.08 || 1] } },
    axes: axes(),
    series: [
      { label: found.name, value: (_, value) => (value === null ? "–" : number(value)) },
      { label: "rows", fill: colour("--accent"), stroke: colour("--accent"), width: 0, points: { show: false },
        paths: uPlot.paths.bars({ size: [0.92, 90] }), value: (_, value) => (value === null ? "–" : number(value)) },
    ],
  }, [middles, found.counts], place), 170);
  return card;
}

export function frequent(found, all) {
  const most = Math.max(...found.values.map((each) => each[1]), 1);
  return el("section", { class: "chart" }, el("h2", {}, found.name),
    el("div", { class: "counted" }, found.values.flatMap(([text, count]) => [
      el("span", { title: text }, text), el("span", { class: "num" }, number(count)),
      el("meter", { min: 0, max: most, value: count, "aria-label": `${text}: ${count} of ${all}` })]),
    found.others ? [el("span", {}, "other values"), el("span", { class: "num" }, number(found.others))] : []));
}

/** A curve of what a training logged, over its steps. */
export function curve(name, points) {
  const last = points.at(-1)[1];
  const card = el("section", { class: "chart", "aria-label": `${name} over steps` }, el("h2", {}, name),
    el("p", {}, `last ${number(last)} · ${plural(points.length, "entry").replace("entrys", "entries")}`));
  drawn(card, (place, width, height) => new uPlot({
    width, height, cursor: { drag: { x: true, y: false } },
    scales: { x: { time: false } },
    axes: axes(),
    series: [
      { label: "step", value: (_, value) => (value === null ? "–" : number(value)) },
      { label: name, stroke: colour("--accent"), width: 1.6, points: { show: points.length < 40 },
        value: (_, value) => (value === null ? "–" : number(value)) },
    ],
  }, [points.map((each) => each[0]), points.map((each) => each[1])], place), 200);
  return card;
}

const SVG = "http://www.w3.org/2000/svg";
const svg = (tag, attributes, ...children) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};

/** When which attempt at which shard left rows. */
export function timeline(bars) {
  const begin = Math.min(...bars.map((each) => each.start_ms));
  const seconds = Math.max((Math.max(...bars.map((each) => each.stop_ms)) - begin) / 1000, 0.001);
  const shards = [...new Set(bars.map((each) => each.shard))].sort((a, b) => a - b);
  const [left, width, row] = [64, 900, 20];
  const height = shards.length * row + 26;
  const x = (ms) => left + (((ms - begin) / 1000) / seconds) * width;
  const drawing = svg("svg", { class: "timeline", viewBox: `0 0 ${left + width + 60} ${height}`, width: "100%", role: "img",
    "aria-label": `${plural(shards.length, "shard")} over ${number(seconds)} seconds` });
  for (let tick = 0; tick <= 4; tick += 1) {
    const at = left + (tick / 4) * width;
    drawing.append(svg("line", { x1: at, x2: at, y1: 0, y2: height - 20 }),
      svg("text", { x: at, y: height - 5, "text-anchor": "middle" }, `${number((seconds * tick) / 4)} s`));
  }
  shards.forEach((shard, place) =>
    drawing.append(svg("text", { x: left - 8, y: place * row + 14, "text-anchor": "end" }, `shard ${shard}`)));
  for (const bar of bars) {
    const y = shards.indexOf(bar.shard) * row + 4;
    const says = `shard ${bar.shard}, attempt ${bar.attempt}: ${plural(bar.rows, "row")} in ${number((bar.stop_ms - bar.start_ms) / 1000)} s`;
    drawing.append(svg("rect", { x: x(bar.start_ms), y, width: Math.max(x(bar.stop_ms) - x(bar.start_ms), 2), height: 12, rx: 2,
      class: bar.attempt > 1 ? "again" : "" }, svg("title", {}, says)));
  }
  return drawing;
}
