/* Bokeh figures in the page's style. */

/** Every figure made so far, and Bokeh's view of it once it is on the page. */
const figures = new Map();

/** Bokeh's views, each when it is on the page. */
const showings = [];
const allShown = () => Promise.all(showings);

/**
 * Make a figure: Bokeh's own attributes, `height` in pixels; its width is that of the page.
 * Its data are added by Bokeh's methods (`figure.scatter` ...); `page.show` puts it into a view.
 * @param {object} [attributes]
 */
function figure(attributes = {}) {
  const isTouch = matchMedia("(pointer: coarse)").matches;
  const made = new Bokeh.Plotting.figure({
    height: 380,
    sizing_mode: "stretch_width",
    // A finger and the wheel scroll the page; buttons below the figure zoom.
    tools: isTouch ? ["tap"] : ["pan", "tap"],
    toolbar_location: null,
    min_border_right: 8,
    ...attributes,
  });
  recolour(made);
  figures.set(made, null);
  return made;
}

/** Give a figure the colours of the theme in force. */
function recolour(made) {
  made.background_fill_color = colors.plot;
  made.border_fill_color = colors.page;
  made.outline_line_color = colors.line;
  for (const axis of made.axes) {
    axis.axis_label_text_font_style = "normal";
    axis.axis_label_text_color = colors.text;
    axis.major_label_text_color = colors.text;
    axis.axis_line_color = colors.faint;
    axis.major_tick_line_color = colors.faint;
    axis.minor_tick_line_color = null;
  }
  for (const grid of made.grids) grid.grid_line_color = colors.line;
  for (const panel of [...made.left, ...made.right, ...made.above, ...made.below, ...made.center]) {
    if (panel instanceof Bokeh.ColorBar || panel instanceof Bokeh.Legend) recolourPanel(panel);
  }
}

function recolourPanel(panel) {
  panel.background_fill_color = colors.page;
  panel.title_text_color = colors.text;
  if (panel instanceof Bokeh.ColorBar) {
    panel.major_label_text_color = colors.text;
    panel.major_tick_line_color = colors.text;
    return;
  }
  panel.label_text_color = colors.text;
  panel.border_line_color = colors.line;
  panel.background_fill_alpha = 0.85;
}

/** Give every figure the colours of the theme in force. */
function recolourAll() {
  for (const made of figures.keys()) recolour(made);
}

/** Paint every figure at once: Bokeh waits for the next frame of the screen, which paper has not. */
function paintAll() {
  for (const drawn of figures.values()) drawn?.repaint();
}

/**
 * Put a figure into a view, with buttons that zoom and save it.
 * @param {object} made
 * @param {HTMLElement} host
 * @returns {Promise<void>} when it is drawn
 */
function show(made, host) {
  const showing = showNow(made, host);
  showings.push(showing);
  return showing;
}

async function showNow(made, host) {
  recolour(made);
  const box = element("div", { class: "plot" });
  const tools = element("div", { class: "buttons tools" });
  host.append(box, tools);
  const drawn = await Bokeh.Plotting.show(made, box);
  figures.set(made, drawn);
  if (figures.size === 1) performance.mark("moe-probe-first-view");
  // The figure itself answers to no key.
  drawn.canvas_view.events_el.tabIndex = -1;
  const view = host.closest(".view")?.id ?? "figure";
  const add = (label, click) => tools.append(element(
    "button", { type: "button", click, "aria-describedby": `${view}-title` }, label,
  ));
  add("Zoom in", () => zoom(made, 0.5));
  add("Zoom out", () => zoom(made, 2));
  add("Reset view", () => drawn.reset());
  add("Save image", async () => {
    download(`${view}.png`, await drawn.export("png").to_blob(), "image/png");
  });
}

/** Make both ranges so many times as wide, about their middles. */
function zoom(made, factor) {
  for (const [range, scale] of [[made.x_range, made.x_scale], [made.y_range, made.y_scale]]) {
    const isLog = scale instanceof Bokeh.LogScale;
    const [to, from] = isLog ? [Math.log, Math.exp] : [Number, Number];
    const [start, end] = [to(range.start), to(range.end)];
    const middle = (start + end) / 2;
    const half = ((end - start) / 2) * factor;
    range.setv({ start: from(middle - half), end: from(middle + half) });
  }
}

/**
 * Call back with data coordinates where the pointer clicks or taps.
 * @param {object} made
 * @param {(x: number, y: number) => void} callback
 */
function onTap(made, callback) {
  // Of two clicks soon after each other, wherever they are, the second comes as a double one.
  for (const name of ["tap", "doubletap"]) made.on_event(name, ({ x, y }) => callback(x, y));
}

/**
 * Show a text beside the pointer: `text(x, y)` gives its lines, or null for none.
 * @param {object} made
 * @param {HTMLElement} host which contains the figure
 * @param {(x: number, y: number) => string[]|null} text
 */
function onHover(made, host, text) {
  const tip = element("div", { class: "tip", hidden: true });
  host.append(tip);
  const hide = () => void (tip.hidden = true);
  made.on_event("mousemove", ({ x, y, sx, sy }) => {
    const lines = text(x, y);
    tip.hidden = !lines;
    if (!lines) return;
    tip.replaceChildren(...lines.map((line) => element("div", {}, line)));
    const room = host.clientWidth - tip.offsetWidth;
    tip.style.left = `${Math.max(0, Math.min(sx + 14, room))}px`;
    tip.style.top = `${sy + 14}px`;
  });
  made.on_event("mouseleave", hide);
  host.addEventListener("pointerleave", hide);
}

/**
 * Numbers in rows as Bokeh's image glyph wants them.
 * @param {Float64Array} values row by row
 */
function matrix(values, rows, columns) {
  const { ndarray } = Bokeh.require("core/util/ndarray");
  return ndarray(values, { dtype: "float64", shape: [rows, columns] });
}

Object.assign(page, { figure, show, onTap, onHover, matrix });
