/* Why experts idle for long: a low rate, bursts, or both. */

view({
  id: "burstiness",
  section: "idle",
  title: "Rate deficit and burstiness",
  note:
    "A dot is an expert. To the right: its longest idle run is long because it is rarely used. Up: " +
    "longer than even its own rate explains, because its uses come in bursts. Independent tokens " +
    "at a fair rate lie at 0, 0. Which quarter an expert lies in suggests why; other text decides.",
  available: () => {
    if (knowsTokenRuns() !== true) return knowsTokenRuns();
    const isKnown = page.data.table("experts").column("burstiness").some(Number.isFinite);
    return isKnown || `${NO_RUNS}, and shuffled orders`;
  },
  controls: () => [select({
    label: "Layer",
    options: [{ value: "", label: "all layers" }, ...layerOptions()],
    get: () => page.state.scatterLayer ?? "",
    set: (value) => page.set({ scatterLayer: value === "" ? null : Number(value) }),
  })],
  draw: drawBurstiness,
  table: burstinessTable,
});

/* What a dot in each quarter suggests; which one, only other text can tell. */
const QUARTERS = [
  { x: "left", y: "bottom", text: "healthy" },
  { x: "right", y: "bottom", text: "starved: rarely used" },
  { x: "left", y: "top", text: "reserved for some documents" },
  { x: "right", y: "top", text: "rare and reserved" },
];

/* Rows in an order without meaning, so that no layer's dots lie above all others. */
const mixedRows = once(() => {
  const place = (row) => (row * 0.6180339887498949) % 1;
  return expertPlaces().map((_, row) => row).sort((a, b) => place(a) - place(b));
});

/** Rows of `experts` that the choice of layer shows and that have both numbers. */
function burstinessRows() {
  const { table } = page.data;
  const [x, y] = ["rate_deficit", "burstiness"].map((name) => table("experts").column(name));
  const chosen = page.state.scatterLayer ?? null;
  const isShown = (row) => chosen === null || expertPlaces()[row][0] === chosen;
  const rows = mixedRows().filter((row) => isShown(row) && Number.isFinite(x[row] + y[row]));
  return { rows, x: rows.map((row) => x[row]), y: rows.map((row) => y[row]) };
}

/** Which quarter a place lies in. */
function quarterOf(x, y) {
  const { rate_deficit, burstiness } = page.data.meta.quadrants;
  return QUARTERS[(x > rate_deficit ? 1 : 0) + (y > burstiness ? 2 : 0)].text;
}

/** A range with some room that has the lines in it. */
function rangeWith(values, ...wanted) {
  let [low, high] = [Math.min(...wanted), Math.max(...wanted)];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  const room = 0.08 * (high - low || 1);
  return [low - room, high + room];
}

function drawBurstiness(host) {
  const { layers, meta } = page.data;
  const { rate_deficit, burstiness } = meta.quadrants;
  const every = burstinessRows();
  const made = page.figure({
    height: 440,
    x_range: rangeWith(every.x, 0, 1.6 * rate_deficit), y_range: rangeWith(every.y, 0, 1.4 * burstiness),
    x_axis_label: "rate deficit, nats", y_axis_label: "burstiness, nats",
  });
  const mapper = new Bokeh.LinearColorMapper({ palette: colors.sequential, low: 0, high: Math.max(layers.length - 1, 1) });
  const dots = new Bokeh.ColumnDataSource({ data: { x: [], y: [], l: [] } });
  const color = { field: "l", transform: mapper };
  const marker = made.scatter({ field: "x" }, { field: "y" }, {
    source: dots, size: 5, fill_color: color, line_color: colors.faint, line_width: 0.4, fill_alpha: 0.85,
  });
  const line = { line_dash: DASHED, line_width: 1.5 };
  const lines = [
    new Bokeh.Span({ location: rate_deficit, dimension: "height", ...line }),
    new Bokeh.Span({ location: burstiness, dimension: "width", ...line }),
  ];
  const names = QUARTERS.map(({ x, y, text }) => new Bokeh.Label({
    text: text.replace("for ", "for\n").replace("rare and ", "rare and\n"), text_font_size: "13px", text_align: x, text_baseline: y,
    x: made.x_range[x === "left" ? "start" : "end"], y: made.y_range[y === "bottom" ? "start" : "end"],
    x_offset: x === "left" ? 6 : -6, y_offset: y === "bottom" ? 4 : -4, background_fill_alpha: 0.8,
  }));
  for (const one of [...lines, ...names]) made.add_layout(one);
  // On a canvas of its own: thousands of dots need not be painted again.
  const mark = made.scatter([], [], { level: "overlay", size: 15, fill_alpha: 0, line_width: 2.5, line_color: colors.marker });
  if (layers.length > 1) made.add_layout(layerBar(mapper), "right");
  addKey(host, [
    { mark: "circle", color: colors.sequential[128], label: "an expert, coloured by layer" },
    { mark: "dashed", color: "var(--faint)", label: "r = 0.1, and a run 5 times as long as expected" },
  ]);
  page.show(made, host);

  let shown = every;
  const at = (x, y) => nearest(made, shown.x, shown.y, x, y);
  page.onTap(made, (x, y) => page.select(...(expertPlaces()[shown.rows[at(x, y)]] ?? [null])));
  page.onHover(made, host, (x, y) => burstinessText(shown.rows[at(x, y)]));

  return (changes) => {
    if (!concerns(changes, "scatterLayer", "layer", "expert", "theme")) return;
    if (concerns(changes, "scatterLayer")) {
      shown = burstinessRows();
      dots.data = { x: shown.x, y: shown.y, l: shown.rows.map((row) => expertPlaces()[row][0]) };
    }
    const { layer, expert } = page.state;
    const place = layer === null ? -1 : shown.rows.indexOf(page.data.expertRow(layer, expert));
    mark.data_source.data = place < 0 ? { x: [], y: [] } : { x: [shown.x[place]], y: [shown.y[place]] };
    mark.glyph.line_color = colors.marker;
    if (!concerns(changes, "theme")) return;
    marker.glyph.line_color = colors.faint;
    for (const one of lines) one.line_color = colors.faint;
    for (const one of names) {
      one.text_color = colors.text;
      one.background_fill_color = colors.plot;
    }
  };
}

/** Colour bar of layers by the model's own index. */
function layerBar(color_mapper) {
  const { layers } = page.data;
  const step = Math.ceil(layers.length / 8);
  const ticks = layers.map((_, l) => l).filter((l) => l % step === 0);
  return new Bokeh.ColorBar({
    color_mapper, width: 10, ticker: new Bokeh.FixedTicker({ ticks }),
    major_label_overrides: new Map(layers.map(({ layer }, l) => [l, String(layer)])),
  });
}

function burstinessText(row) {
  if (row === undefined) return null;
  const { layers, table } = page.data;
  const [l, e] = expertPlaces()[row];
  const value = (name, digits) => format(table("experts").column(name)[row], digits);
  const [x, y] = ["rate_deficit", "burstiness"].map((name) => table("experts").column(name)[row]);
  return [
    `layer ${layers[l].layer}, expert ${e}: ${quarterOf(x, y)}`,
    `r ${value("relative_load", 3)} (up to ${value("ci_high", 3)}), tier ${table("experts").column("tier")[row]}`,
    `rate deficit ${format(x, 3)}, burstiness ${format(y, 3)} (by chance 0, 0)`,
    `longest idle run, shuffled ${value("longest_idle_shuffled")}, at own rate ${value("longest_idle_expected")} tokens`,
  ];
}

function burstinessTable() {
  const { layers, table, meta } = page.data;
  const names = [
    "relative_load", "rate_deficit", "burstiness", "longest_idle_shuffled", "longest_idle_expected",
    "burstiness_index", "burstiness_index_null", "p_own", "q_own", "p_fair", "q_fair", "tier",
  ];
  const rows = burstinessRows().rows.sort((a, b) => a - b);
  const values = names.map((name) => table("experts").column(name));
  const [x, y] = [values[1], values[2]];
  return {
    columns: columnsOf(["layer", "expert", ...names, "quarter"], ["tier", "quarter"]),
    rows: rows.map((row) => {
      const [l, e] = expertPlaces()[row];
      return [layers[l].layer, e, ...values.map((column) => column[row]), quarterOf(x[row], y[row])];
    }),
    caption: `Rate deficit and burstiness, nats; documents shuffled; ${meta.caption}`,
  };
}
