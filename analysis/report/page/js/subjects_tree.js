/* Subjects by their divergence: a tree, and the map of every two subjects in the tree's order. */

const TREE_PART = 0.35;
const MOST_NAMES = 60;

view({
  id: "subject-divergence",
  section: "subjects",
  title: "Which subjects use the same experts",
  note:
    "Every cell is the Jensen-Shannon divergence of two subjects' use of experts: 0 the same, 1 bit " +
    "no expert in common. The tree joins subjects by average linkage of its root, and orders the " +
    "map. Noise alone makes a divergence above 0: point at a cell for it, or colour by the ratio. " +
    "Numbers beside the tree are areas. Click a row to choose its subject.",
  available: () => {
    if (countsAny() !== true) return countsAny();
    return page.data.array("subjects.leaves").values[0] > 1 || "all tokens are of one subject";
  },
  controls: () => [
    subjectLayerControl("mean of all layers"),
    select({
      label: "Colour",
      options: [
        { value: "bits", label: "divergence" },
        { value: "ratio", label: "divergence over noise" },
      ],
      get: () => page.state.treeColour ?? "bits",
      set: (treeColour) => page.set({ treeColour }),
    }),
    subjectControl("none"),
  ],
  draw: drawTree,
  table: treeTable,
});

/** The tree of the layer that is shown, and its map in the tree's order. */
function shownTree() {
  const { meta, array } = page.data;
  const l = subjectLayer();
  const place = l === null ? 0 : l + 1;
  const S = meta.subjects.length;
  const part = (name, size) => array(name).values.subarray(place * size, (place + 1) * size);
  const joins = array("subjects.height").shape[1];
  const order = part("subjects.order", S);
  const { divergence, noise } = subjectMath();
  const row = (of, s) => Float64Array.from(order, (other) => (s === other ? 0 : of(l, s, other)));
  const matrix = (of) => Array.from(order, (s) => row(of, s));
  return {
    l, order,
    bits: matrix(divergence),
    noise: matrix(noise),
    leaves: array("subjects.leaves").values[place],
    joined: part("subjects.joined", 2 * joins),
    heights: part("subjects.height", joins),
    agreement: array("subjects.area_agreement").values[place],
  };
}

/**
 * Lines of a tree that lies left of the map: one bracket for each join.
 * @param {{order: ArrayLike<number>, leaves: number, joined: ArrayLike<number>, heights: ArrayLike<number>}} tree
 * @param {(height: number) => number} place x of a height
 * @returns {{xs: number[][], ys: number[][]}}
 */
function treeLines({ order, leaves, joined, heights }, place) {
  const nodes = new Map();
  for (let row = 0; row < leaves; row++) nodes.set(order[row], [place(0), row]);
  const [xs, ys] = [[], []];
  for (let i = 0; i < leaves - 1; i++) {
    const [[x1, y1], [x2, y2]] = [nodes.get(joined[2 * i]), nodes.get(joined[2 * i + 1])];
    const x = place(heights[i]);
    xs.push([x1, x, x, x2]);
    ys.push([y1, y1, y2, y2]);
    nodes.set(order.length + i, [x, (y1 + y2) / 2]);
  }
  return { xs, ys };
}

function drawTree(host) {
  const { meta } = page.data;
  const S = meta.subjects.length;
  const width = Math.max(TREE_PART * S, 1.5);
  const strip = Math.max(S * 0.03, 0.4);
  const map = page.figure({
    height: Math.min(Math.max(90 + 11 * S, 260), 900),
    x_range: [-0.5 - 2 * strip - width, S - 0.5],
    y_range: [S - 0.5, -0.5],
    y_axis_location: "right",
    x_axis_label: "root of the divergence (tree)",
  });
  for (const grid of map.grids) grid.visible = false;
  const [across, names] = [map.xaxes[0], map.yaxes[0]];
  names.major_label_text_font_size = S > 30 ? "8px" : "11px";
  names.major_tick_line_color = null;
  const step = Math.ceil(S / MOST_NAMES);
  const rows = Array.from({ length: S }, (_, row) => row);
  names.ticker = new Bokeh.FixedTicker({ ticks: rows.filter((row) => row % step === 0) });
  const mapper = new Bokeh.LinearColorMapper({ palette: colors.sequential, low: 0, high: 1, nan_color: colors.absent });
  const image = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], dw: [], dh: [] } });
  map.image({
    image: field("image"), x: field("x"), y: field("y"), dw: field("dw"), dh: field("dh"),
    source: image, color_mapper: mapper,
  });
  const lines = map.multi_line([], [], { line_color: colors.text, line_width: 1.2 });
  const x = -0.5 - strip;
  const areas = map.rect([], [], strip, 1, { fill_color: field("color"), line_color: null });
  const letters = map.text([], [], [], {
    text_font_size: names.major_label_text_font_size, text_color: field("color"),
    text_align: "center", text_baseline: "middle",
  });
  const row = map.rect([], [], S, 1, { fill_alpha: 0, line_width: 2, line_color: colors.marker });
  const column = map.rect([], [], 1, S, { fill_alpha: 0, line_width: 2, line_color: colors.marker });
  const bar = new Bokeh.ColorBar({ color_mapper: mapper, height: 10, orientation: "horizontal" });
  map.add_layout(bar, "above");
  page.show(map, host);
  addKey(host, page.data.areas.map((area, place) => (
    { mark: "square", color: areaColour(place), label: `${areaMark(place)} ${short(area)}` })));
  const say = statusLine(host);

  let shown = null;
  const rowAt = (y) => (y > -0.5 && y < S - 0.5 ? Math.round(y) : -1);
  page.onTap(map, (_, y) => rowAt(y) >= 0 && page.set({ subject: shown.order[rowAt(y)] }));
  page.onHover(map, host, (pointer, y) => {
    const [one, other] = [rowAt(y), rowAt(pointer)];
    if (one < 0) return null;
    return other < 0 ? [subjectWithArea(shown.order[one])] : treeText(shown, one, other);
  });

  return (changes) => {
    if (!concerns(changes, "subjectLayer", "treeColour", "subject", "theme")) return;
    if (concerns(changes, "subjectLayer")) shown = shownTree();
    const most = Math.max(...shown.heights.subarray(0, shown.leaves - 1)) || 1;
    const place = (height) => x - strip / 2 - 0.1 - (width - 0.2) * (height / most);
    const ticks = [0, 1].map((part) => place(part * most));
    across.ticker = new Bokeh.FixedTicker({ ticks });
    across.major_label_overrides = new Map([[ticks[0], "0"], [ticks[1], format(most, 2)]]);
    lines.data_source.data = treeLines(shown, place);
    lines.glyph.line_color = colors.text;
    names.major_label_overrides = new Map(rows.map((at) => [at, rowName(shown.order[at], host.clientWidth)]));
    const area = rows.map((at) => areaPlace(shown.order[at]));
    areas.data_source.data = { x: rows.map(() => x), y: rows, color: area.map(areaColour) };
    letters.data_source.data = { x: rows.map(() => x), y: rows, text: area.map(areaMark), color: area.map(areaInk) };
    colourCells(shown, mapper, image, bar);
    const at = shown.order.indexOf(page.state.subject ?? -1);
    const [middle, chosen] = [(S - 1) / 2, at < 0 ? [] : [at]];
    row.data_source.data = { x: chosen.map(() => middle), y: chosen };
    column.data_source.data = { x: chosen, y: chosen.map(() => middle) };
    for (const one of [row, column]) one.glyph.line_color = colors.marker;
    say(treeWords(shown));
  };
}

/** Colour the map by bits, or by log2 of bits over noise. */
function colourCells({ bits, noise }, mapper, image, bar) {
  const S = bits.length;
  const isRatio = page.state.treeColour === "ratio";
  const values = Float64Array.from({ length: S * S }, (_, i) => {
    const [row, other] = [Math.floor(i / S), i % S];
    if (row === other) return isRatio ? NaN : bits[row][row];
    const ratio = Math.log2(bits[row][other] / noise[row][other]);
    return isRatio ? Math.max(-CLIP, Math.min(CLIP, ratio)) : bits[row][other];
  });
  const most = values.reduce((top, value) => (value > top ? value : top), 0);
  mapper.palette = isRatio ? colors.diverging : colors.sequential;
  mapper.low = isRatio ? -CLIP : 0;
  mapper.high = isRatio ? CLIP : most || 1;
  mapper.nan_color = colors.absent;
  bar.title = isRatio ? "divergence over noise, log2: 0 is noise alone" : "divergence, bits";
  image.data = { image: [page.matrix(values, S, S)], x: [-0.5], y: [-0.5], dw: [S], dh: [S] };
}

const areaPlace = (s) => page.data.areas.indexOf(page.data.meta.subjects[s].area);
const areaColour = (place) => (place < 0 ? colors.absent : CATEGORICAL[place % CATEGORICAL.length]);
/* Black is too dark on the first colour. */
const areaInk = (place) => (place % CATEGORICAL.length ? "#000000" : "#ffffff");
const areaMark = (place) => (place < 0 ? "" : String(place + 1));

/** A subject beside its row: cut short on narrow screens, where a pointer or a tap tells the rest. */
function rowName(s, width) {
  return subjectName(s, width < 600 ? 14 : 30);
}

function subjectWithArea(s) {
  const { area } = page.data.meta.subjects[s];
  return area ? `${subjectName(s)} (${short(area)})` : subjectName(s);
}

function treeText({ order, bits, noise }, row, other) {
  return [
    subjectWithArea(order[row]),
    subjectWithArea(order[other]),
    `divergence ${format(bits[row][other], 3)} bits, from noise alone ${format(noise[row][other], 3)}`,
  ];
}

/** The closest and the farthest two subjects, and whether the tree knows the areas. */
function treeWords({ l, order, bits, noise, leaves, agreement }) {
  const pairs = [];
  for (let i = 0; i < leaves; i++) for (let j = 0; j < i; j++) pairs.push([i, j]);
  pairs.sort(([a, b], [c, d]) => bits[a][b] - bits[c][d]);
  const say = ([i, j]) => `${subjectName(order[i])} and ${subjectName(order[j])} ` +
    `(${format(bits[i][j], 2)} bits, noise ${format(noise[i][j], 2)})`;
  const where = l === null ? "Mean of all layers" : `Layer ${page.data.layers[l].layer}`;
  const areas = Number.isNaN(agreement)
    ? "" : ` Clusters against areas: adjusted Rand index ${format(agreement, 2)}, by chance 0, at most 1.`;
  return `${where}. Closest: ${say(pairs[0])}; farthest: ${say(pairs.at(-1))}.${areas}`;
}

function treeTable() {
  const { layers, meta } = page.data;
  const { S, divergence, noise } = subjectMath();
  const l = subjectLayer();
  const rows = [];
  for (let s = 0; s < S; s++) {
    for (let other = s + 1; other < S; other++) {
      const names = [meta.subjects[s].name, meta.subjects[other].name];
      rows.push([l === null ? NaN : layers[l].layer, ...names, divergence(l, s, other), noise(l, s, other)]);
    }
  }
  const names = ["layer", "subject", "other", "divergence_bits", "divergence_null_bits"];
  const where = l === null ? "mean of all layers" : `layer ${layers[l].layer}`;
  return {
    columns: columnsOf(names, ["subject", "other"]), rows,
    caption: `Divergence of subjects, ${where}; ${meta.caption}`,
  };
}
