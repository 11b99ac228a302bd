/* "Which experts are for SUBJECT?": experts by what they do for one subject. */

const RANKED = 20;
/* Selections order the experts as their frequency does. */
const RANKINGS = { z: "certainty (z)", logOdds: "log odds", lift: "lift", count: "selections" };

view({
  id: "subject-ranking",
  section: "subjects",
  title: "Which experts are for a subject?",
  note:
    "Experts of the chosen subject, the first ones of the ranking. Marks are log odds against the " +
    "other subjects with their 95 % intervals; the line at 0 is what chance gives. An interval " +
    "over that line says nothing, and rankings by lift or selections alone favour rare or popular experts. " +
    "Click a mark to select its expert.",
  available: () => page.data.meta.subjects.length > 1 ? countsAny() : "there is only one subject",
  controls: () => [
    subjectControl(),
    subjectLayerControl(),
    select({
      label: "Rank by",
      options: Object.entries(RANKINGS).map(([value, label]) => ({ value, label })),
      get: () => page.state.ranking ?? "z",
      set: (ranking) => page.set({ ranking }),
    }),
    select({
      label: "Experts",
      options: [{ value: "more", label: "used more" }, { value: "less", label: "used less" }],
      get: () => page.state.rankingSide ?? "more",
      set: (rankingSide) => page.set({ rankingSide }),
    }),
  ],
  draw: drawRanking,
  table: rankingTable,
});

/**
 * All cells of the subject and layer, ranked. Where nothing is tested, certainty and log odds are
 * unknown and lift takes their place.
 * @returns {{cells: SubjectCell[], isTested: boolean, by: string}}
 */
function shownRanking() {
  const { rows, hasInference } = subjectMath();
  const [s, l] = [shownSubject(), subjectLayer()];
  const isTested = hasInference(s);
  const asked = page.state.ranking ?? "z";
  const by = isTested || !["z", "logOdds"].includes(asked) ? asked : "lift";
  const sign = page.state.rankingSide === "less" ? 1 : -1;
  const cells = rows(s).filter((cell) => (l === null || cell.l === l) && !Number.isNaN(cell[by]));
  cells.sort((a, b) => sign * (a[by] - b[by]) || a.l - b.l || a.e - b.e);
  return { cells, isTested, by };
}

/** Effect of a cell in nats, with its interval where there is one. */
function effectOf({ logOdds, z, lift }, isTested) {
  if (!isTested) return { x: Math.log(lift), low: NaN, high: NaN };
  const error = Math.abs(logOdds / z);
  return { x: logOdds, low: logOdds - Z * error, high: logOdds + Z * error };
}

function drawRanking(host) {
  const made = page.figure({
    height: 430, x_range: [-1, 1], y_range: [RANKED - 0.5, -0.5], x_axis_label: "log odds, nats",
  });
  made.ygrids[0].visible = false;
  const names = made.yaxes[0];
  const bars = made.segment([], [], [], [], { line_color: CATEGORICAL[0], line_width: 2 });
  const marks = made.scatter([], [], { size: 9, color: CATEGORICAL[0] });
  const none = new Bokeh.Span({ location: 0, dimension: "height", line_width: 2 });
  made.add_layout(none);
  const ring = made.scatter([], [], { size: 17, fill_alpha: 0, line_width: 2.5, line_color: colors.marker });
  page.show(made, host);
  const say = statusLine(host);

  let first = [];
  const at = (y) => first[Math.round(y)];
  page.onTap(made, (_, y) => {
    const cell = at(y);
    page.select(cell?.l ?? null, cell?.e);
  });
  page.onHover(made, host, (_, y) => (at(y) ? subjectText(at(y)) : null));

  return (changes) => {
    const mine = ["subject", "subjectLayer", "ranking", "rankingSide", "layer", "expert", "theme"];
    if (!concerns(changes, ...mine)) return;
    const ranking = shownRanking();
    first = ranking.cells.filter((cell) => Number.isFinite(effectOf(cell, ranking.isTested).x)).slice(0, RANKED);
    const effects = first.map((cell) => effectOf(cell, ranking.isTested));
    const rows = first.map((_, row) => row);
    marks.data_source.data = { x: effects.map(({ x }) => x), y: rows };
    bars.data_source.data = {
      x0: effects.map(({ low }) => low), x1: effects.map(({ high }) => high), y0: rows, y1: rows,
    };
    names.ticker = new Bokeh.FixedTicker({ ticks: rows });
    names.major_label_overrides = new Map(rows.map((row) => [row, expertName(first[row])]));
    made.xaxes[0].axis_label = ranking.isTested ? "log odds, nats" : "ln lift (nothing is tested)";
    const ends = effects.flatMap(({ x, low, high }) => [x, low, high]).filter(Number.isFinite);
    const [least, most] = [Math.min(0, ...ends), Math.max(0, ...ends)];
    const margin = 0.05 * (most - least || 1);
    Object.assign(made.x_range, { start: least - margin, end: most + margin });
    const chosen = rows.filter((row) => first[row].l === page.state.layer && first[row].e === page.state.expert);
    ring.data_source.data = { x: chosen.map((row) => effects[row].x), y: chosen };
    ring.glyph.line_color = colors.marker;
    none.line_color = colors.faint;
    say(rankingWords(ranking));
  };
}

const expertName = ({ l, e }) => `layer ${page.data.layers[l].layer}, expert ${e}`;

/** How far the ranking can be believed. */
function rankingWords({ cells, isTested, by }) {
  const s = shownSubject();
  const { logQ, critical } = subjectMath();
  const name = subjectName(s);
  if (!isTested) {
    const { array, meta } = page.data;
    const number = `${format(array("subjects.documents").values[s])} of at least ${meta.least_documents}`;
    const why = meta.has_rows ? `it has too few documents, ${number}` : "its documents are not known";
    return `Nothing is tested for ${name}: ${why}. Lift, ranked by ${RANKINGS[by]}, may be noise.`;
  }
  const isLess = page.state.rankingSide === "less";
  const side = cells.filter(({ z }) => (isLess ? z < 0 : z > 0));
  const significant = side.filter(({ z }) => Math.abs(z) >= critical()).length;
  const word = isLess ? "less" : "more";
  if (significant) return `${format(significant)} experts are used ${word} for ${name} with q < 0.05.`;
  const least = Math.exp(side.reduce((most, cell) => Math.min(most, logQ(cell)), 0));
  return `No expert is used ${word} for ${name} than chance would explain: the smallest q is ${format(least, 2)}.`;
}

function rankingTable() {
  const ranking = shownRanking();
  const names = SUBJECT_COLUMNS.toSpliced(5, 0, "frequency_elsewhere");
  const rows = ranking.cells.map((cell) => subjectRow(cell).toSpliced(5, 0, cell.rest));
  return {
    columns: columnsOf(names, ["subject"]), rows,
    caption: `${rankingWords(ranking)} ${page.data.meta.caption}`,
  };
}
