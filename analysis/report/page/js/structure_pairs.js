/* Which experts of a layer tokens select together: observed over expected. */

/* Of fewer expected tokens a ratio says little. */
const FEWEST_TOGETHER = 5;
const TIMES_CHANCE = ["≤ 1/8", "1/4", "1/2", "chance", "2×", "4×", "≥ 8×"];

view({
  id: "coactivation",
  section: "structure",
  title: "Experts selected together",
  note:
    "Tokens that select two experts, over those expected if only how often each is used mattered " +
    "(quasi-independence): white is that chance, red more, blue less; a colour step is a factor of " +
    "two. Experts that meet often lie side by side unless they are ordered by id. Blank: " +
    "fewer than 5 tokens expected, or, where a layer has more pairs than are kept, close to chance. Click a cell to select " +
    "the expert of its row.",
  available: () => (page.data.meta.T > 0 && page.data.table("pairs").length > 0) || noPairs(),
  controls: () => [
    oneLayerControl(),
    select({
      label: "Order",
      options: [{ value: "together", label: "side by side" }, { value: "id", label: "by id" }],
      get: () => page.state.pairsOrder ?? "together",
      set: (pairsOrder) => page.set({ pairsOrder }),
    }),
  ],
  draw: drawPairs,
  table: pairsTable,
});

function noPairs() {
  if (!page.data.meta.has_rows) return "the trace has no rows of tokens";
  return page.data.meta.T > 0 ? "a token selects one expert" : "no token counts";
}

/**
 * Pairs of a layer that the page has, with the columns of the table `coactivation`.
 * @returns {{expert: number, other: number, count: number, expected: number, ratio: number,
 *   z: number, jaccard: number}[]} expert < other; NaN below 5 expected
 */
const pairsOf = memo((l) => {
  const { table, counts, N, array } = page.data;
  const pairs = table("pairs");
  const [layer, expert, other, count, expected] =
    ["layer", "expert", "other", "count", "expected"].map(pairs.column);
  const used = counts.all().subarray(l * N, (l + 1) * N);
  const deff = array("pairs.deff").values[l];
  const found = [];
  for (let i = 0; i < pairs.length; i++) {
    if (layer[i] !== l) continue;
    const [c, E] = [count[i], expected[i] >= 5 ? expected[i] : NaN];
    found.push({
      expert: expert[i], other: other[i], count: c, expected: expected[i],
      ratio: c / E, z: (c - E) / Math.sqrt(E * deff),
      jaccard: used[expert[i]] + used[other[i]] > 0 ? c / (used[expert[i]] + used[other[i]] - c) : NaN,
    });
  }
  return found;
});

/** Share of an expert's tokens that also select the other one. */
function conditionalOf(l, count, expert) {
  const used = page.data.counts.all()[l * page.data.N + expert];
  return used ? count / used : NaN;
}

/** Experts of a layer in the order that is shown. */
function pairsOrder(l) {
  const { layers, N, array } = page.data;
  const { num_experts } = layers[l];
  if (page.state.pairsOrder === "id") return Array.from({ length: num_experts }, (_, e) => e);
  return Array.from(array("pairs.order").values.subarray(l * N, l * N + num_experts));
}

function drawPairs(host) {
  const size = host.clientWidth || 600;
  const map = page.figure({
    height: Math.min(Math.max(size * 0.8, 300), 640), x_range: [0, 1], y_range: [1, 0],
    x_axis_label: "expert", y_axis_label: "expert",
  });
  for (const grid of map.grids) grid.visible = false;
  const mapper = new Bokeh.LinearColorMapper({
    palette: colors.diverging, low: -CLIP, high: CLIP, nan_color: colors.plot,
  });
  const image = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], dw: [], dh: [] } });
  map.image({
    image: field("image"), x: field("x"), y: field("y"), dw: field("dw"), dh: field("dh"),
    source: image, color_mapper: mapper,
  });
  const frame = map.rect([], [], [], [], { fill_alpha: 0, line_width: 2, line_color: colors.marker });
  map.add_layout(new Bokeh.ColorBar({
    color_mapper: mapper, width: 12,
    ticker: new Bokeh.FixedTicker({ ticks: [-3, -2, -1, 0, 1, 2, 3] }),
    major_label_overrides: new Map(TIMES_CHANCE.map((word, i) => [i - 3, word])),
  }), "right");
  page.show(map, host);
  const say = statusLine(host);

  let [l, order, found] = [0, [], new Map()];
  const expertAt = (place) => order[Math.round(place)];
  page.onTap(map, (x, y) => {
    const isInside = expertAt(x) !== undefined && expertAt(y) !== undefined;
    page.select(isInside ? l : null, expertAt(y));
  });
  page.onHover(map, host, (x, y) => {
    const [expert, other] = [expertAt(y), expertAt(x)];
    if (expert === undefined || other === undefined || expert === other) return null;
    return pairText(l, expert, other, found.get(pairKey(expert, other)));
  });

  return (changes) => {
    if (!concerns(changes, "shownLayer", "pairsOrder", "layer", "expert", "theme")) return;
    l = oneLayer();
    order = pairsOrder(l);
    const n = order.length;
    found = new Map(pairsOf(l).map((pair) => [pairKey(pair.expert, pair.other), pair]));
    const values = Float64Array.from({ length: n * n }, (_, i) => {
      const pair = found.get(pairKey(order[Math.floor(i / n)], order[i % n]));
      if (!pair || pair.expected < FEWEST_TOGETHER) return NaN;
      return Math.max(-CLIP, Math.min(CLIP, Math.log2(pair.ratio)));
    });
    mapper.nan_color = colors.plot;
    image.data = { image: [page.matrix(values, n, n)], x: [-0.5], y: [-0.5], dw: [n], dh: [n] };
    Object.assign(map.x_range, { start: -0.5, end: n - 0.5 });
    Object.assign(map.y_range, { start: n - 0.5, end: -0.5 });
    nameExperts(map, order);
    const at = page.state.layer === l ? order.indexOf(page.state.expert) : -1;
    const [middle, all] = [(n - 1) / 2, at < 0 ? [] : [0, 1]];
    frame.data_source.data = {
      x: all.map((i) => [at, middle][i]), y: all.map((i) => [middle, at][i]),
      width: all.map((i) => [1, n][i]), height: all.map((i) => [n, 1][i]),
    };
    frame.glyph.line_color = colors.marker;
    say(pairsWords(l));
  };
}

const pairKey = (a, b) => Math.min(a, b) * 65536 + Math.max(a, b);

/** Name some places of both axes by their experts. */
function nameExperts(map, order) {
  const step = Math.ceil(order.length / 16);
  const ticks = order.map((_, place) => place).filter((place) => place % step === 0);
  for (const axis of map.axes) {
    axis.ticker = new Bokeh.FixedTicker({ ticks });
    axis.major_label_overrides = new Map(ticks.map((place) => [place, String(order[place])]));
  }
}

function pairText(l, expert, other, pair) {
  const { num_experts, null_k } = page.data.layers[l];
  const lines = [`layer ${page.data.layers[l].layer}, experts ${expert} and ${other}`];
  if (!pair) return [...lines, "close to what chance gives: not kept"];
  const share = conditionalOf(l, pair.count, expert);
  return [
    ...lines,
    `${format(pair.count)} tokens select both, expected ${format(pair.expected, 3)}`,
    `ratio ${format(pair.ratio, 3)} (by chance 1), z ${format(pair.z, 3)}`,
    `${format(100 * share, 3)} % of those of ${expert} select ${other}, fair ${format((100 * (null_k - 1)) / (num_experts - 1), 3)} %`,
  ];
}

function pairsWords(l) {
  const { layer, num_experts } = page.data.layers[l];
  const pairs = pairsOf(l);
  const all = (num_experts * (num_experts - 1)) / 2;
  const kept = pairs.length < all ? `${format(pairs.length)} of ${format(all)} pairs, those furthest from chance. ` : "";
  const known = pairs.filter(({ z }) => !Number.isNaN(z)).sort((a, b) => a.z - b.z);
  if (!known.length) return `Layer ${layer}: no expert is selected with another one.`;
  const say = ({ expert, other, ratio, z }) => `${expert} and ${other} (${format(ratio, 3)} times chance, z ${format(z, 3)})`;
  const ends = [["Most together", known.at(-1), 1], ["Most apart", known[0], -1]];
  const words = ends.filter(([, { z }, sign]) => sign * z > 0).map(([word, pair]) => `${word}: ${say(pair)}.`);
  return `Layer ${layer}: ${kept}${words.join(" ")}`;
}

function pairsTable() {
  const l = oneLayer();
  const { layer } = page.data.layers[l];
  const rows = pairsOf(l).flatMap(({ expert, other, count, jaccard, expected, ratio, z }) =>
    [[expert, other], [other, expert]].map(([one, two]) =>
      [layer, one, two, count, conditionalOf(l, count, one), jaccard, expected, ratio, z]));
  rows.sort((a, b) => a[1] - b[1] || a[2] - b[2]);
  const names = ["layer", "expert", "other", "count", "conditional", "jaccard", "expected", "ratio", "z"];
  return { columns: columnsOf(names), rows, caption: `${pairsWords(l)} ${page.data.meta.caption}` };
}
