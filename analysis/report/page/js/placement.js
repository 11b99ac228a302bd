/* Experts placed on devices for one text, and how even the devices then are on another. */

const PLACED_FOR = ["contiguous", "other subjects"];

view({
  id: "placement",
  section: "devices",
  title: "Placements made for other subjects",
  note:
    "Mean over max of the devices' loads, mean over layers, where experts are placed for the loads of " +
    "the row's text (heaviest expert first, to the lightest device with room) and used by the " +
    "column's subject. The diagonal knows what it is measured on. A row or column far below it: " +
    "a placement would have to follow the traffic. Click to choose the column's subject.",
  available: placementAvailable,
  controls: () => [devicesControl()],
  draw: drawPlacement,
  table: placementTable,
});

function placementAvailable() {
  if (page.data.meta.subjects.length < 2) return "there is only one subject";
  return hasDevices();
}

/**
 * Balancedness of the shown number of devices.
 * @returns {{rows: string[], values: Float64Array, all: object[]}} `values` [R, S]: the rows of
 *   PLACED_FOR and one for every subject; `all` has the rows of the table for all text
 */
const placementOf = memo((devices) => {
  const { table, array, meta } = page.data;
  const S = meta.subjects.length;
  const found = table("placement");
  const [number, fit, subject, value] =
    ["devices", "fit", "subject", "balancedness"].map((name) => found.column(name));
  const place = new Map(meta.subjects.map(({ name }, s) => [name, s]));
  const values = new Float64Array((PLACED_FOR.length + S) * S);
  const all = [];
  for (let i = 0; i < found.length; i++) {
    if (number[i] !== devices) continue;
    if (subject[i]) values[PLACED_FOR.indexOf(fit[i]) * S + place.get(subject[i])] = value[i];
    else all.push({ fit: fit[i], value: value[i] });
  }
  const from = deviceNumbers().indexOf(devices) * S * S;
  values.set(array("placement.pairs").values.subarray(from, from + S * S), PLACED_FOR.length * S);
  return { rows: [...PLACED_FOR, ...meta.subjects.map(({ name }) => name)], values, all };
});

/** Means over subjects: of the rows of PLACED_FOR, of other subjects' placements, of their own. */
function placementMeans({ values }) {
  const S = page.data.meta.subjects.length;
  const mean = (of) => sum(of.filter(Number.isFinite)) / of.filter(Number.isFinite).length;
  const from = PLACED_FOR.length * S;
  const pairs = Array.from(values.subarray(from));
  return {
    contiguous: mean(Array.from(values.subarray(0, S))),
    others: mean(Array.from(values.subarray(S, 2 * S))),
    foreign: mean(pairs.filter((_, i) => Math.floor(i / S) !== i % S)),
    own: mean(pairs.filter((_, i) => Math.floor(i / S) === i % S)),
  };
}

function drawPlacement(host) {
  const S = page.data.meta.subjects.length;
  const R = S + PLACED_FOR.length;
  const map = page.figure({
    height: Math.min(Math.max(110 + 10 * R, 260), 760),
    x_range: [-0.5, S - 0.5], y_range: [R - 0.5, -0.5],
    x_axis_label: "loads of the subject, in the same order",
  });
  for (const grid of map.grids) grid.visible = false;
  map.xaxes[0].ticker = new Bokeh.FixedTicker({ ticks: [] });
  const names = map.yaxes[0];
  const step = Math.ceil(R / 60);
  names.ticker = new Bokeh.FixedTicker({ ticks: Array.from({ length: R }, (_, row) => row).filter((row) => row % step === 0) });
  names.major_label_text_font_size = R > 30 ? "8px" : "11px";
  const most = Math.max(8, Math.floor((host.clientWidth || 600) / 30));
  names.major_label_overrides = new Map(placementOf(shownDevices()).rows.map((name, row) => [row, short(name, most)]));
  const mapper = new Bokeh.LinearColorMapper({ palette: colors.sequential, low: 0, high: 1, nan_color: colors.absent });
  const image = new Bokeh.ColumnDataSource({ data: { image: [], x: [], y: [], dw: [], dh: [] } });
  map.image({
    image: field("image"), x: field("x"), y: field("y"), dw: field("dw"), dh: field("dh"),
    source: image, color_mapper: mapper,
  });
  const border = new Bokeh.Span({ location: PLACED_FOR.length - 0.5, dimension: "width", line_width: 2 });
  map.add_layout(border);
  const column = map.rect([], [], 1, R, { level: "overlay", fill_alpha: 0, line_width: 2 });
  map.add_layout(new Bokeh.ColorBar({ color_mapper: mapper, width: 12 }), "right");
  page.show(map, host);
  const say = statusLine(host);
  const at = (x, y) => {
    const [s, row] = [Math.round(x), Math.round(y)];
    return s >= 0 && s < S && row >= 0 && row < R ? [s, row] : null;
  };
  page.onTap(map, (x, y) => at(x, y) && page.set({ subject: at(x, y)[0] }));
  page.onHover(map, host, (x, y) => at(x, y) && placementText(...at(x, y)));
  return (changes) => {
    if (!concerns(changes, "devices", "subject", "theme")) return;
    const found = placementOf(shownDevices());
    mapper.setv({ low: Math.min(...found.values.filter(Number.isFinite)), high: 1, nan_color: colors.absent });
    image.data = { image: [page.matrix(found.values, R, S)], x: [-0.5], y: [-0.5], dw: [S], dh: [R] };
    const chosen = page.state.subject === null ? [] : [page.state.subject];
    column.data_source.data = { x: chosen, y: chosen.map(() => (R - 1) / 2) };
    column.glyph.line_color = colors.marker;
    border.line_color = colors.page;
    say(placementWords(found));
  };
}

function placementText(s, row) {
  const { rows, values } = placementOf(shownDevices());
  const S = page.data.meta.subjects.length;
  const own = values[(PLACED_FOR.length + s) * S + s];
  return [
    `loads of ${short(rows[PLACED_FOR.length + s])}, placed for ${short(rows[row])}: ${format(values[row * S + s], 3)}`,
    `contiguous ${format(values[s], 3)}, placed for itself ${format(own, 3)}`,
  ];
}

function placementWords(found) {
  const { contiguous, others, foreign, own } = placementMeans(found);
  const all = Object.fromEntries(found.all.map(({ fit, value }) => [fit, format(value, 3)]));
  return `${shownDevices()} devices, mean over subjects: contiguous ${format(contiguous, 3)}, placed for all other subjects ` +
    `${format(others, 3)}, for another subject ${format(foreign, 3)}, for itself ${format(own, 3)}. All text: contiguous ` +
    `${all.contiguous}, placed for the other half of the documents ${all["other half"]}, for itself ${all.all}.`;
}

function placementTable() {
  const { rows, values, all } = placementOf(shownDevices());
  const S = page.data.meta.subjects.length;
  const devices = shownDevices();
  const subjects = rows.slice(PLACED_FOR.length);
  const cells = Array.from(values, (value, i) => [devices, rows[Math.floor(i / S)], subjects[i % S], value]);
  const whole = all.map(({ fit, value }) => [devices, fit, "all text", value]);
  return {
    columns: columnsOf(["devices", "placed_for", "subject", "balancedness"], ["placed_for", "subject"]),
    rows: [...whole, ...cells],
    caption: `Mean / max of ${devices} devices' loads, mean over layers; ${page.data.meta.caption}`,
  };
}
