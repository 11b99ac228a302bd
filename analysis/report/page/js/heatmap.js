/* The relative load that the heat map shows: which text, which order of experts, what a cell is. */

/* At 16 expected selections chance moves 95 % of fair cells between r = 0.5 and 1.5: about one
   step of the colour bar. Below, a colour says less than it shows. */
const FEWEST_EXPECTED = 16;

/* What the intervals of a segment or rule take for their own. */
const OF_ALL_TEXT = "design effect of all text";
const NONE_TO_TAKE = "unknown: this rule counts more tokens than the report's";

/** The choice in force: all, area:NAME, subject:S, segment:G or rule:NAME. */
function chosenText() {
  const { slice: chosen = "all", subject } = page.state;
  if (chosen !== "subject") return chosen;
  return subject === null ? "all" : `subject:${subject}`;
}

/** @param {string} choice as `chosenText` gives it */
function chooseText(choice) {
  if (choice.startsWith("subject:")) page.set({ slice: "subject", subject: Number(choice.slice(8)) });
  else page.set({ slice: choice });
}

/** What a choice of text is: counts [L*N], tokens [L], and which part its design effects are of. */
function textOf(choice) {
  const { counts, meta, areas } = page.data;
  const at = choice.indexOf(":");
  const kind = at < 0 ? choice : choice.slice(0, at);
  const name = choice.slice(at + 1);
  const key = kind === "subject" || kind === "segment" ? Number(name) : name;
  const part = kind === "subject" ? 1 + key
    : kind === "area" ? 1 + meta.subjects.length + areas.indexOf(key) : 0;
  return { kind, key, counts: counts[kind](key), tokens: counts.tokens[kind](key), part };
}

/**
 * Relative load r = N c / A: Float64Array [L*N]; NaN where there is no expert or nothing counted.
 * @param {ArrayLike<number>} counts
 */
function relativeLoad(counts) {
  const { layers, N } = page.data;
  const load = new Float64Array(layers.length * N).fill(NaN);
  layers.forEach(({ num_experts }, l) => {
    let sum = 0;
    for (let e = 0; e < num_experts; e++) sum += counts[l * N + e];
    if (!sum) return;
    for (let e = 0; e < num_experts; e++) load[l * N + e] = (num_experts * counts[l * N + e]) / sum;
  });
  return load;
}

/**
 * Experts of every layer in the order shown: Int32Array [L*N], -1 where there is none.
 * @param {Float64Array} load
 * @param {boolean} isSorted from the most to the least loaded, else by id
 */
function expertOrder(load, isSorted) {
  const { layers, N } = page.data;
  const order = new Int32Array(layers.length * N).fill(-1);
  layers.forEach(({ num_experts }, l) => {
    const ids = Array.from({ length: num_experts }, (_, e) => e);
    if (isSorted) ids.sort((a, b) => load[l * N + b] - load[l * N + a] || a - b);
    order.set(ids, l * N);
  });
  return order;
}

/** What the state asks for, with all that the map and its table say. */
function shownLoad() {
  const chosen = textOf(chosenText());
  const load = relativeLoad(chosen.counts);
  return { ...chosen, load, order: expertOrder(load, page.state.expertOrder === "load") };
}

/** Design effects for intervals of a text: that of the layer's median expert, and of one expert. */
function designEffects({ part }, l, e) {
  const { array, layers, N } = page.data;
  const { values, shape } = array("intervals.median");
  const median = values[l * shape[1] + part];
  const inside = part ? layers.length * N : 0;
  return { median, own: median * 2 ** (array("intervals.expert").values[inside + l * N + e] / 8) };
}

/** The interval of an expert's load in all text. */
function tabledInterval(l, e) {
  const { table, expertRow } = page.data;
  return ["ci_low", "ci_high"].map((name) => table("experts").column(name)[expertRow(l, e)]);
}

/** Selections of a layer. */
const selectionsOf = ({ counts }, l) => sum(counts.subarray(l * page.data.N, (l + 1) * page.data.N));

/** Whether a text has design effects of its own. */
const hasOwnEffects = ({ kind }) => kind !== "segment" && kind !== "rule";

/**
 * Whether a rule counts more tokens than the report's. They are of other documents, or the same ones
 * again: intervals and bands with the design effect of all text would be far too narrow.
 */
const isBeyond = ({ tokens }, l) => tokens[l] > page.data.counts.tokens.all()[l];

/** What is said of intervals that are not of the text's own documents; empty where there are none. */
function effectWords(shown, l) {
  if (hasOwnEffects(shown) || Number.isNaN(designEffects(shown, l, 0).median)) return "";
  return isBeyond(shown, l) ? NONE_TO_TAKE : OF_ALL_TEXT;
}

/** Numbers of one cell: count, tokens, r with its interval, and the band of fair routing. */
function cellFacts(shown, l, e) {
  const { layers, N } = page.data;
  const { num_experts, mean_k, null_k } = layers[l];
  const { median, own } = designEffects(shown, l, e);
  const [count, load, tokens] = [shown.counts[l * N + e], shown.load[l * N + e], shown.tokens[l]];
  // Where slots stay empty a layer has fewer than k selections by token.
  const scale = count ? (load * tokens) / count : (num_experts * tokens) / (selectionsOf(shown, l) || NaN);
  const isKnown = !isBeyond(shown, l);
  const [low, high] = shown.kind === "all" ? tabledInterval(l, e)
    : isKnown ? shareInterval(count, tokens, own, median).map((share) => share * scale) : [NaN, NaN];
  const effective = Math.min(tokens, page.data.counts.tokens.all()[l]) / Math.max(median || 1, 1);
  const band = isKnown ? fairBand((effective * mean_k) / null_k, num_experts, null_k) : NaN;
  const isFew = (effective * mean_k) / num_experts < FEWEST_EXPECTED;
  return { count, tokens, load, low, high, band, isFew };
}

/** The lines that pointer and status show. */
function cellText(shown, l, e) {
  const facts = cellFacts(shown, l, e);
  const words = effectWords(shown, l);
  const effect = words && ` (${words})`;
  const lines = [
    `layer ${page.data.layers[l].layer}, expert ${e}`,
    `${format(facts.count)} selections by ${format(facts.tokens)} tokens`,
    `r ${format(facts.load, 3)}, 95% interval ${format(facts.low, 3)} to ${format(facts.high, 3)}${effect}`,
    `fair routing: ${format(Math.max(1 - facts.band, 0), 3)} to ${format(1 + facts.band, 3)}`,
  ];
  if (facts.isFew) lines.push("few tokens: read the interval, not the colour");
  return lines;
}

/** Name of the text shown. */
function textName({ kind, key }) {
  const { subjects, segments } = page.data.meta;
  if (kind === "all") return "all text";
  const name = { subject: subjects[key]?.name, segment: segments[key] }[kind] ?? key;
  return `${kind} ${short(name)}`;
}

/** How a text was counted: by another rule than the report's nothing is known of T_eff. */
function textCaption({ kind, key, tokens }) {
  const { caption, rule } = page.data.meta;
  if (kind !== "rule") return caption;
  return `counting rule ${key} instead of the report's ${rule}, T = ${format(Math.max(...tokens))} tokens; ` +
    "by chance: tokens that choose k of N experts uniformly";
}

/** @returns {Table} */
function heatmapTable() {
  const { layers, N } = page.data;
  const shown = shownLoad();
  const names = ["layer", "expert", "count", "tokens", "relative_load", "ci_low", "ci_high"];
  const rows = [];
  layers.forEach(({ layer, num_experts }, l) => {
    for (const e of shown.order.subarray(l * N, l * N + num_experts)) {
      const { count, tokens, load, low, high } = cellFacts(shown, l, e);
      rows.push([layer, e, count, tokens, load, low, high]);
    }
  });
  const columns = names.map((name) => ({ name, label: name.replaceAll("_", " ") }));
  const words = effectWords(shown, 0);
  const effect = words && `; intervals: ${words}`;
  const caption = `Relative load, ${textName(shown)}${effect}; ${textCaption(shown)}`;
  return { columns, rows, caption, origin: shown.kind === "rule" ? { counting_rule: shown.key } : {} };
}
