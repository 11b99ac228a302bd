/* How much a token's experts are those of the tokens before it, by distance. */

const RATES = {
  overlap_ratio: "overlap ratio: common experts over k",
  first_choice: "same first choice",
  any_overlap: "any expert in common",
};

view({
  id: "repeats",
  section: "structure",
  title: "Repeats of experts inside documents",
  note:
    "How alike the experts of two tokens of one document are, by their distance. Dotted: experts " +
    "drawn uniformly. Dashed: drawn at the layer's own rates, whatever came before; only what lies " +
    "above it is memory. What falls off within few tokens is syntax, what stays is topic. Pairs of " +
    "different token ids leave out that equal tokens are routed alike.",
  available: () => {
    const { meta, table } = page.data;
    if (!meta.has_rows) return "the trace has no rows of tokens";
    return (meta.T > 0 && table("repeats").length > 0) || "no token counts";
  },
  controls: () => [
    oneLayerControl(),
    select({
      label: "Measure",
      options: Object.entries(RATES).map(([value, label]) => ({ value, label })),
      get: shownRate,
      set: (repeatRate) => page.set({ repeatRate }),
    }),
    subjectControl("all subjects"),
  ],
  draw: drawRepeats,
  table: repeatsTable,
});

const shownRate = () => page.state.repeatRate ?? "overlap_ratio";

/**
 * Rows of one layer, with the nulls of the measure that is shown. Of a single subject only the
 * overlap ratio is known, and not that of different token ids.
 * @returns {{layer: number, lag: number, subject: string, pairs: number, value: number,
 *   other: number, otherPairs: number, chance: number, own: number}[]} NaN where unknown
 */
function shownRepeats() {
  const { layers, meta, table, array, counts, N } = page.data;
  const [l, rate, s] = [oneLayer(), shownRate(), page.state.subject];
  const repeats = table("repeats");
  const column = (name) => repeats.column(name);
  const { layer, num_experts } = layers[l];
  const null_ = rate === "overlap_ratio" ? "overlap_null" : `${rate}_null`;
  const rows = [];
  for (let i = 0; i < repeats.length; i++) {
    if (column("layer")[i] !== layer) continue;
    const [chance, own] = [column(null_)[i], column(`${null_}_own`)[i]];
    rows.push({
      layer, lag: column("lag")[i], subject: "", pairs: column("pairs")[i], value: column(rate)[i],
      other: column(`other_token_${rate}`)[i], otherPairs: column("other_token_pairs")[i], chance, own,
    });
  }
  if (s === null || rate !== "overlap_ratio") return rows;
  const [X, S] = [rows.length, meta.subjects.length];
  const mine = counts.subject(s).subarray(l * N, l * N + num_experts);
  const { chance, own } = overlapNulls(mine, counts.tokens.subject(s)[l]);
  const at = (l * S + s) * X;
  return rows.concat(rows.map(({ lag }, x) => ({
    layer, lag, subject: meta.subjects[s].name, pairs: array("repeats.subject_pairs").values[at + x],
    value: array("repeats.subject_overlap").values[at + x], other: NaN, otherPairs: NaN, chance, own,
  })));
}

/**
 * Nulls of the overlap ratio: mean set size over N, and the sum of c^2 over A T.
 * @param {ArrayLike<number>} counts_N @param {number} tokens
 */
function overlapNulls(counts_N, tokens) {
  let [sum, square] = [0, 0];
  for (const count of counts_N) {
    sum += count;
    square += count * count;
  }
  const whole = sum * tokens;
  return whole > 0
    ? { chance: sum / tokens / counts_N.length, own: square / whole } : { chance: NaN, own: NaN };
}

function drawRepeats(host) {
  const lags = Array.from(page.data.array("repeats.lags").values);
  const made = page.figure({
    height: 340, x_range: [-0.3, lags.length - 0.7], y_range: [0, 1], x_axis_label: "distance, tokens",
  });
  const places = lags.map((_, place) => place);
  const ticker = new Bokeh.FixedTicker({ ticks: places });
  for (const scale of [made.xaxes[0], made.xgrids[0]]) scale.ticker = ticker;
  made.xaxes[0].major_label_overrides = new Map(lags.map((lag, place) => [place, String(lag)]));
  const [all, one] = [CATEGORICAL[0], CATEGORICAL[3]];
  const line = (color, attributes = {}) => made.line([], [], { line_color: color, line_width: 2, ...attributes });
  const series = {
    chance: line(CATEGORICAL[6], { line_dash: DOTTED }),
    own: line(all, { line_dash: DASHED, line_width: 1.5 }),
    subjectOwn: line(one, { line_dash: DASHED, line_width: 1.5 }),
    other: line(CATEGORICAL[4]),
    subject: line(one),
    value: line(all),
  };
  const diamonds = made.scatter([], [], { size: 9, marker: "diamond", color: CATEGORICAL[4] });
  const squares = made.scatter([], [], { size: 7, marker: "square", color: one });
  const dots = made.scatter([], [], { size: 7, color: all });
  page.show(made, host);
  addKey(host, [
    { mark: "circle", color: all, label: "all pairs of tokens" },
    { mark: "diamond", color: CATEGORICAL[4], label: "of different token ids" },
    { mark: "square", color: one, label: "of the chosen subject (overlap ratio)" },
    { mark: "dashed", color: all, label: "own rates" },
    { mark: "dotted", color: CATEGORICAL[6], label: "uniform" },
  ]);
  const say = statusLine(host);

  page.onHover(made, host, (x) => {
    const lag = lags[Math.round(x)];
    return lag === undefined ? null : repeatText(lag);
  });

  return (changes) => {
    if (!concerns(changes, "shownLayer", "repeatRate", "subject", "theme")) return;
    const rows = shownRepeats();
    const [together, subject] = [rows.filter((row) => row.subject === ""), rows.slice(lags.length)];
    const put = (glyph, some, name) => {
      glyph.data_source.data = { x: some.map((_, place) => place), y: some.map((row) => row[name]) };
    };
    for (const name of ["chance", "own", "value", "other"]) put(series[name], together, name);
    put(series.subject, subject, "value");
    put(series.subjectOwn, subject, "own");
    put(dots, together, "value");
    put(diamonds, together, "other");
    put(squares, subject, "value");
    const values = rows.flatMap(({ value, other, chance, own }) => [value, other, chance, own]);
    const most = values.filter(Number.isFinite).reduce((top, value) => Math.max(top, value), 0);
    Object.assign(made.y_range, { start: 0, end: most * 1.08 || 1 });
    made.yaxes[0].axis_label = RATES[shownRate()];
    say(repeatsWords(together));
  };
}

function repeatText(lag) {
  const rows = shownRepeats().filter((row) => row.lag === lag);
  const lines = rows.flatMap(({ subject, value, other, chance, own, pairs }) => [
    `${subject ? short(subject) : "all subjects"}: ${format(value, 3)} in ${format(pairs)} pairs`,
    `own rates ${format(own, 3)}, uniform ${format(chance, 3)}`,
    ...(Number.isNaN(other) ? [] : [`different token ids ${format(other, 3)}`]),
  ]);
  return [`layer ${rows[0].layer}, distance ${lag}`, ...lines];
}

function repeatsWords(rows) {
  const { layer, lag, value, own, chance } = rows[0];
  if (Number.isNaN(value)) {
    return shownRate() === "first_choice"
      ? "The trace does not say which slot is a token's first choice." : "There are no pairs of tokens.";
  }
  const word = lag === 1 ? "next to each other" : `${lag} apart`;
  return `Layer ${layer}, tokens ${word}: ${format(value, 3)}; own rates ${format(own, 3)}, uniform ${format(chance, 3)}.`;
}

function repeatsTable() {
  const rate = shownRate();
  const rows = shownRepeats();
  const names = [
    "layer", "subject", "lag", "pairs", rate, `${rate}_null`, `${rate}_null_own`, "excess",
    "other_token_pairs", `other_token_${rate}`,
  ];
  return {
    columns: columnsOf(names, ["subject"]),
    rows: rows.map(({ layer, subject, lag, pairs, value, chance, own, otherPairs, other }) =>
      [layer, subject || "all", lag, pairs, value, chance, own, (value - own) / (1 - own), otherPairs, other]),
    caption: `${RATES[rate]}; ${page.data.meta.caption}`,
  };
}
