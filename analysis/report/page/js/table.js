/* "Show as table" and "Download CSV": the numbers that a view shows now. */

const PAGE_ROWS = 50;

/**
 * @typedef {object} Table
 * @property {{name: string, label: string, text?: boolean}[]} columns
 * @property {Iterable<Array>} rows
 * @property {string} caption
 * @property {Object<string, string|null>} [origin] rule or order where they are not the report's
 */

/**
 * Order rows by a column; null comes last either way.
 * @param {Array[]} rows
 * @param {number} at
 * @param {boolean} descending
 */
function sortRows(rows, at, descending) {
  const isNull = (value) => value === null || value === undefined || Number.isNaN(value);
  const sign = descending ? -1 : 1;
  return [...rows].sort((one, other) => {
    const [a, b] = [one[at], other[at]];
    if (isNull(a) || isNull(b)) return isNull(a) - isNull(b);
    return sign * (typeof a === "string" ? a.localeCompare(b, "en") : a - b);
  });
}

/**
 * A table in pages that sorts by any column.
 * @param {() => Table} get the numbers shown now
 * @returns {{element: HTMLElement, update: () => void}}
 */
function makeTable(get) {
  const state = { at: -1, descending: false, first: 0 };
  let table, rows;
  const box = element("table");
  const scroll = element("div", { class: "scroll", tabindex: 0, role: "region" }, box);
  const status = element("span", { "aria-live": "polite" });
  const turn = (step) => element(
    "button", { type: "button", click: () => { state.first += step * PAGE_ROWS; show(); } },
    step < 0 ? "Previous rows" : "Next rows",
  );
  const [previous, next] = [turn(-1), turn(1)];
  const pager = element("div", { class: "pager" }, previous, next, status);

  function update() {
    table = get();
    rows = Array.isArray(table.rows) ? table.rows : Array.from(table.rows);
    if (state.at >= table.columns.length) state.at = -1;
    if (state.at >= 0) rows = sortRows(rows, state.at, state.descending);
    scroll.setAttribute("aria-label", table.caption);
    state.first = 0;
    show();
  }

  function sortBy(at) {
    state.descending = state.at === at ? !state.descending : !table.columns[at].text;
    state.at = at;
    rows = sortRows(rows, at, state.descending);
    state.first = 0;
    show();
    box.querySelectorAll("th button")[at].focus();
  }

  function heading({ label, text }, at) {
    const sorted = at === state.at ? (state.descending ? "descending" : "ascending") : null;
    const arrow = sorted ? (state.descending ? " ↓" : " ↑") : "";
    return element(
      "th", { scope: "col", class: text ? null : "number", "aria-sort": sorted },
      element("button", { type: "button", click: () => sortBy(at) }, label + arrow),
    );
  }

  function show() {
    state.first = Math.max(0, Math.min(state.first, rows.length - 1));
    state.first -= state.first % PAGE_ROWS;
    const shown = rows.slice(state.first, state.first + PAGE_ROWS);
    box.replaceChildren(
      element("caption", {}, table.caption),
      element("thead", {}, element("tr", {}, ...table.columns.map(heading))),
      element("tbody", {}, ...shown.map((row) => element("tr", {}, ...table.columns.map(
        ({ text }, at) => element(
          "td", { class: text ? null : "number" },
          text ? short(row[at] ?? "–", 80) : format(row[at]),
        ),
      )))),
    );
    const last = state.first + shown.length;
    status.textContent = rows.length
      ? `rows ${state.first + 1} to ${last} of ${format(rows.length)}` : "no rows";
    previous.disabled = state.first === 0;
    next.disabled = last >= rows.length;
  }

  update();
  return { element: element("div", { class: "table" }, pager, scroll), update };
}

/**
 * Hand a text to the browser as a file.
 * @param {string} name
 * @param {BlobPart} content
 * @param {string} type
 */
function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  const link = element("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/**
 * As files of the report's tables, it ends with rule and order, the same in all rows.
 * @param {string} id
 * @param {Table} table
 */
function downloadCsv(id, table) {
  const facts = { ...page.data.meta.origin, ...table.origin };
  const told = Object.keys(facts).filter((name) => facts[name] !== null);
  const names = [...table.columns.map(({ name }) => name), ...told];
  const values = told.map((name) => facts[name]);
  const rows = Array.from(table.rows, (row) => [...row, ...values]);
  download(`${id}.csv`, csv(names, rows), "text/csv");
}

/** All rows of a table of the report, for views that show one as it is. */
function wholeTable(name, caption) {
  const table = page.data.table(name);
  const columns = table.names.map((column) => ({
    name: column, label: column.replaceAll("_", " "), text: table.isText(column),
  }));
  const values = table.names.map((column) => table.column(column));
  const rows = Array.from({ length: table.length }, (_, i) => values.map((column) => column[i]));
  return { columns, rows, caption };
}
