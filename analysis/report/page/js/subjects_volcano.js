/* Experts and subjects: how large an effect is, and how certain. */

/* Half of them for those of largest |z|, half for a sample of the others. */
const MOST_MARKS = 3000;
const CERTAINTIES = [0, 2, 10, 25, 50, 100, 200, 400, 1000];

view({
  id: "subject-volcano",
  section: "subjects",
  title: "Experts used more or less for a subject",
  note:
    "A mark is an expert and a subject: to the right the expert is used more for it than for the " +
    "others, upwards that is more certain. By chance log odds are 0, and of all marks above the " +
    "dashed line, 5 % are false discoveries. Click a mark to select its expert.",
  available: () => {
    if (page.data.meta.subjects.length < 2) return "there is only one subject";
    if (countsAny() !== true) return countsAny();
    if (!page.data.meta.has_rows) return "the trace does not say what its documents are";
    return testedSubjects().length > 0 || `no subject has the ${page.data.meta.least_documents} documents that a test needs`;
  },
  controls: () => [subjectControl("all subjects"), subjectLayerControl()],
  draw: drawVolcano,
  table: volcanoTable,
});

/**
 * Cells of what the state asks for.
 * @returns {{cells: SubjectCell[], tests: number, more: number, less: number, step: number}} those
 *   that are drawn, by |z|; the number of all, and of those that are significant; every how manieth
 *   of the weaker ones is drawn
 */
const volcanoCells = memo((key) => {
  const [subject, l] = JSON.parse(key);
  const N = page.data.N;
  const { zOf, row, critical } = subjectMath();
  const [first, last] = l === null ? [0, page.data.layers.length] : [l, l + 1];
  const parts = testedSubjects().filter((s) => subject === null || s === subject)
    .map((s) => ({ s, z: zOf(s).subarray(first * N, last * N) }));
  const count = (of) => parts.reduce((sum, { z }) => sum + z.reduce((some, value) => some + of(value), 0), 0);
  const sizes = absoluteSorted(Float64Array.from(parts.flatMap(({ z }) => Array.from(z))));
  const isAll = sizes.length <= MOST_MARKS;
  const least = isAll ? 0 : sizes[sizes.length - MOST_MARKS / 2];
  // An odd step does not meet the same experts in every layer.
  const step = isAll ? 1 : Math.ceil(sizes.length / (MOST_MARKS / 2)) | 1;
  const cells = [];
  let weaker = 0;
  for (const { s, z } of parts) {
    z.forEach((value, i) => {
      const isStrong = Math.abs(value) >= least;
      if (Number.isNaN(value) || !(isStrong || weaker++ % step === 0)) return;
      cells.push(row(s, first + Math.floor(i / N), i % N));
    });
  }
  cells.sort((a, b) => Math.abs(a.z) - Math.abs(b.z));
  return {
    cells, step, tests: sizes.length,
    more: count((z) => z >= critical()), less: count((z) => -z >= critical()),
  };
});

const shownVolcano = () => volcanoCells(JSON.stringify([page.state.subject, subjectLayer()]));

/** @param {SubjectCell} cell */
const certainty = (cell) => -subjectMath().logQ(cell) / Math.LN10;

function drawVolcano(host) {
  const made = page.figure({
    x_axis_label: "log odds against the other subjects, nats",
    y_axis_label: "−log10 q, square-root scale", x_range: [-1, 1], y_range: [0, 1],
  });
  const ticker = new Bokeh.FixedTicker({ ticks: CERTAINTIES.map(Math.sqrt) });
  for (const scale of [made.yaxes[0], made.ygrids[0]]) scale.ticker = ticker;
  made.yaxes[0].major_label_overrides = new Map(CERTAINTIES.map((value) => [Math.sqrt(value), String(value)]));
  const marks = made.scatter([], [], {
    size: 6, fill_color: field("color"), line_color: null, fill_alpha: 0.6,
  });
  const limit = new Bokeh.Span({ location: Math.sqrt(-Math.log10(SIGNIFICANT)), dimension: "width", line_dash: DASHED });
  const none = new Bokeh.Span({ location: 0, dimension: "height" });
  for (const line of [limit, none]) made.add_layout(line);
  const ring = made.scatter([], [], { size: 14, fill_alpha: 0, line_width: 2.5, line_color: colors.marker });
  page.show(made, host);
  addKey(host, [
    { mark: "circle", color: CATEGORICAL[3], label: "used more, q < 0.05" },
    { mark: "circle", color: CATEGORICAL[0], label: "used less, q < 0.05" },
    { mark: "circle", color: CATEGORICAL[6], label: "not significant" },
    { mark: "dashed", color: CATEGORICAL[6], label: "q = 0.05" },
  ]);
  const say = statusLine(host);

  let places = { x: [], y: [] };
  const at = (x, y) => shownVolcano().cells[nearest(made, places.x, places.y, x, y)];
  page.onTap(made, (x, y) => {
    const cell = at(x, y);
    page.select(cell?.l ?? null, cell?.e);
  });
  page.onHover(made, host, (x, y) => {
    const cell = at(x, y);
    return cell ? subjectText(cell) : null;
  });

  return (changes) => {
    if (!concerns(changes, "subject", "subjectLayer", "layer", "expert", "theme")) return;
    const found = shownVolcano();
    const certain = found.cells.map(certainty);
    if (concerns(changes, "subject", "subjectLayer")) {
      places = { x: found.cells.map(({ logOdds }) => logOdds), y: certain.map(Math.sqrt) };
      fitVolcano(made, places);
    }
    const isSignificant = certain.map((value) => value > -Math.log10(SIGNIFICANT));
    marks.data_source.data = {
      ...places,
      color: found.cells.map(({ z }, i) => CATEGORICAL[!isSignificant[i] ? 6 : z > 0 ? 3 : 0]),
    };
    const chosen = found.cells.map((_, i) => i)
      .filter((i) => found.cells[i].l === page.state.layer && found.cells[i].e === page.state.expert);
    ring.data_source.data = { x: chosen.map((i) => places.x[i]), y: chosen.map((i) => places.y[i]) };
    ring.glyph.line_color = colors.marker;
    limit.line_color = none.line_color = colors.faint;
    say(volcanoWords(found));
  };
}

function fitVolcano(made, { x, y }) {
  const far = x.reduce((most, value) => Math.max(most, Math.abs(value)), 0.1) * 1.08;
  const high = y.reduce((most, value) => Math.max(most, value), 2) * 1.08;
  Object.assign(made.x_range, { start: -far, end: far });
  Object.assign(made.y_range, { start: -0.03 * high, end: high });
}

function volcanoWords({ tests, more, less, step }) {
  const { subject } = page.state;
  const whom = subject === null ? "Over all subjects" : subjectName(subject);
  if (subject !== null && !subjectMath().hasInference(subject)) {
    return `${whom} has fewer than ${page.data.meta.least_documents} documents: nothing is tested.`;
  }
  const words = `${whom}: of ${format(tests)} tests ${format(more)} say more and ${format(less)} less with q < 0.05.`;
  return step === 1
    ? words : `${words} Drawn: the ${format(MOST_MARKS / 2)} of largest |z|, and one in ${step} of the others.`;
}

function volcanoTable() {
  const found = shownVolcano();
  return {
    columns: columnsOf(SUBJECT_COLUMNS, ["subject"]),
    rows: [...found.cells].reverse().map(subjectRow),
    caption: `${volcanoWords(found)} ${page.data.meta.caption}`,
  };
}
