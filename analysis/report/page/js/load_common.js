/* What the views of loads, idle experts and devices share: choice of a layer, axes, keys. */

const DASHED = [6, 4];
const DOTTED = [2, 3];

/**
 * Whether an update has to do something: the first one, or one of these names changed.
 * @param {Set<string>|undefined} changes
 * @param {...string} names of the state
 */
const concerns = (changes, ...names) => !changes || names.some((name) => changes.has(name));

/** A column of a source, as Bokeh's glyphs take it. */
const field = (name) => ({ field: name });

/** @returns {true|string} whether any token counts */
const countsAny = () => page.data.meta.T > 0 || "no token counts under this rule";

/** Place of the layer that views of one layer show; null for all of them. */
const shownLayer = () => page.state.shownLayer ?? null;

/**
 * A choice between one layer and all.
 * @param {string} all what the choice of all is called
 * @returns {Control}
 */
function layerControl(all) {
  return select({
    label: "Layer",
    options: [{ value: "", label: all }, ...layerOptions()],
    get: () => shownLayer() ?? "",
    set: (value) => page.set({ shownLayer: value === "" ? null : Number(value) }),
  });
}

/** A column of `experts`, those of one layer: [N]. */
function ofLayer(name, l) {
  const { layers, table, expertRow } = page.data;
  const first = expertRow(l, 0);
  return table("experts").column(name).slice(first, first + layers[l].num_experts);
}

/** Place of a layer by the model's own index. */
const placeOfLayer = (index) => page.data.layers.findIndex(({ layer }) => layer === index);

/**
 * Name places of layers on an axis by the model's own index.
 * @param {object} axis of a Bokeh figure
 * @param {number} most labels
 */
function nameLayers(axis, most = 15) {
  const { layers } = page.data;
  const step = Math.ceil(layers.length / most);
  const ticks = layers.map((_, l) => l).filter((l) => l % step === 0);
  axis.ticker = new Bokeh.FixedTicker({ ticks });
  axis.major_label_overrides = new Map(layers.map(({ layer }, l) => [l, String(layer)]));
}

/** A figure with one place per layer from left to right. */
function layersFigure(y_axis_label, attributes = {}) {
  const L = page.data.layers.length;
  const made = page.figure({
    height: 300, x_range: [-0.6, L - 0.4], x_axis_label: "layer", y_axis_label, ...attributes,
  });
  nameLayers(made.xaxes[0]);
  made.xgrids[0].visible = false;
  return made;
}

/** Size of a mark of a layer: that of a bar, where there is room for bars of that size. */
function markSize(host, most) {
  return Math.max(4, Math.min(most, (0.7 * host.clientWidth) / page.data.layers.length));
}

/** Place of the layer at x of such a figure, or null. */
function layerAt(x) {
  const l = Math.round(x);
  return l >= 0 && l < page.data.layers.length ? l : null;
}

const SVG = "http://www.w3.org/2000/svg";

/* Shapes of a key, in a field of 24 by 12; `currentColor` is the entry's. */
const SWATCHES = {
  line: { path: "M0 6H24", stroke: 2 },
  dashed: { path: "M0 6H24", stroke: 2, dash: "6 4" },
  dotted: { path: "M0 6H24", stroke: 2.5, dash: "2 3" },
  tick: { path: "M4 6H20", stroke: 2.5 },
  upright: { path: "M12 1V11", stroke: 2.5 },
  bar: { path: "M5 0H19V12H5Z" },
  hatched: { path: "M5 0H19V12H5Z", over: "M5 12L17 0M9 12L19 2M5 6L11 0M15 12L19 8" },
  band: { path: "M0 1H24V11H0Z", opacity: 0.4 },
  circle: { path: "M12 2A4 4 0 1 1 11.9 2Z" },
  square: { path: "M8 2H16V10H8Z" },
  triangle: { path: "M12 2L17 10H7Z" },
  diamond: { path: "M12 0L17 6L12 12L7 6Z" },
};

/** @returns {SVGElement} */
function swatch(mark, color) {
  const { path, stroke, dash, over, opacity } = SWATCHES[mark];
  const made = document.createElementNS(SVG, "svg");
  const add = (attributes) => {
    const line = document.createElementNS(SVG, "path");
    for (const [name, value] of Object.entries(attributes)) line.setAttribute(name, value);
    made.append(line);
  };
  for (const [name, value] of [["width", 24], ["height", 12], ["aria-hidden", "true"]]) {
    made.setAttribute(name, value);
  }
  made.style.color = color;
  if (stroke) add({ d: path, stroke: "currentColor", "stroke-width": stroke, "stroke-dasharray": dash ?? "none" });
  else add({ d: path, fill: "currentColor", "fill-opacity": opacity ?? 1 });
  if (over) add({ d: over, stroke: "#1b1f24", "stroke-width": 1, fill: "none" });
  return made;
}

/**
 * The key of a figure, outside it so that it covers no data.
 * @param {HTMLElement} host
 * @param {{mark: string, color: string, label: string}[]} entries marks are those of SWATCHES
 */
function addKey(host, entries) {
  const items = entries.map(({ mark, color, label }) => element(
    "li", { style: "display: flex; gap: .4rem; align-items: center" }, swatch(mark, color), label));
  const style = "display: flex; flex-wrap: wrap; gap: 0 1.2rem; list-style: none; padding: 0; margin: .2rem 0; font-size: .875rem";
  host.append(element("ul", { style, "aria-label": "Key" }, ...items));
}

/** Columns of a table from their names. @param {string[]} names */
function columnsOf(names, texts = []) {
  return names.map((name) => ({ name, label: name.replaceAll("_", " "), text: texts.includes(name) }));
}

/**
 * The mark nearest to a place of the pointer.
 * @param {object} made figure
 * @param {ArrayLike<number>} xs @param {ArrayLike<number>} ys where marks are
 * @param {number} x @param {number} y
 * @param {number} most pixels
 * @returns {number} its index; -1 if none is near
 */
function nearest(made, xs, ys, x, y, most = 14) {
  const perX = made.inner_width / Math.abs(made.x_range.end - made.x_range.start);
  const perY = made.inner_height / Math.abs(made.y_range.end - made.y_range.start);
  let [found, least] = [-1, most ** 2];
  for (let i = 0; i < xs.length; i++) {
    const distance = ((xs[i] - x) * perX) ** 2 + ((ys[i] - y) * perY) ** 2;
    if (distance <= least) [found, least] = [i, distance];
  }
  return found;
}
