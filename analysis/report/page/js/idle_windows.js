/* Experts idle for W or more: how many in each layer, and which. */

view({
  id: "idle-windows",
  section: "idle",
  get title() { return `Experts idle for W ${idleUnit()} or more`; },
  get note() {
    return `How many experts of each layer have an idle run of at least W ${idleUnit()}. Bars: in the ` +
      `token order of the caption, exact for every W${inPasses() ? "" : "; diamonds: documents shuffled"}. ` +
      "Own rates above fair routing: some experts are used rarely. Bars above own rates: uses come in bursts.";
  },
  available: knowsRuns,
  controls: () => [windowControl()],
  draw: drawWindows,
  table: windowsTable,
});

function drawWindows(host) {
  const made = layersFigure("experts", { height: 320, y_range: [0, 1] });
  made.yaxes[0].ticker.min_interval = 1;
  const says = element("p", { class: "status", role: "status" });
  host.append(says);
  const x = page.data.layers.map((_, l) => l);
  const source = new Bokeh.ColumnDataSource({ data: { x, idle: [], shuffled: [], own: [], fair: [] } });
  const bars = made.vbar({ x: field("x"), top: field("idle"), bottom: 0, width: 0.8, source, fill_color: CATEGORICAL[0], line_color: colors.page });
  made.line(field("x"), field("fair"), { source, line_color: CATEGORICAL[6], line_width: 2, line_dash: DASHED });
  const own = made.segment([], [], [], [], { line_color: colors.marker, line_width: 2.5 });
  made.scatter(field("x"), field("shuffled"), { source, marker: "diamond", size: markSize(host, 10), fill_color: CATEGORICAL[1], line_color: "#1b1f24" });
  addKey(host, [
    { mark: "bar", color: CATEGORICAL[0], label: `order ${page.data.meta.order}` },
    ...shuffledKey(),
    { mark: "tick", color: "var(--text)", label: "expected at own rates" },
    { mark: "dashed", color: CATEGORICAL[6], label: "fair routing" },
  ]);
  page.show(made, host);
  page.onTap(made, (at) => layerAt(at) !== null && page.set({ shownLayer: layerAt(at) }));
  page.onHover(made, host, (at) => windowText(layerAt(at)));
  return (changes) => {
    if (!concerns(changes, "window", "theme")) return;
    const found = idleOfLayers(shownWindow());
    const of = (name) => found.map((one) => one[name]);
    source.data = { x, ...Object.fromEntries(["idle", "shuffled", "own", "fair"].map((name) => [name, of(name)])) };
    const most = Math.max(1, ...["idle", "shuffled", "own", "fair"].flatMap(of).filter(Number.isFinite));
    made.y_range.setv({ end: 1.08 * most, reset_end: 1.08 * most });
    own.data_source.data = { x0: x.map((l) => l - 0.4), x1: x.map((l) => l + 0.4), y0: of("own"), y1: of("own") };
    own.glyph.line_color = colors.marker;
    bars.glyph.line_color = colors.page;
    says.textContent =
      `${format(sum(of("idle")))} experts idle for ${format(shownWindow())} ${idleUnit()} or more; ` +
      `expected at own rates ${expectation(sum(of("own")))}, of fair routing ${expectation(sum(of("fair")))}.`;
  };
}

/** The key of the median over shuffled documents, where there is one. */
const shuffledKey = () => inPasses() ? []
  : [{ mark: "diamond", color: CATEGORICAL[1], label: "documents shuffled (median)" }];

function windowText(l) {
  if (l === null) return null;
  const window = shownWindow();
  const { idle, shuffled, own, fair } = idleOfLayers(window)[l];
  const lines = [
    `layer ${page.data.layers[l].layer}: ${format(idle)} experts idle for ${format(window)} ${idleUnit()} or more`,
    ...(inPasses() ? [] : [`documents shuffled ${format(shuffled)}`]),
    `expected at own rates ${expectation(own)}, of fair routing ${expectation(fair)}`,
  ];
  const { runs, share, expected } = runsOfLayers(window)[l];
  if (runs >= 0) lines.push(`${format(runs)} runs (expected ${expectation(expected)}), ${format(100 * share, 3)} % of the stream`);
  return lines;
}

function windowsTable() {
  const { layers, meta } = page.data;
  const window = shownWindow();
  const [idle, runs] = [idleOfLayers(window), runsOfLayers(window)];
  const rows = layers.map(({ layer }, l) => [
    layer, window, windowIntervals(window, l), idle[l].idle, idle[l].shuffled, idle[l].own, idle[l].fair,
    runs[l].runs, runs[l].shuffled, runs[l].expected, runs[l].share, runs[l].expectedShare,
  ]);
  const columns = columnsOf([
    "layer", "window", "window_fair_intervals", "experts_idle", "experts_idle_shuffled",
    "experts_idle_expected", "experts_idle_expected_fair",
    "runs", "runs_shuffled", "expected_runs", "share", "expected_share",
  ]);
  const note = meta.windows.includes(window) ? "" : `; runs and share are known at ${meta.windows.map((one) => format(one)).join(", ")}`;
  return { columns, rows, caption:
    `Experts with an idle run of ${format(window)} ${idleUnit()} or more; runs of all experts, mean share of the stream in them${note}; ${meta.caption}` };
}

const LISTED = 25;

view({
  id: "idle-experts",
  section: "idle",
  title: "Which experts idle the longest",
  get note() {
    return `The ${LISTED} longest idle runs of W ${idleUnit()} or more, layer and expert at the left; the ` +
      `table has all. ${inPasses() ? "" : "A diamond far left of the dot: the order of documents made the run. "}` +
      "A tick near the dot: a low rate explains it; far left of it: bursts do.";
  },
  available: knowsRuns,
  controls: () => [windowControl()],
  draw: drawIdleExperts,
  table: idleExpertsTable,
});

function drawIdleExperts(host) {
  const { table, layers, meta } = page.data;
  const made = page.figure({
    height: 80 + 18 * LISTED, x_axis_type: "log", y_range: [LISTED + 0.5, 0.5],
    x_range: [1, 2], x_axis_label: `longest idle run, ${idleUnit()}`,
  });
  made.ygrids[0].visible = false;
  const says = element("p", { class: "status", role: "status" });
  host.append(says);
  const source = new Bokeh.ColumnDataSource({ data: { y: [], longest: [], shuffled: [], expected: [] } });
  made.segment(field("expected"), field("y"), field("longest"), field("y"), { source, line_color: CATEGORICAL[6], line_width: 1.5 });
  const tick = made.scatter(field("expected"), field("y"), { source, marker: "dash", angle: Math.PI / 2, size: 12, line_width: 2.5 });
  made.scatter(field("longest"), field("y"), { source, size: 9, color: CATEGORICAL[0] });
  made.scatter(field("shuffled"), field("y"), { source, marker: "diamond", size: 10, fill_color: CATEGORICAL[1], line_color: "#1b1f24" });
  const mark = made.scatter([], [], { size: 16, fill_alpha: 0, line_width: 2.5 });
  const limit = new Bokeh.Span({ dimension: "height", line_dash: DASHED, line_width: 1.5 });
  made.add_layout(limit);
  addKey(host, [
    { mark: "circle", color: CATEGORICAL[0], label: `order ${meta.order}` },
    ...shuffledKey(),
    { mark: "upright", color: "var(--text)", label: `expected at its own rate${inOneStream()}` },
    { mark: "dashed", color: "var(--faint)", label: "W" },
  ]);
  page.show(made, host);
  let rows = [];
  const rowAt = (y) => rows[Math.round(y) - 1];
  page.onTap(made, (_, y) => page.select(...(expertPlaces()[rowAt(y)] ?? [null])));
  page.onHover(made, host, (_, y) => rowAt(y) !== undefined ? runText(...expertPlaces()[rowAt(y)]) : null);
  return (changes) => {
    if (!concerns(changes, "window", "layer", "expert", "theme")) return;
    const all = idleExperts(shownWindow());
    rows = all.slice(0, LISTED);
    const of = (name) => rows.map((row) => table("experts").column(name)[row]);
    const longest = of("longest_idle");
    source.data = {
      y: ranks(rows.length), longest, shuffled: of("longest_idle_shuffled"), expected: of("longest_idle_expected"),
    };
    const axis = made.yaxes[0];
    axis.ticker = new Bokeh.FixedTicker({ ticks: ranks(rows.length) });
    axis.major_label_overrides = new Map(rows.map((row, i) => {
      const [l, e] = expertPlaces()[row];
      return [i + 1, `${layers[l].layer} · ${e}`];
    }));
    const least = Math.min(shownWindow(), ...source.data.expected.filter((run) => run > 0));
    const most = Math.max(2 * shownWindow(), ...longest);
    const [start, end] = [0.7 * least, 1.3 * most];
    made.x_range.setv({ start, end, reset_start: start, reset_end: end });
    limit.location = shownWindow();
    limit.line_color = colors.faint;
    const { layer, expert } = page.state;
    const at = layer === null ? -1 : rows.indexOf(page.data.expertRow(layer, expert));
    mark.data_source.data = at < 0 ? { x: [], y: [] } : { x: [longest[at]], y: [at + 1] };
    mark.glyph.line_color = colors.marker;
    tick.glyph.line_color = colors.marker;
    says.textContent = `${format(rows.length)} of ${format(all.length)} experts idle for ${format(shownWindow())} ${idleUnit()} or more.`;
  };
}

function idleExpertsTable() {
  const { layers, table, meta } = page.data;
  const names = [
    "longest_idle", "longest_idle_shuffled", "longest_idle_expected", "count", "relative_load", "ci_high",
    "tier", "rate_deficit", "burstiness", "p_own", "p_fair", "idle_documents", "idle_subjects",
  ];
  const values = names.map((name) => table("experts").column(name));
  const rows = idleExperts(shownWindow()).map((row) => {
    const [l, e] = expertPlaces()[row];
    return [layers[l].layer, e, ...values.map((column) => column[row])];
  });
  return {
    columns: columnsOf(["layer", "expert", ...names], ["tier"]), rows,
    caption: `Experts with an idle run of ${format(shownWindow())} ${idleUnit()} or more; ${meta.caption}`,
  };
}
