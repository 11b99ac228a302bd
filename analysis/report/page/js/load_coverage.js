/* How soon the experts of a layer are seen, beside fair routing and own rates. */

view({
  id: "coverage",
  section: "load",
  title: "Experts seen by tokens read",
  note:
    "Share of a layer's experts that the first x tokens have selected, documents shuffled. Fair " +
    "routing above own rates: experts are used unequally. Own rates above observed: they come in " +
    "bursts. A flat end below 100 % is a set that this text does not use.",
  controls: () => [layerControl("all layers: median, 5 to 95 %")],
  available: () => {
    if (countsAny() !== true) return countsAny();
    return page.data.table("coverage").length > 0 ||
      "it needs rows of tokens in order, and a counting rule that counts each once";
  },
  draw: drawCoverage,
  table: coverageTable,
});

const CURVES = ["seen", "fair", "own"];

/** Rows of the table `coverage` of each layer: {tokens, seen, fair, own}, shares of its experts. */
const coverageOfLayers = once(() => {
  const { layers, table } = page.data;
  const coverage = table("coverage");
  const index = coverage.column("layer");
  return layers.map(({ layer, num_experts }) => {
    const rows = Array.from(index, (_, i) => i).filter((i) => index[i] === layer);
    const curve = (name) => rows.map((i) => coverage.column(name)[i] / num_experts);
    return { tokens: rows.map((i) => coverage.column("tokens")[i]), ...Object.fromEntries(CURVES.map((name) => [name, curve(name)])) };
  });
});

/** Quantiles over layers of one curve, at the x of the layer with the most. */
function coverageQuantile(curve, part) {
  const curves = coverageOfLayers();
  return longestCoverage().map((_, i) => quantile(curves.map((one) => one[curve][i] ?? NaN), part));
}

/* Every layer counts the same tokens, so the first of its x are the same in all. */
function longestCoverage() {
  return coverageOfLayers().map(({ tokens }) => tokens).reduce((a, b) => (b.length > a.length ? b : a));
}

/** What is drawn: x, the three curves, and the band of the observed one over layers. */
function shownCoverage() {
  const l = shownLayer();
  if (l !== null) {
    const one = coverageOfLayers()[l];
    return { ...one, low: one.seen, high: one.seen };
  }
  const [seen, fair, own] = CURVES.map((curve) => coverageQuantile(curve, 0.5));
  const [low, high] = [0.05, 0.95].map((part) => coverageQuantile("seen", part));
  return { tokens: longestCoverage(), seen, fair, own, low, high };
}

function drawCoverage(host) {
  const made = page.figure({
    height: 320, x_axis_type: "log", y_range: [0, 1.03],
    x_axis_label: "tokens read", y_axis_label: "share of experts seen",
  });
  const source = new Bokeh.ColumnDataSource({ data: shownCoverage() });
  made.varea(field("tokens"), field("low"), field("high"), { source, fill_color: CATEGORICAL[0], fill_alpha: 0.25 });
  const line = (name, color, extra) => made.line(field("tokens"), field(name), { source, line_color: color, line_width: 2, ...extra });
  line("fair", CATEGORICAL[6], { line_dash: DASHED });
  line("own", CATEGORICAL[3], { line_dash: DOTTED, line_width: 3 });
  line("seen", CATEGORICAL[0]);
  made.scatter(field("tokens"), field("seen"), { source, size: 5, color: CATEGORICAL[0] });
  addKey(host, [
    { mark: "line", color: CATEGORICAL[0], label: "observed, documents shuffled" },
    { mark: "dotted", color: CATEGORICAL[3], label: "own rates, independent tokens" },
    { mark: "dashed", color: CATEGORICAL[6], label: "fair routing" },
  ]);
  page.show(made, host);
  page.onHover(made, host, (x) => {
    const shown = source.data;
    const far = (tokens) => Math.abs(Math.log(tokens / x));
    const at = shown.tokens.reduce((best, tokens, i) => (far(tokens) < far(shown.tokens[best]) ? i : best), 0);
    const says = (name) => `${format(100 * shown[name][at], 4)} %`;
    return [
      `first ${format(shown.tokens[at])} tokens`, `observed ${says("seen")}`,
      `own rates ${says("own")}`, `fair routing ${says("fair")}`,
    ];
  });
  return (changes) => {
    if (concerns(changes, "shownLayer")) source.data = shownCoverage();
  };
}

function coverageTable() {
  const { layers, meta } = page.data;
  const l = shownLayer();
  const { tokens, seen, own, fair, low, high } = shownCoverage();
  if (l === null) {
    const rows = tokens.map((x, i) => [x, seen[i], low[i], high[i], own[i], fair[i]]);
    const columns = columnsOf(["tokens", "seen_share", "seen_share_low", "seen_share_high", "own_share", "fair_share"]);
    return { columns, rows, caption: `Share of experts seen: median, 5 % and 95 % over layers; ${meta.caption}` };
  }
  const size = layers[l].num_experts;
  const rows = tokens.map((x, i) => [layers[l].layer, x, seen[i] * size, own[i] * size, fair[i] * size]);
  const columns = columnsOf(["layer", "tokens", "seen", "own", "fair"]);
  return { columns, rows, caption: `Experts seen of ${size}, layer ${layers[l].layer}; ${meta.caption}` };
}
