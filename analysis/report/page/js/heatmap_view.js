/* The map of layers by experts. */

/* At 16 expected selections chance moves 95 % of fair cells between r = 0.5 and 1.5: about one
   step of the colour bar. Below, a colour says less than it shows. */
const FEWEST_EXPECTED = 16;
const IDLE_CODE = -99;

view({
  id: "relative-load",
  section: "overview",
  title: "Relative load of every expert",
  note:
    "A column is an expert, a row a layer. r = 1 is a fair share; colours are the same for every " +
    "text. Yellow with a cross: never selected. Grey: no such expert, or nothing counted. " +
    "Hatched: so few tokens that chance alone moves colours by a step. " +
    "Arrow keys move from expert to expert.",
  controls: () => [
    select({
      label: "Text",
      options: sliceOptions(),
      get: () => (page.state.slice === "subject" ? `subject:${page.state.subject}` : page.state.slice ?? "all"),
      set: chooseSlice,
    }),
    select({
      label: "Experts",
      options: [{ value: "id", label: "by id" }, { value: "load", label: "from most to least loaded" }],
      get: () => page.state.expertOrder ?? "id",
      set: (expertOrder) => page.set({ expertOrder }),
    }),
  ],
  draw: drawHeatmap,
  table: heatmapTable,
});

function chooseSlice(value) {
  if (value.startsWith("subject:")) page.set({ slice: "subject", subject: Number(value.slice(8)) });
  else page.set({ slice: value });
}

function sliceOptions() {
  const { meta, areas } = page.data;
  const options = [{ value: "all", label: `all text (${meta.rule})` }];
  const group = (title, list) => void (list.length && options.push({ group: title, options: list }));
  group("Areas", areas.map((area) => ({ value: `area:${area}`, label: area })));
  group("Subjects", subjectOptions().map(({ value, label }) => ({ value: `subject:${value}`, label })));
  const isCounted = (g) => page.data.counts.tokens.segment(g).some((tokens) => tokens > 0);
  group("Stretches of the prompt", meta.segments.map((label, g) => ({ value: `segment:${g}`, label }))
    .filter((_, g) => isCounted(g)));
  group("Other counting rules", meta.rules.map(({ name, description }) => (
    { value: `rule:${name}`, label: `${name}: ${description}` })));
  return options;
}

/** What the state asks for, with all that the map and its table say. */
function shownLoad() {
  const chosen = slice(page.state.slice ?? "all");
  const load = relativeLoad(chosen.counts);
  const order = expertOrder(load, page.state.expertOrder === "load");
  return { ...chosen, load, order };
}

/** Numbers of one cell: count, tokens, r with its interval, and the band of fair routing. */
function cellFacts(shown, l, e) {
  const { layers, N, table, expertRow } = page.data;
  const { num_experts, top_k } = layers[l];
  const median = table("layers").column("deff_median")[l] * (shown.few ?? NaN);
  const deff = table("experts").column("deff")[expertRow(l, e)] * (shown.few ?? NaN);
  const tokens = shown.tokens[l];
  const count = shown.counts[l * N + e];
  const [low, high] = shareInterval(count, tokens, deff, median);
  const scale = shown.load[l * N + e] * (tokens / count) || num_experts / top_k;
  const band = fairBand(tokens / Math.max(median || 1, 1), num_experts, top_k);
  const expected = expectedSelections(l, tokens, median);
  return { count, tokens, load: shown.load[l * N + e], low: low * scale, high: high * scale, band, expected };
}

function cellText(shown, l, e) {
  const facts = cellFacts(shown, l, e);
  const lines = [
    `layer ${page.data.layers[l].layer}, expert ${e}`,
    `${format(facts.count)} selections by ${format(facts.tokens)} tokens`,
    `r ${format(facts.load, 3)}, 95% interval ${format(facts.low, 3)} to ${format(facts.high, 3)}`,
    `fair routing: ${format(Math.max(1 - facts.band, 0), 3)} to ${format(1 + facts.band, 3)}`,
  ];
  if (facts.expected < FEWEST_EXPECTED) lines.push("few tokens: read the interval, not the colour");
  return lines;
}

function drawHeatmap(host) {
  const { layers, N } = page.data;
  const L = layers.length;
  const map = page.figure({
    height: Math.min(Math.max(160 + 9 * L, 260), 760),
    x_range: [-0.5, N - 0.5],
    y_range: [L - 0.5, -0.5],
    x_axis_label: "expert",
    y_axis_label: "layer",
  });
  for (const grid of map.grids) grid.visible = false;
  const step = Math.ceil(L / 30);
  const ticks = layers.map((_, l) => l).filter((l) => l % step === 0);
  map.yaxes[0].ticker = new Bokeh.FixedTicker({ ticks });
  map.yaxes[0].major_label_overrides = new Map(layers.map(({ layer }, l) => [l, String(layer)]));
  const mapper = new Bokeh.LinearColorMapper({
    palette: colors.diverging, low: -CLIP, high: CLIP, low_color: IDLE, nan_color: colors.absent,
  });
  const image = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], dw: [], dh: [] } });
  const field = (name) => ({ field: name });
  map.image({
    image: field("image"), x: field("x"), y: field("y"), dw: field("dw"), dh: field("dh"),
    source: image, color_mapper: mapper,
  });
  const low = map.hbar({ y: [], height: 1, left: -0.5, right: [], fill_alpha: 0, line_alpha: 0, hatch_pattern: "/", hatch_alpha: 0.55, hatch_scale: 8 });
  const idle = map.scatter([], [], { marker: "x", size: 5, line_color: "#000000", line_width: 1.2 });
  const mark = map.rect([], [], 1, 1, { fill_alpha: 0, line_width: 3, line_color: colors.marker });
  const inner = map.rect([], [], 1, 1, { fill_alpha: 0, line_width: 1, line_color: colors.page });
  map.add_layout(loadBar(mapper), "right");
  page.show(map, host);

  let shown = shownLoad();
  const cell = (x, y) => {
    const [column, l] = [Math.round(x), Math.round(y)];
    const e = l >= 0 && l < L && column >= 0 && column < N ? shown.order[l * N + column] : -1;
    return e < 0 ? null : [l, e];
  };
  page.onTap(map, (x, y) => page.select(...(cell(x, y) ?? [null])));
  page.onHover(map, host, (x, y) => {
    const found = cell(x, y);
    return found && cellText(shown, ...found);
  });
  const say = moveByKeys(host, () => shown);

  return (names) => {
    shown = shownLoad();
    mapper.nan_color = colors.absent;
    image.data = { image: [page.matrix(colourValues(shown), L, N)], x: [-0.5], y: [-0.5], dw: [N], dh: [L] };
    const few = layers.map((_, l) => l).filter((l) => isFew(shown, l));
    low.data_source.data = { y: few, right: few.map((l) => layers[l].num_experts - 0.5) };
    low.glyph.hatch_color = colors.hatch;
    idle.data_source.data = idlePlaces(shown);
    const place = selectedPlace(shown);
    for (const [glyph, color] of [[mark, colors.marker], [inner, colors.page]]) {
      glyph.data_source.data = place ? { x: [place[0]], y: [place[1]] } : { x: [], y: [] };
      glyph.glyph.line_color = color;
    }
    if (!names || names.has("layer") || names.has("expert") || names.has("slice")) say(shown);
  };
}

/** Colour bar with the words of a load. */
function loadBar(color_mapper) {
  const words = ["≤ 1/8", "1/4", "1/2", "fair", "2×", "4×", "≥ 8×"];
  return new Bokeh.ColorBar({
    color_mapper,
    width: 12,
    ticker: new Bokeh.FixedTicker({ ticks: [-3, -2, -1, 0, 1, 2, 3] }),
    major_label_overrides: new Map(words.map((word, i) => [i - 3, word])),
  });
}

/** log2 r in the order shown; clipped, so that only idle ones lie below the scale. */
function colourValues({ load, order }) {
  const N = page.data.N;
  return Float64Array.from(order, (e, at) => {
    const r = e < 0 ? NaN : load[Math.floor(at / N) * N + e];
    return r === 0 ? IDLE_CODE : Math.max(-CLIP, Math.min(CLIP, Math.log2(r)));
  });
}

function isFew(shown, l) {
  const median = page.data.table("layers").column("deff_median")[l] * (shown.few ?? 1);
  const expected = expectedSelections(l, shown.tokens[l], median);
  return shown.tokens[l] > 0 && expected < FEWEST_EXPECTED;
}

function idlePlaces({ load, order }) {
  const N = page.data.N;
  const [x, y] = [[], []];
  order.forEach((e, at) => {
    const l = Math.floor(at / N);
    if (e >= 0 && load[l * N + e] === 0) {
      x.push(at % N);
      y.push(l);
    }
  });
  return { x, y };
}

/** Where the selected expert is: [column, place of the layer], or null. */
function selectedPlace({ order }) {
  const { layer: l, expert: e } = page.state;
  const N = page.data.N;
  return l === null ? null : [order.subarray(l * N, (l + 1) * N).indexOf(e), l];
}

/** Let arrow keys move the selection; a status region says where it is. */
function moveByKeys(host, get) {
  const { layers, N } = page.data;
  const status = element("p", { class: "status", role: "status" });
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  host.tabIndex = 0;
  host.setAttribute("role", "application");
  host.setAttribute("aria-label", "Map of layers by experts. Arrow keys select an expert.");
  host.after(status);
  host.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return page.select(null);
    const step = steps[event.key];
    if (!step || event.target !== host) return undefined;
    event.preventDefault();
    const [column, l] = selectedPlace(get()) ?? [0 - step[0], 0 - step[1]];
    const nextLayer = Math.max(0, Math.min(l + step[1], layers.length - 1));
    const last = layers[nextLayer].num_experts - 1;
    const nextColumn = Math.max(0, Math.min(column + step[0], last));
    return page.select(nextLayer, get().order[nextLayer * N + nextColumn]);
  });
  return (shown) => {
    const { layer: l, expert: e } = page.state;
    status.textContent = l === null ? "" : cellText(shown, l, e).join("; ");
  };
}

function heatmapTable() {
  const { layers, N, meta } = page.data;
  const shown = shownLoad();
  const names = ["layer", "expert", "count", "tokens", "relative_load", "ci_low", "ci_high"];
  const rows = [];
  layers.forEach(({ layer, num_experts }, l) => {
    for (let column = 0; column < num_experts; column++) {
      const e = shown.order[l * N + column];
      const facts = cellFacts(shown, l, e);
      rows.push([layer, e, facts.count, facts.tokens, facts.load, facts.low, facts.high]);
    }
  });
  const columns = names.map((name) => ({ name, label: name.replaceAll("_", " ") }));
  const what = { subject: () => meta.subjects[shown.key].name, segment: () => meta.segments[shown.key] };
  const text = shown.kind === "all" ? "all text" : `${shown.kind} ${what[shown.kind]?.() ?? shown.key}`;
  return { columns, rows, caption: `Relative load, ${short(text)}; ${meta.caption}` };
}
