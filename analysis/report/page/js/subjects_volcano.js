/* Experts and subjects: how large an effect is, and how certain. */

const MOST_MARKS = 3000;
/* Values of -log10 q above it are drawn at it. */
const MOST_CERTAIN = 40;

view({
  id: "subject-volcano",
  section: "subjects",
  title: "Experts used more or less for a subject",
  note:
    "A mark is an expert and a subject: to the right the expert is used more for it than for the " +
    "others, upwards that is more certain. By chance log odds are 0, and of all marks above the " +
    "dashed line, 5 % are false discoveries. A triangle lies beyond the upper edge. " +
    "Click a mark to select its expert.",
  available: () => {
    const { S, tested } = subjectMath();
    if (S < 2) return "there is only one subject";
    return tested.length > 0 || `no subject has the ${page.data.meta.least_documents} documents that a test needs`;
  },
  controls: () => [subjectControl("all subjects"), subjectLayerControl()],
  draw: drawVolcano,
  table: volcanoTable,
});

/**
 * Cells of what the state asks for.
 * @returns {{cells: SubjectCell[], tests: number, more: number, less: number}} those of largest |z|,
 *   ascending; the number of all, and of those that are significant
 */
const volcanoCells = memo((key) => {
  const [subject, l] = JSON.parse(key);
  const N = page.data.N;
  const { tested, zOf, row, critical } = subjectMath();
  const [first, last] = l === null ? [0, page.data.layers.length] : [l, l + 1];
  const parts = tested.filter((s) => subject === null || s === subject)
    .map((s) => ({ s, z: zOf(s).subarray(first * N, last * N) }));
  const count = (of) => parts.reduce((sum, { z }) => sum + z.reduce((some, value) => some + of(value), 0), 0);
  const sizes = absoluteSorted(Float64Array.from(parts.flatMap(({ z }) => Array.from(z))));
  const least = sizes[Math.max(sizes.length - MOST_MARKS, 0)];
  const cells = [];
  for (const { s, z } of parts) {
    z.forEach((value, i) => {
      if (Math.abs(value) >= least) cells.push(row(s, first + Math.floor(i / N), i % N));
    });
  }
  cells.sort((a, b) => Math.abs(a.z) - Math.abs(b.z));
  return {
    cells, tests: sizes.length,
    more: count((z) => z >= critical()), less: count((z) => -z >= critical()),
  };
});

const shownVolcano = () => volcanoCells(JSON.stringify([page.state.subject, subjectLayer()]));

/** @param {SubjectCell} cell */
const certainty = (cell) => -subjectMath().logQ(cell) / Math.LN10;

function drawVolcano(host) {
  const made = page.figure({
    x_axis_label: "log odds against the other subjects, nats", y_axis_label: "−log10 q",
    x_range: [-1, 1], y_range: [0, 1],
  });
  const marks = made.scatter([], [], {
    size: 6, marker: field("marker"), fill_color: field("color"), line_color: null, fill_alpha: 0.6,
  });
  const limit = new Bokeh.Span({ location: -Math.log10(SIGNIFICANT), dimension: "width", line_dash: DASHED });
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
      places = { x: found.cells.map(({ logOdds }) => logOdds), y: certain.map((value) => Math.min(value, MOST_CERTAIN)) };
      fitVolcano(made, places);
    }
    const isSignificant = certain.map((value) => value > -Math.log10(SIGNIFICANT));
    marks.data_source.data = {
      ...places,
      marker: certain.map((value) => (value > MOST_CERTAIN ? "triangle" : "circle")),
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

function volcanoWords({ cells, tests, more, less }) {
  const { subject } = page.state;
  const whom = subject === null ? "Over all subjects" : subjectName(subject);
  if (subject !== null && !subjectMath().hasInference(subject)) {
    return `${whom} has fewer than ${page.data.meta.least_documents} documents: nothing is tested.`;
  }
  const shown = cells.length < tests ? `; the ${format(cells.length)} of largest |z| are drawn` : "";
  return `${whom}: of ${format(tests)} tests ${format(more)} say more and ${format(less)} less with q < 0.05${shown}.`;
}

function volcanoTable() {
  const found = shownVolcano();
  return {
    columns: columnsOf(SUBJECT_COLUMNS, ["subject"]),
    rows: [...found.cells].reverse().map(subjectRow),
    caption: `${volcanoWords(found)} ${page.data.meta.caption}`,
  };
}
