/* D19: is a layer unfair overall, or specialised? And what documents differ by. */

view({
  id: "decomposition",
  section: "load",
  title: "Unfair or specialised",
  note:
    "How uneven the loads inside subjects are, in two parts: uneven with all subjects pooled " +
    "(unfair), and evened out between subjects (specialised, hatched). A long plain part is a " +
    "balancing problem, a long hatched one is not. Ticks: what sampling noise alone gives each " +
    "part; what lies below a tick says nothing.",
  available: () => {
    const { table } = page.data;
    if (!table("specialization").length) return "the trace tells nothing about subjects";
    return countsAny();
  },
  draw: drawDecomposition,
  table: decompositionTable,
});

const named = (name) => Array.from(page.data.table("specialization").column(name));

/**
 * Both parts of every layer in nats, and what noise gives each.
 * @returns {{unfair: number[], specialised: number[], unfairNoise: number[], specialisedNoise: number[]}}
 */
const decomposition = once(() => ({
  unfair: named("pooled_kl"),
  specialised: named("mutual_information_bits").map((bits) => bits * Math.LN2),
  unfairNoise: named("pooled_kl_null"),
  specialisedNoise: named("plug_in_bias_bits").map((bits) => bits * Math.LN2),
}));

function drawDecomposition(host) {
  const made = layersFigure("KL from even, nats");
  const { unfair, specialised, unfairNoise, specialisedNoise } = decomposition();
  const x = unfair.map((_, l) => l);
  const top = unfair.map((value, l) => value + specialised[l]);
  const zero = x.map(() => 0);
  const bar = { width: 0.8, line_color: colors.page };
  made.vbar({ x, top: unfair, bottom: zero, ...bar, fill_color: CATEGORICAL[0] });
  const upper = made.vbar({
    x, top, bottom: unfair, ...bar, fill_color: CATEGORICAL[1],
    hatch_pattern: "/", hatch_scale: 7, hatch_color: "#1b1f24", hatch_alpha: 0.6,
  });
  const tick = (heights) => made.segment({
    x0: x.map((l) => l - 0.4), x1: x.map((l) => l + 0.4), y0: heights, y1: heights,
    line_width: 2.5, line_color: colors.marker,
  });
  const ticks = [tick(unfairNoise), tick(unfair.map((value, l) => value + specialisedNoise[l]))];
  const mark = made.vbar({ x: [], top: [], bottom: [], width: 0.95, fill_alpha: 0, line_width: 2.5 });
  addKey(host, [
    { mark: "bar", color: CATEGORICAL[0], label: "unfair overall (pooled KL)" },
    { mark: "hatched", color: CATEGORICAL[1], label: "specialised: I(expert; subject)" },
    { mark: "tick", color: "var(--text)", label: "noise alone, above the foot of each part" },
  ]);
  page.show(made, host);
  page.onTap(made, (x) => layerAt(x) !== null && page.set({ shownLayer: layerAt(x) }));
  page.onHover(made, host, (x) => decompositionText(layerAt(x)));
  return (changes) => {
    if (!concerns(changes, "shownLayer", "theme")) return;
    for (const one of ticks) one.glyph.line_color = colors.marker;
    upper.glyph.line_color = colors.page;
    const l = shownLayer();
    mark.data_source.data = l === null ? { x: [], top: [], bottom: [] } : { x: [l], top: [top[l]], bottom: [0] };
    mark.glyph.line_color = colors.marker;
  };
}

function decompositionText(l) {
  if (l === null) return null;
  const { unfair, specialised, unfairNoise, specialisedNoise } = decomposition();
  const share = specialised[l] / (unfair[l] + specialised[l]);
  return [
    `layer ${page.data.layers[l].layer}: ${format(unfair[l] + specialised[l], 3)} nats inside subjects`,
    `unfair overall ${format(unfair[l], 3)} (noise alone ${format(unfairNoise[l], 2)})`,
    `specialised ${format(specialised[l], 3)} (noise alone ${format(specialisedNoise[l], 2)}), ${format(100 * share, 3)} %`,
  ];
}

function decompositionTable() {
  const { layers, meta } = page.data;
  const parts = decomposition();
  const [whole, documents, permuted, p] = ["mean_subject_kl", "documents_bits", "null", "p_value"].map(named);
  const rows = layers.map(({ layer }, l) => [
    layer, whole[l], parts.unfair[l], parts.unfairNoise[l], parts.specialised[l], parts.specialisedNoise[l],
    parts.specialised[l] / whole[l], documents[l], permuted[l], p[l],
  ]);
  const columns = columnsOf([
    "layer", "mean_subject_kl", "pooled_kl", "pooled_kl_null", "information_nats", "information_nats_null",
    "specialised_share", "documents_bits", "null", "p_value",
  ]);
  return { columns, rows, caption:
    "Imbalance inside subjects = pooled + I(expert; subject), nats; documents_bits and null: the " +
    `same information of documents, and with their subjects permuted; ${meta.caption}` };
}

const CAUSES = ["subject", "area", "length"];
const CAUSE_MARKS = { subject: "circle", area: "square", length: "triangle" };

view({
  id: "variance",
  section: "load",
  title: "What documents differ by",
  note:
    "Share of the differences between documents in how often they use an expert that their " +
    "subject, area or length explains, each alone: median over the layer's experts. By chance 0; " +
    "what is left is the document itself.",
  available: () => {
    const { table } = page.data;
    if (!table("variance").length) return "the trace has no rows of tokens";
    return CAUSES.some((cause) => table("variance").column(cause).some(Number.isFinite)) ||
      "too few documents, or all of one subject and length";
  },
  draw: drawVariance,
  table: varianceTable,
});

/** 5 %, 50 % and 95 % over a layer's experts of the share that a cause explains: [L][3]. */
const explained = memo((cause) => {
  const table = page.data.table("variance");
  const layer = table.column("layer");
  const byLayer = new Map(page.data.layers.map((facts) => [facts.layer, []]));
  table.column(cause).forEach((value, i) => byLayer.get(layer[i]).push(value));
  return [...byLayer.values()].map((values) => [0.05, 0.5, 0.95].map((part) => quantile(values, part)));
});

function drawVariance(host) {
  const made = layersFigure("share of variance", { height: 260 });
  const x = page.data.layers.map((_, l) => l);
  CAUSES.forEach((cause, i) => {
    const y = explained(cause).map(([, middle]) => middle);
    made.line(x, y, { line_color: CATEGORICAL[i], line_width: 1.5, line_alpha: 0.6 });
    made.scatter(x, y, { marker: CAUSE_MARKS[cause], size: markSize(host, 7), color: CATEGORICAL[i] });
  });
  made.line([-0.6, x.length - 0.4], [0, 0], { line_color: CATEGORICAL[6], line_width: 2, line_dash: DASHED });
  addKey(host, [
    ...CAUSES.map((label, i) => ({ mark: CAUSE_MARKS[label], color: CATEGORICAL[i], label })),
    { mark: "dashed", color: CATEGORICAL[6], label: "by chance" },
  ]);
  page.show(made, host);
  page.onHover(made, host, (at) => {
    const l = layerAt(at);
    if (l === null) return null;
    const says = (cause) => {
      const [low, middle, high] = explained(cause)[l].map((value) => format(value, 2));
      return `${cause} ${middle} (5 to 95 % of experts: ${low} to ${high})`;
    };
    return [`layer ${page.data.layers[l].layer}`, ...CAUSES.map(says)];
  });
  return () => {};
}

function varianceTable() {
  const { layers, meta } = page.data;
  const rows = layers.map(({ layer }, l) => [layer, ...CAUSES.flatMap((cause) => explained(cause)[l])]);
  const columns = columnsOf(["layer", ...CAUSES.flatMap((cause) => [`${cause}_low`, cause, `${cause}_high`])]);
  return { columns, rows, caption: `Share of variance between documents, quantiles over experts; ${meta.caption}` };
}
