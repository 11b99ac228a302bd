/* The map of layers by experts. */

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
    select({ label: "Text", options: textOptions(), get: chosenText, set: chooseText }),
    select({
      label: "Experts",
      options: [
        { value: "id", label: "by id" },
        { value: "load", label: "from most to least loaded" },
      ],
      get: () => page.state.expertOrder ?? "id",
      set: (expertOrder) => page.set({ expertOrder }),
    }),
  ],
  caption: () => textCaption(textOf(chosenText())),
  draw: drawHeatmap,
  table: heatmapTable,
});

function textOptions() {
  const { meta, areas, counts } = page.data;
  const isCounted = ({ g }) => counts.tokens.segment(g).some((tokens) => tokens > 0);
  const segments = meta.segments.map((label, g) => ({ value: `segment:${g}`, label, g }));
  const rules = meta.rules.map(({ name, description }) => (
    { value: `rule:${name}`, label: `${name}: ${description}` }));
  const subjects = subjectOptions().map(({ value, label }) => (
    { value: `subject:${value}`, label }));
  const groups = [
    { group: "Areas", options: areas.map((area) => ({ value: `area:${area}`, label: area })) },
    { group: "Subjects", options: subjects },
    { group: "Stretches of the prompt", options: segments.filter(isCounted) },
    { group: "Other counting rules", options: rules },
  ];
  const all = { value: "all", label: `all text (${meta.rule})` };
  return [all, ...groups.filter(({ options }) => options.length)];
}

function drawHeatmap(host) {
  const about = element("p", { class: "about" });
  host.append(about);
  const map = emptyMap();
  const image = addImage(map);
  const few = map.hbar({
    y: [], height: 1, left: -0.5, right: [], fill_alpha: 0, line_alpha: 0,
    hatch_pattern: "/", hatch_color: "#000000", hatch_alpha: 0.5, hatch_scale: 16,
  });
  const idle = map.scatter([], [], {
    marker: "x", size: crossSize(map.height), line_color: "#000000", line_width: 1.2,
  });
  const marks = [3, 1].map((line_width) => map.rect([], [], 1, 1, { fill_alpha: 0, line_width }));
  page.show(map, host);

  let shown = shownLoad();
  page.onTap(map, (x, y) => page.select(...(cellAt(shown, x, y) ?? [null])));
  page.onHover(map, host, (x, y) => {
    const cell = cellAt(shown, x, y);
    return cell && cellText(shown, ...cell);
  });
  const say = moveByKeys(host, () => shown);

  return () => {
    shown = shownLoad();
    about.textContent = `${textName(shown)}: ${format(Math.max(...shown.tokens))} tokens`;
    image.update(shown);
    few.data_source.data = fewRows(shown);
    idle.data_source.data = idlePlaces(shown);
    const place = selectedPlace(shown);
    marks.forEach((mark, i) => {
      mark.data_source.data = place ? { x: [place[0]], y: [place[1]] } : { x: [], y: [] };
      mark.glyph.line_color = i ? "#ffffff" : "#000000";
    });
    say(shown);
  };
}

/** In pixels, so that a cross fits into a cell of a wide screen. */
function crossSize(height) {
  const { layers, N } = page.data;
  return Math.max(5, Math.min(16, 500 / N, (height - 110) / 2 / layers.length));
}

function emptyMap() {
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
  return map;
}

/** Colours of all cells, with their bar. */
function addImage(map) {
  const { layers, N } = page.data;
  const L = layers.length;
  const mapper = new Bokeh.LinearColorMapper({
    palette: colors.diverging, low: -CLIP, high: CLIP, low_color: IDLE,
  });
  const places = { x: [-0.5], y: [-0.5], dw: [N], dh: [L] };
  const source = new Bokeh.ColumnDataSource({
    data: { image: [page.matrix(new Float64Array(L * N), L, N)], ...places },
  });
  const fields = ["image", ...Object.keys(places)].map((field) => [field, { field }]);
  map.image({ ...Object.fromEntries(fields), source, color_mapper: mapper });
  const words = ["≤ 1/8", "1/4", "1/2", "fair", "2×", "4×", "≥ 8×"];
  map.add_layout(new Bokeh.ColorBar({
    color_mapper: mapper,
    width: 12,
    ticker: new Bokeh.FixedTicker({ ticks: words.map((_, i) => i - CLIP) }),
    major_label_overrides: new Map(words.map((word, i) => [i - CLIP, word])),
  }), "right");
  const update = (shown) => {
    mapper.nan_color = colors.absent;
    source.data = { image: [page.matrix(colourValues(shown), L, N)], ...places };
  };
  return { update };
}

/** log2 r in the order shown; clipped, so that only idle ones lie below the scale. */
function colourValues({ load, order }) {
  const N = page.data.N;
  return Float64Array.from(order, (e, at) => {
    const r = e < 0 ? NaN : load[Math.floor(at / N) * N + e];
    return r === 0 ? IDLE_CODE : Math.max(-CLIP, Math.min(CLIP, Math.log2(r)));
  });
}

/** Layers with too few tokens. */
function fewRows(shown) {
  const { layers } = page.data;
  const y = layers.map((_, l) => l).filter((l) => shown.tokens[l] && cellFacts(shown, l, 0).isFew);
  return { y, right: y.map((l) => layers[l].num_experts - 0.5) };
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
