/* Imbalance over layers: every index beside chance and its noise over documents. */

const INDEX_CHOICES = {
  max_vio: { label: "MaxVio", reads: "largest r - 1; 0 is even" },
  cv: { label: "CV", reads: "sd of r over its mean; 0 is even" },
  gini: { label: "Gini", reads: "0 is even" },
  normalized_entropy: { label: "normalised entropy", reads: "H / ln N; 1 is even" },
  effective_experts: { label: "effective experts", reads: "exp(H); N is even" },
  kl_uniform: { label: "KL from even", reads: "ln N - H, nats; 0 is even" },
  total_variation: { label: "total variation", reads: "share of selections to move; 0 is even" },
};

view({
  id: "imbalance",
  section: "load",
  title: "Imbalance over layers",
  note:
    "One index for every layer; bars are 95 % of its noise over resampled documents. The dashed " +
    "line is what fair routing of T independent tokens gives, the dotted one of T_eff. " +
    "Read the distance from the dotted line.",
  available: countsAny,
  controls: () => [
    select({
      label: "Index",
      options: Object.entries(INDEX_CHOICES).map(
        ([value, { label, reads }]) => ({ value, label: `${label}: ${reads}` })),
      get: shownIndex,
      set: (index) => page.set({ index }),
    }),
  ],
  draw: drawImbalance,
  table: imbalanceTable,
});

function shownIndex() {
  return page.state.index ?? "max_vio";
}

/**
 * An index of every layer: the value, of chance with T and with T_eff tokens, and its noise.
 * @param {string} name one of INDEX_CHOICES
 * @returns {{value: number[], chance: number[], effective: number[], noise: number[]}}
 */
function indexOfLayers(name) {
  const { layers, table } = page.data;
  const isShare = name === "normalized_entropy";
  const stored = isShare ? "entropy" : name;
  const over = (l) => (isShare ? Math.log(layers[l].num_experts) : 1);
  const column = (from, key) => Array.from(table(from).column(key), (value, l) => value / over(l));
  return {
    value: column("layers", stored),
    chance: column("layers", `${stored}_null`),
    effective: column("layers_chance", stored),
    noise: column("layers", `${stored}_noise`),
  };
}

function drawImbalance(host) {
  const made = layersFigure("", { height: 320 });
  const source = new Bokeh.ColumnDataSource({ data: {
    x: [], value: [], chance: [], effective: [], low: [], high: [],
  } });
  const line = (name, color, extra) => made.line(field("x"), field(name), { source, line_color: color, line_width: 2, ...extra });
  line("chance", CATEGORICAL[6], { line_dash: DASHED });
  line("effective", CATEGORICAL[3], { line_dash: DOTTED });
  line("value", CATEGORICAL[0], { line_alpha: 0.5 });
  made.segment(field("x"), field("low"), field("x"), field("high"), { source, line_color: CATEGORICAL[0], line_width: 2 });
  made.scatter(field("x"), field("value"), { source, size: markSize(host, 8), color: CATEGORICAL[0] });
  const mark = made.scatter([], [], { size: 16, fill_alpha: 0, line_width: 2.5, line_color: colors.marker });
  addKey(host, [
    { mark: "circle", color: CATEGORICAL[0], label: "layer, with 95 % noise over documents" },
    { mark: "dashed", color: CATEGORICAL[6], label: "fair routing, T tokens" },
    { mark: "dotted", color: CATEGORICAL[3], label: "fair routing, T_eff tokens" },
  ]);
  page.show(made, host);
  page.onTap(made, (x) => layerAt(x) !== null && page.set({ shownLayer: layerAt(x) }));
  page.onHover(made, host, (x) => imbalanceText(layerAt(x)));
  return (changes) => {
    if (!concerns(changes, "index", "shownLayer", "theme")) return;
    const { value, chance, effective, noise } = indexOfLayers(shownIndex());
    const { layers } = page.data;
    source.data = {
      x: layers.map((_, l) => l), value, chance, effective,
      low: value.map((v, l) => v - Z * noise[l]), high: value.map((v, l) => v + Z * noise[l]),
    };
    made.yaxes[0].axis_label = INDEX_CHOICES[shownIndex()].label;
    const l = shownLayer();
    mark.data_source.data = l === null ? { x: [], y: [] } : { x: [l], y: [value[l]] };
    mark.glyph.line_color = colors.marker;
  };
}

function imbalanceText(l) {
  if (l === null) return null;
  const { value, chance, effective, noise } = indexOfLayers(shownIndex());
  return [
    `layer ${page.data.layers[l].layer}: ${INDEX_CHOICES[shownIndex()].label} ${format(value[l])}`,
    `noise over documents ${format(noise[l], 3)} (sd)`,
    `fair routing: ${format(chance[l], 3)}, T_eff tokens ${format(effective[l], 3)}`,
  ];
}

function imbalanceTable() {
  const { layers, meta } = page.data;
  const name = shownIndex();
  const { value, chance, effective, noise } = indexOfLayers(name);
  const rows = layers.map(({ layer }, l) => [layer, value[l], chance[l], effective[l], noise[l]]);
  const columns = columnsOf(["layer", name, `${name}_null`, `${name}_null_effective`, `${name}_noise`]);
  return { columns, rows, caption: `${INDEX_CHOICES[name].label}, ${INDEX_CHOICES[name].reads}; ${meta.caption}` };
}
