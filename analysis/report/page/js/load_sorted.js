/* Sorted loads of a layer beside what chance gives each rank. */

/** log2 of the lowest load that the logarithmic scale tells from none. */
const LOAD_FLOOR = -8;
const LOAD_TICKS = [-8, -6, -4, -2, -1, 0, 1, 2, 3, 4, 5, 6];

view({
  id: "sorted-load",
  section: "load",
  title: "Sorted load of a layer",
  note:
    "Experts from the least to the most used. The band is where 95 % of layers would have the " +
    "expert of that rank if routing were fair and T_eff independent tokens were counted: a line " +
    "inside it cannot be told from fair. Steep ends outside it: few experts carry too much or too little.",
  available: countsAny,
  controls: () => [
    layerControl("all layers"),
    select({
      label: "Scale",
      options: [{ value: "linear", label: "linear" }, { value: "log", label: "logarithmic" }],
      get: () => page.state.loadScale ?? "linear",
      set: (loadScale) => page.set({ loadScale }),
    }),
  ],
  draw: drawSortedLoad,
  table: sortedLoadTable,
});

/** A layer's experts from the least used, their loads, and what chance gives each rank. */
const sortedLoad = memo((l) => {
  const { layers, table, array } = page.data;
  const { num_experts, null_k } = layers[l];
  const loads = ofLayer("relative_load", l);
  const experts = Array.from(loads, (_, e) => e).sort((a, b) => loads[a] - loads[b] || a - b);
  const tokens = table("layers_chance").column("tokens")[l];
  const chance = chanceOfOrder(array(`order.${num_experts}`).values, null_k, tokens);
  return { experts, loads: experts.map((e) => loads[e]), chance };
});

/** The layer whose T_eff is in the middle: the band of all layers is its own. */
const middleLayer = once(() => {
  const tokens = page.data.table("layers_chance").column("tokens");
  const places = Array.from(tokens, (_, l) => l).sort((a, b) => tokens[a] - tokens[b]);
  return places[Math.floor(places.length / 2)];
});

const isLogLoad = () => page.state.loadScale === "log";
const loadHeight = (r) => (isLogLoad() ? Math.max(Math.log2(r), LOAD_FLOOR) : r);
const ranks = (length) => Array.from({ length }, (_, i) => i + 1);

function drawSortedLoad(host) {
  const { layers, N } = page.data;
  const made = page.figure({
    x_range: [0, N + 1], x_axis_label: "rank, 1 = least used", y_axis_label: "relative load r",
  });
  const linear = made.yaxes[0].ticker;
  const source = (...names) => new Bokeh.ColumnDataSource({ data: Object.fromEntries(names.map((n) => [n, []])) });
  const [band, all, one] = [source("x", "low", "high", "middle"), source("xs", "ys"), source("x", "y")];
  made.varea(field("x"), field("low"), field("high"), { source: band, fill_color: CATEGORICAL[6], fill_alpha: 0.3 });
  made.line(field("x"), field("middle"), { source: band, line_color: CATEGORICAL[6], line_width: 2, line_dash: DASHED });
  const faint = made.multi_line(field("xs"), field("ys"), { source: all, line_color: CATEGORICAL[0], line_alpha: 0.25 });
  made.line(field("x"), field("y"), { source: one, line_color: CATEGORICAL[0], line_width: 2 });
  made.scatter(field("x"), field("y"), { source: one, size: 5, color: CATEGORICAL[0] });
  const mark = made.scatter([], [], { size: 13, fill_alpha: 0, line_width: 2.5, line_color: colors.marker });
  addKey(host, [
    { mark: "line", color: CATEGORICAL[0], label: "a layer" },
    { mark: "dashed", color: CATEGORICAL[6], label: "expected of fair routing" },
    { mark: "band", color: CATEGORICAL[6], label: "95 % of fair routing, T_eff tokens" },
  ]);
  page.show(made, host);

  const found = (x, y) => sortedLoadAt(x, y);
  page.onTap(made, (x, y) => page.select(...(found(x, y) ?? [null])));
  page.onHover(made, host, (x, y) => sortedLoadText(found(x, y)));

  return (changes) => {
    const l = shownLayer();
    if (concerns(changes, "shownLayer", "loadScale", "layer", "expert", "theme")) {
      mark.data_source.data = selectedRank(l);
      mark.glyph.line_color = colors.marker;
    }
    if (!concerns(changes, "shownLayer", "loadScale")) return;
    const { experts, loads, chance } = sortedLoad(l ?? middleLayer());
    band.data = {
      x: ranks(experts.length), low: chance.low.map(loadHeight), high: chance.high.map(loadHeight),
      middle: chance.middle.map(loadHeight),
    };
    const sorted = layers.map((_, place) => sortedLoad(place).loads);
    all.data = { xs: sorted.map(({ length }) => ranks(length)), ys: sorted.map((ys) => ys.map(loadHeight)) };
    faint.glyph.line_alpha = l === null ? 0.4 : 0.2;
    one.data = l === null ? { x: [], y: [] } : { x: ranks(loads.length), y: loads.map(loadHeight) };
    const axis = made.yaxes[0];
    axis.ticker = isLogLoad() ? new Bokeh.FixedTicker({ ticks: LOAD_TICKS }) : linear;
    axis.major_label_overrides = isLogLoad() ? logLoadLabels() : new Map();
  };
}

/** Names of powers of 2 as loads. */
function logLoadLabels() {
  const word = (power) => (power < 0 ? `1/${2 ** -power}` : String(2 ** power));
  return new Map(LOAD_TICKS.map((power) => [power, power === LOAD_FLOOR ? `≤ ${word(power)}` : word(power)]));
}

function selectedRank(l) {
  const { layer, expert } = page.state;
  if (layer === null || (l !== null && l !== layer)) return { x: [], y: [] };
  const { experts, loads } = sortedLoad(layer);
  const at = experts.indexOf(expert);
  return { x: [at + 1], y: [loadHeight(loads[at])] };
}

/** Layer and expert of the line nearest to a place, at its rank; null outside. */
function sortedLoadAt(x, y) {
  const { layers } = page.data;
  const at = Math.round(x) - 1;
  const l = shownLayer();
  const places = l === null ? layers.map((_, place) => place) : [l];
  const far = (place) => Math.abs(loadHeight(sortedLoad(place).loads[at]) - y);
  const near = places.filter((place) => far(place) >= 0).sort((a, b) => far(a) - far(b))[0];
  return near === undefined ? null : [near, sortedLoad(near).experts[at]];
}

function sortedLoadText(found) {
  if (!found) return null;
  const [l, e] = found;
  const { experts, loads, chance } = sortedLoad(l);
  const at = experts.indexOf(e);
  const [low, high] = ["ci_low", "ci_high"].map((name) => ofLayer(name, l)[e]);
  return [
    `layer ${page.data.layers[l].layer}, expert ${e}, rank ${at + 1}`,
    `r ${format(loads[at], 3)}, 95% interval ${format(low, 3)} to ${format(high, 3)}`,
    `fair routing, this rank: ${format(chance.low[at], 3)} to ${format(chance.high[at], 3)}`,
  ];
}

function sortedLoadTable() {
  const { layers, meta } = page.data;
  const l = shownLayer();
  const rows = [];
  for (const place of l === null ? layers.map((_, p) => p) : [l]) {
    const { experts, loads, chance } = sortedLoad(place);
    const [low, high] = ["ci_low", "ci_high"].map((name) => ofLayer(name, place));
    experts.forEach((e, at) => rows.push([
      layers[place].layer, at + 1, e, loads[at], low[e], high[e],
      chance.middle[at], chance.low[at], chance.high[at],
    ]));
  }
  const columns = columnsOf([
    "layer", "rank", "expert", "relative_load", "ci_low", "ci_high",
    "chance", "chance_low", "chance_high",
  ]);
  const which = l === null ? "all layers" : `layer ${layers[l].layer}`;
  return { columns, rows, caption: `Sorted loads, ${which}, beside those of fair routing at T_eff; ${meta.caption}` };
}
