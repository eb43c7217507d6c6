// The table of rows: what is asked of them, the table that loads what is seen, the chosen row.
import { ask, byId, el, number, plural, query } from "./common.js";

const BLOCK = 200;
const FIRST_HIDDEN = new Set([
  "task_id", "shard", "prompt_sha256", "outputs", "model", "revision", "engine", "worker", "attempt",
  "prompt_tokens", "reasoning_tokens", "cached_tokens", "engine_s", "energy_j", "gpu_s", "cost", "reused", "saved_s",
  "custom_id", "prompt_chars", "output_chars", "error_a", "error_b", "latency_s_a", "latency_s_b",
]);
const WIDE = new Set(["prompt", "output", "output_a", "output_b", "tool_calls", "error", "embedding"]);

/** The table's library: the largest of all files, so that the first rows are asked for meanwhile. */
const library = new Promise((resolve, reject) => {
  const failed = () => reject(new Error("The server does not answer. Is it still running?"));
  document.head.append(el("script", { src: byId("table-library").href, onload: resolve, onerror: failed }));
});
library.catch(() => {}); // said by who waits for it

export class Rows {
  /**
   * @param {object} of what the server is asked for: `{task}` or `{task, beside}`
   * @param {(detail: object) => Node[]} draw makes the elements of a chosen row
   * @param {(columns: object[]) => object[]} chips returns quick filters: `{text, where?, sort?, descending?}`
   */
  constructor(of, draw, chips) {
    Object.assign(this, { of, draw, chips, version: "", chosen: null, place: -1, selected: 0 });
    /** Settles when the first rows are there, cannot be had, or have to be looked for. */
    this.answered = new Promise((resolve) => (this.settle = resolve));
  }

  async start() {
    const found = await ask("columns", this.of).catch((error) => {
      this.settle();
      throw error;
    });
    this.columns = found.columns;
    this.total = found.rows;
    this.version = found.version;
    this.hidden = new Set([...FIRST_HIDDEN, ...found.idle]);
    this.showNotes(found.notes);
    this.readAddress();
    const shown = this.columnDefs().filter((each) => !each.hide);
    this.first = this.window(0, BLOCK, shown.map((each) => each.colId));
    this.first.found.then(this.settle, this.settle); // an error is said where the table asks for it
    const { where, search, sort } = this.question();
    if (where || search || sort) this.settle();
    await library; // what is clicked on needs the table
    this.makeColumnsMenu();
    this.makeChips();
    this.makeGrid();
    this.listen();
  }

  /** Looks whether rows were added, and shows them. */
  async refresh() {
    const found = await ask("columns", this.of);
    if (found.version === this.version) return;
    const hidden = new Set([...FIRST_HIDDEN, ...found.idle]);
    const same = JSON.stringify([found.columns, [...hidden]]) === JSON.stringify([this.columns, [...this.hidden]]);
    this.hidden = hidden;
    Object.assign(this, { columns: found.columns, total: found.rows, version: found.version });
    this.showNotes(found.notes);
    if (!same) {
      this.grid.setGridOption("columnDefs", this.columnDefs());
      this.makeColumnsMenu();
      this.makeChips();
    }
    this.grid.refreshInfiniteCache();
  }

  showNotes(notes) {
    byId("row-notes")?.remove();
    if (!notes.length) return;
    const shown = el("div", { id: "row-notes" }, notes.map((each) => el("p", { class: "problem warn" }, each)));
    byId("question").after(shown);
  }

  readAddress() {
    const given = new URLSearchParams(location.search);
    byId("where").value = given.get("where") ?? "";
    byId("search").value = given.get("search") ?? "";
    this.sort = given.get("sort") ?? "";
    this.descending = given.get("descending") === "true";
  }

  question() {
    return {
      ...this.of,
      where: byId("where").value.trim(),
      search: byId("search").value,
      sort: this.sort,
      descending: this.descending,
    };
  }

  ordering() {
    const [sorted] = this.grid?.getColumnState().filter((each) => each.sort) ?? [];
    if (this.grid) {
      this.sort = sorted?.colId ?? "";
      this.descending = sorted?.sort === "desc";
    }
  }

  columnDefs() {
    const places = { index: 0, changed: 2, prompt: 3, output: 5, tool_calls: 5, output_a: 5, output_b: 5, error: 5 };
    const order = (each) => places[each.name] ?? { score: 1, input: 4, row: 6 }[each.group];
    return this.columns
      .map((each, place) => ({ each, place }))
      .sort((a, b) => order(a.each) - order(b.each) || a.place - b.place)
      .map(({ each }) => this.columnDef(each));
  }

  columnDef(column) {
    const { name, kind, group } = column;
    return {
      colId: name,
      field: name,
      headerName: name,
      headerTooltip: { score: `${name}: a score`, input: `${name}: a column of the input` }[group] ?? name,
      hide: this.hidden.has(name) && this.sort !== name,
      sortable: kind !== "other",
      sort: this.sort === name ? (this.descending ? "desc" : "asc") : null,
      type: kind === "number" ? "rightAligned" : undefined,
      width: name === "index" ? 88 : kind === "number" ? Math.min(190, Math.max(96, 46 + name.length * 8)) : 150,
      ...(WIDE.has(name) || (group === "input" && kind === "text") ? { flex: WIDE.has(name) ? 2 : 1, minWidth: 150 } : {}),
      pinned: name === "index" && innerWidth > 800 ? "left" : null,
      valueFormatter: ({ value }) => (value === null || value === undefined ? "" : typeof value === "number" ? number(value) : String(value).replace(/\s+/g, " ")),
      cellClassRules: {
        "cell-low": ({ value }) => group === "score" && (name.endsWith("_delta") ? value < 0 : value === 0),
        "cell-high": ({ value }) => group === "score" && (name.endsWith("_delta") ? value > 0 : value === 1),
        "cell-error": () => name === "error",
      },
    };
  }

  makeGrid() {
    const shown = this;
    this.grid = agGrid.createGrid(byId("grid"), {
      theme: agGrid.themeQuartz.withParams({
        backgroundColor: "var(--paper)", foregroundColor: "var(--ink)", borderColor: "var(--line)",
        headerBackgroundColor: "var(--well)", headerTextColor: "var(--dim)", rowHoverColor: "var(--hover)",
        accentColor: "var(--accent)", chromeBackgroundColor: "var(--well)", fontFamily: "inherit",
        fontSize: 13, headerFontSize: 12, spacing: 5, wrapperBorderRadius: 8, oddRowBackgroundColor: "var(--paper)",
      }),
      styleNonce: document.querySelector("meta[name=style-nonce]").content,
      columnDefs: this.columnDefs(),
      defaultColDef: { resizable: true, sortingOrder: ["asc", "desc", null], suppressHeaderMenuButton: true },
      suppressFieldDotNotation: true,
      suppressMultiSort: true,
      rowModelType: "infinite",
      cacheBlockSize: BLOCK,
      maxBlocksInCache: 30,
      maxConcurrentDatasourceRequests: 2,
      blockLoadDebounceMillis: 40,
      infiniteInitialRowCount: Math.min(this.total, 1),
      rowHeight: 30,
      headerHeight: 34,
      ensureDomOrder: true,
      tooltipShowDelay: 600,
      rowSelection: { mode: "singleRow", checkboxes: false, enableClickSelection: true },
      getRowId: ({ data }) => String(data.index),
      overlayNoRowsTemplate: " ",
      datasource: { rowCount: undefined, getRows: (request) => shown.load(request) },
      onRowClicked: ({ data, rowIndex }) => data && shown.open(data.index, rowIndex),
      onCellKeyDown: ({ event, data, rowIndex }) => {
        if (data && event.key === "Enter") {
          shown.open(data.index, rowIndex);
          byId("detail").focus();
        }
      },
    });
  }

  /** Asks for some rows: returns what was asked, and a promise of the answer. */
  window(start, stop, column, known = null) {
    const asked = { ...this.question(), column, start, count: stop - start };
    const text = query(asked);
    return known?.text === text ? known : { text, found: ask("rows", asked) };
  }

  async load({ startRow, endRow, successCallback, failCallback, sortModel }) {
    this.sort = sortModel[0]?.colId ?? "";
    this.descending = sortModel[0]?.sort === "desc";
    const column = (this.grid ? this.grid.getAllDisplayedColumns().map((each) => each.getColId())
      : this.columnDefs().filter((each) => !each.hide).map((each) => each.colId));
    const question = this.question();
    const { first } = this;
    this.first = null;
    try {
      const { found: answer } = this.window(startRow, endRow, column, first);
      const found = await answer;
      this.problem("");
      this.selected = found.selected;
      this.count(question);
      successCallback(found.rows, found.selected);
    } catch (error) {
      this.problem(error.message);
      failCallback();
    }
  }

  count(question) {
    const narrowed = question.where || question.search;
    const all = plural(this.total, "row");
    byId("counts").replaceChildren(
      ...(narrowed ? [el("b", {}, number(this.selected)), ` of ${all}`] : [el("b", {}, all)]),
      question.sort ? `, by ${question.sort}${question.descending ? ", largest first" : ""}` : "",
      this.selected === 0 ? (this.total === 0 ? " are there yet." : ". No row is like that: change the filter.") : "",
    );
    const { task, beside, ...asked } = question;
    const kept = query({ ...(beside ? { a: task, b: beside } : {}), ...asked });
    history.replaceState(null, "", `${location.pathname}${kept ? `?${kept}` : ""}`);
    for (const link of byId("export").querySelectorAll("a")) {
      link.href = `/ui/data/export?${query({ ...question, format: link.dataset.format })}`;
    }
    this.pressChips();
  }

  problem(text) {
    byId("problem").textContent = text;
    byId("problem").hidden = !text;
  }

  reload() {
    this.grid.ensureIndexVisible?.(0, "top");
    this.grid.purgeInfiniteCache();
  }

  makeColumnsMenu() {
    byId("columns-known").replaceChildren(...this.columns.map((each) => el("option", { value: `${each.name} ` })));
    const groups = { score: "Scores", input: "Of the input", row: "Of the row" };
    byId("columns").replaceChildren(
      ...Object.entries(groups).flatMap(([group, title]) => {
        const members = this.columns.filter((each) => each.group === group);
        if (!members.length) return [];
        return [
          el("p", { class: "note" }, title),
          ...members.map((each) =>
            el("label", {}, el("input", {
              type: "checkbox",
              checked: !this.hidden.has(each.name),
              onchange: ({ target }) => {
                this.grid.setColumnsVisible([each.name], target.checked);
                this.grid.refreshInfiniteCache();
              },
            }), each.name)),
        ];
      }),
    );
  }

  makeChips() {
    this.known = this.chips(this.columns);
    byId("chips").replaceChildren(
      ...this.known.map((chip) =>
        el("button", { type: "button", title: chip.title ?? chip.where ?? "", onclick: () => this.useChip(chip) }, chip.text)),
    );
  }

  isUsed(chip) {
    if (chip.where !== undefined) return byId("where").value.trim() === chip.where;
    return this.sort === chip.sort && this.descending === Boolean(chip.descending);
  }

  pressChips() {
    [...byId("chips").children].forEach((button, place) =>
      button.setAttribute("aria-pressed", String(this.isUsed(this.known[place]))));
  }

  useChip(chip) {
    const used = this.isUsed(chip);
    if (chip.where !== undefined) {
      byId("where").value = used ? "" : chip.where;
      this.reload();
    } else {
      this.grid.applyColumnState({
        state: used ? [] : [{ colId: chip.sort, sort: chip.descending ? "desc" : "asc" }],
        defaultState: { sort: null },
      });
    }
  }

  listen() {
    byId("question").addEventListener("submit", (event) => {
      event.preventDefault();
      this.reload();
    });
    let waiting;
    byId("search").addEventListener("input", () => {
      clearTimeout(waiting);
      waiting = setTimeout(() => this.reload(), 250);
    });
    byId("where").addEventListener("change", () => this.reload());
    byId("export").addEventListener("click", () => (byId("export").parentElement.open = false));
    document.addEventListener("click", ({ target }) => {
      for (const menu of document.querySelectorAll("details.menu[open]")) if (!menu.contains(target)) menu.open = false;
    });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        for (const menu of document.querySelectorAll("details.menu[open]")) menu.open = false;
        this.close();
      }
      if (event.target.closest("input") || event.ctrlKey || event.metaKey || event.altKey) return;
      if (event.key === "/") {
        event.preventDefault();
        byId("search").focus();
      } else if (event.key === "j") this.step(1);
      else if (event.key === "k") this.step(-1);
    });
  }

  async open(index, place) {
    this.place = place;
    this.chosen = index;
    const aside = byId("detail");
    let children;
    try {
      const detail = await ask("row", { ...this.of, index });
      if (this.chosen !== index) return; // another one was chosen meanwhile
      children = this.draw(detail, this.columns);
    } catch (error) {
      children = [el("p", { class: "problem" }, error.message)];
    }
    aside.replaceChildren(
      el("header", {},
        el("h2", {}, `Row ${number(index)}`),
        el("span", { class: "grow" }),
        el("button", { type: "button", class: "quiet", title: "The row before (k)", onclick: () => this.step(-1), disabled: place <= 0 }, "↑ Previous"),
        el("button", { type: "button", class: "quiet", title: "The next row (j)", onclick: () => this.step(1), disabled: place >= this.selected - 1 }, "↓ Next"),
        el("button", { type: "button", class: "quiet", title: "Close (Esc)", "aria-label": "Close", onclick: () => this.close() }, "✕")),
      ...children);
    aside.hidden = false;
    aside.scrollTop = 0;
  }

  close() {
    byId("detail").hidden = true;
    this.chosen = null;
    if (this.place >= 0) this.grid.setFocusedCell(this.place, "index");
  }

  step(by) {
    const next = this.place + by;
    if (this.chosen === null || next < 0 || next >= this.selected) return;
    this.grid.ensureIndexVisible(next);
    const node = this.grid.getDisplayedRowAtIndex(next);
    if (node?.data) {
      node.setSelected(true, true);
      this.open(node.data.index, next);
    } else {
      setTimeout(() => this.step(by), 60); // its block is on its way
    }
  }
}
