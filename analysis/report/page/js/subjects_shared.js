/* What the views of subjects and of structure share: choices, rows of the table `subjects`, words. */

const SUBJECT_COLUMNS = [
  "layer", "expert", "subject", "count", "frequency", "lift", "log_odds", "z", "q_value",
];

/** @typedef {{s: number, l: number, e: number, count: number, frequency: number, rest: number,
 *   lift: number, logOdds: number, z: number}} SubjectCell an expert and a subject */

/** The cell's row of the table `subjects`. @param {SubjectCell} cell */
function subjectRow(cell) {
  const { layers, meta } = page.data;
  const { s, l, e, count, frequency, lift, logOdds, z } = cell;
  return [layers[l].layer, e, meta.subjects[s].name, count, frequency, lift, logOdds, z, qValue(cell)];
}

/** @param {SubjectCell} cell */
const qValue = (cell) => Math.exp(subjectMath().logQ(cell));

/** What a cell says when it is pointed at, nulls beside numbers. @param {SubjectCell} cell */
function subjectText(cell) {
  const { layers } = page.data;
  const { s, l, e, count, frequency, rest, lift, logOdds, z } = cell;
  const lines = [
    `layer ${layers[l].layer}, expert ${e}: ${subjectName(s)}`,
    `${format(count)} selections`,
    `frequency ${format(frequency, 3)}, elsewhere ${format(rest, 3)}: lift ${format(lift, 3)} (by chance 1)`,
  ];
  if (Number.isNaN(z)) return lines;
  return [
    ...lines,
    `log odds ${format(logOdds, 3)} (by chance 0), z ${format(z, 3)}, q ${format(qValue(cell), 2)}`,
  ];
}

/** @param {number} s @param {number} [most] */
function subjectName(s, most = 48) {
  return short(page.data.meta.subjects[s].name, most);
}

/** The subject of views that need one. */
const shownSubject = () => page.state.subject ?? 0;

/** A choice of the subject that all views share; `none` is what the choice of no one is called. */
function subjectControl(none = null) {
  const options = subjectOptions();
  return select({
    label: "Subject",
    options: none ? [{ value: "", label: none }, ...options] : options,
    get: () => page.state.subject ?? (none ? "" : 0),
    set: (s) => page.set({ subject: s === "" ? null : Number(s) }),
  });
}

/** The layer of the views of subjects, null for all: selecting an expert leaves it as it is. */
const subjectLayer = () => page.state.subjectLayer ?? null;

/** A choice of it. @param {string} all what the choice of all is called */
function subjectLayerControl(all = "all layers") {
  return select({
    label: "Layer",
    options: [{ value: "", label: all }, ...layerOptions()],
    get: () => subjectLayer() ?? "",
    set: (l) => page.set({ subjectLayer: l === "" ? null : Number(l) }),
  });
}

/** The layer of views that always show one. */
const oneLayer = () => shownLayer() ?? 0;

/** A choice of it. */
function oneLayerControl() {
  return select({
    label: "Layer",
    options: layerOptions(),
    get: oneLayer,
    set: (l) => page.set({ shownLayer: Number(l) }),
  });
}

/** A line of words below a figure, which screen readers are told. */
function statusLine(host) {
  const line = element("p", { class: "status", role: "status" });
  host.after(line);
  return (text) => void (line.textContent = text);
}
