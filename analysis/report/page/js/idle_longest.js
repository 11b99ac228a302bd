/* Longest idle run of every expert as maps of layers by experts: shuffled, and in the order asked. */

view({
  id: "longest-idle",
  section: "idle",
  title: "Longest idle run of every expert",
  note:
    "In fair intervals: mean distances between two selections under even load, so that models " +
    "compare; fair routing in one stream gives the length that the colour bar marks. Dots: W tokens or more. " +
    "Yellow with a cross: never selected. What only the second map has, the order of documents made.",
  available: knowsTokenRuns,
  controls: () => [windowControl()],
  draw: drawLongest,
  table: longestTable,
});

const NEVER = -9;
const RUN_COLUMNS = { shuffled: "longest_idle_shuffled", asked: "longest_idle" };

/** log10 of the longest run in fair intervals: Float64Array [L*N], NaN where there is none. */
function runValues(name) {
  const { layers, N } = page.data;
  const values = new Float64Array(layers.length * N).fill(NaN);
  layers.forEach((_, l) => {
    const counts = ofLayer("count", l);
    ofLayer(name, l).forEach((run, e) => {
      const length = Math.log10(Math.max(inFairIntervals(run, l), 0.1));
      values[l * N + e] = counts[e] === 0 ? NEVER : length;
    });
  });
  return values;
}

/** Longest run that one expert of fair routing is expected to have, in fair intervals; median. */
const fairLongest = once(() => {
  const { table } = page.data;
  const { rate_deficit, longest_idle_expected } = Object.fromEntries(
    ["rate_deficit", "longest_idle_expected"].map((name) => [name, table("experts").column(name)]));
  // The deficit is ln(expected / fair).
  return quantile(expertPlaces().map(([l], row) => (
    inFairIntervals(longest_idle_expected[row] / Math.exp(rate_deficit[row]), l))), 0.5);
});

function drawLongest(host) {
  const { order, shuffles } = page.data.meta;
  const maps = [[RUN_COLUMNS.asked, `order ${order}`]];
  if (shuffles > 0) maps.unshift([RUN_COLUMNS.shuffled, `median of ${shuffles} shuffled orders of documents`]);
  const values = maps.map(([name]) => runValues(name));
  const known = values.flatMap((one) => Array.from(one).filter((value) => value > NEVER));
  const scale = {
    low: Math.min(Math.log10(fairLongest()), ...[quantile(known, 0)].filter(Number.isFinite)),
    high: Math.max(...[quantile(known, 1)].filter(Number.isFinite), Math.log10(fairLongest()) + 0.3),
  };
  const style = "display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr))";
  const pair = element("div", { style });
  host.append(pair);
  const updates = maps.map(([, title], i) => drawRunMap(pair, scale, title, values[i]));
  return (changes) => {
    if (concerns(changes, "window", "layer", "expert", "theme")) updates.forEach((update) => update());
  };
}

/** One of the maps. */
function drawRunMap(pair, scale, title, values) {
  const { layers, N } = page.data;
  const L = layers.length;
  const host = element("div", { class: "host", style: "min-width: 0" }, element("h4", { style: "margin: 0" }, title));
  pair.append(host);
  const made = page.figure({
    height: Math.min(Math.max(150 + 8 * L, 240), 560),
    x_range: [-0.5, N - 0.5], y_range: [L - 0.5, -0.5], x_axis_label: "expert", y_axis_label: "layer",
  });
  for (const grid of made.grids) grid.visible = false;
  nameLayers(made.yaxes[0], 30);
  const mapper = new Bokeh.LinearColorMapper({
    palette: colors.sequential, low_color: IDLE, nan_color: "#00000000", ...scale,
  });
  const image = [page.matrix(values, L, N)];
  const source = new Bokeh.ColumnDataSource({ data: { image, x: [-0.5], y: [-0.5], dw: [N], dh: [L] } });
  const columns = Object.fromEntries(["image", "x", "y", "dw", "dh"].map((name) => [name, field(name)]));
  made.image({ ...columns, source, color_mapper: mapper });
  const never = made.scatter([], [], { marker: "x", size: 5, line_color: "#000000", line_width: 1.2 });
  const long = made.scatter([], [], { size: L > 30 ? 3 : 5, fill_color: "#ffffff", line_color: "#000000", line_width: 0.8 });
  // On a canvas of their own: thousands of dots need not be painted again.
  const frame = { level: "overlay", fill_alpha: 0 };
  const mark = made.rect([], [], 1, 1, { ...frame, line_width: 3, line_color: colors.marker });
  const inner = made.rect([], [], 1, 1, { ...frame, line_width: 1, line_color: colors.page });
  made.add_layout(runBar(mapper), "right");
  page.show(made, host);

  const placesOf = (wanted) => {
    const found = expertPlaces().filter(([l, e]) => wanted(values[l * N + e], l));
    return { x: found.map(([, e]) => e), y: found.map(([l]) => l) };
  };
  const cell = (x, y) => {
    const [e, l] = [Math.round(x), Math.round(y)];
    return layers[l] && e >= 0 && e < layers[l].num_experts ? [l, e] : null;
  };
  never.data_source.data = placesOf((value) => value === NEVER);
  page.onTap(made, (x, y) => page.select(...(cell(x, y) ?? [null])));
  page.onHover(made, host, (x, y) => cell(x, y) && runText(...cell(x, y)));
  let dotted = null;
  return () => {
    if (dotted !== shownWindow()) {
      dotted = shownWindow();
      const limits = layers.map((_, l) => Math.log10(inFairIntervals(dotted, l)) - 1e-9);
      long.data_source.data = placesOf((value, l) => value !== NEVER && value >= limits[l]);
    }
    const { layer, expert } = page.state;
    for (const [glyph, color] of [[mark, colors.marker], [inner, colors.page]]) {
      glyph.data_source.data = layer === null ? { x: [], y: [] } : { x: [expert], y: [layer] };
      glyph.glyph.line_color = color;
    }
  };
}

/** Colour bar in fair intervals, with the length that fair routing gives. */
function runBar(color_mapper) {
  const fair = Math.log10(fairLongest());
  const decades = [-1, 0, 1, 2, 3, 4, 5, 6].flatMap((power) => [power, power + Math.log10(3)]);
  const inside = (tick) => tick >= color_mapper.low && tick <= color_mapper.high;
  const labels = new Map([[fair, "fair"]]);
  for (const tick of decades.filter((one) => inside(one) && Math.abs(one - fair) > 0.12)) {
    labels.set(tick, format(10 ** tick, 1));
  }
  return new Bokeh.ColorBar({
    color_mapper, width: 12, ticker: new Bokeh.FixedTicker({ ticks: [...labels.keys()] }),
    major_label_overrides: labels,
  });
}

function runText(l, e) {
  const value = (name) => ofLayer(name, l)[e];
  const both = (run) => `${format(run)} tokens, ${format(inFairIntervals(run, l), 3)} fair intervals`;
  return [
    `layer ${page.data.layers[l].layer}, expert ${e}: r ${format(value("relative_load"), 3)}`,
    `shuffled: ${both(value("longest_idle_shuffled"))}`,
    `order ${page.data.meta.order}: ${both(value("longest_idle"))}`,
    `expected at own rate${inOneStream()}: ${both(value("longest_idle_expected"))}`,
  ];
}

function longestTable() {
  const { layers, table, meta } = page.data;
  const names = [
    "longest_idle", "current_idle", "leading_idle", "longest_idle_shuffled", "longest_idle_expected",
  ];
  const values = names.map((name) => table("experts").column(name));
  const rows = expertPlaces().map(([l, e], row) => [
    layers[l].layer, e, ...values.map((column) => column[row]),
    inFairIntervals(values[3][row], l), inFairIntervals(values[0][row], l),
  ]);
  const columns = columnsOf([
    "layer", "expert", ...names, "shuffled_fair_intervals", "longest_fair_intervals",
  ]);
  return { columns, rows, caption: `Idle runs in tokens and in fair intervals; ${meta.caption}` };
}
