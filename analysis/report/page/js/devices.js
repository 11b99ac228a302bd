/* How even the devices of expert parallelism are loaded, experts in contiguous groups. */

const BALANCES = {
  vllm_avg: { label: "vLLM, mean of layers", reads: "mean / max; 1 is even" },
  vllm_min: { label: "vLLM, least of layers", reads: "mean / max; 1 is even" },
  vllm_p50: { label: "vLLM, median of layers", reads: "mean / max; 1 is even" },
  vllm_p90: { label: "vLLM, 90 % of layers", reads: "mean / max; 1 is even" },
  vllm_log: { label: "vLLM, log", reads: "sum of means / sum of maxima; 1 is even" },
  sglang_utilisation: { label: "SGLang utilisation", reads: "mean / max; 1 is even" },
  tensorrt_llm_ratio: { label: "TensorRT-LLM ratio", reads: "(max - mean) / mean; 0 is even" },
  max_mean: { label: "max / mean", reads: "max / mean; 1 is even" },
  max_vio: { label: "MaxVio of experts", reads: "of experts, not devices; 0 is even" },
};
const NO_DEVICES = "no number of devices divides the experts of every layer";
const hasDevices = () => (page.data.table("devices").length > 0 ? countsAny() : NO_DEVICES);

view({
  id: "device-layers",
  section: "devices",
  title: "Balance of devices, by layer",
  note:
    "Mean over max of the devices' loads, counted over the whole trace: 1 is even, 0.5 means that " +
    "the busiest device has twice the mean, and the others wait for it. Experts lie on devices in " +
    "contiguous groups. Engines that average over steps report less balance.",
  available: hasDevices,
  controls: () => [devicesControl()],
  draw: drawDeviceLayers,
  table: deviceLayersTable,
});

const deviceNumbers = () => Array.from(page.data.table("devices").column("devices"));

/** G, the number of devices that is shown. */
function shownDevices() {
  return page.state.devices ?? deviceNumbers().find((number) => number >= 8) ?? deviceNumbers().at(-1);
}

function devicesControl() {
  return select({
    label: "Devices G",
    options: deviceNumbers().map((number) => ({ value: number, label: String(number) })),
    get: shownDevices,
    set: (number) => page.set({ devices: Number(number) }),
  });
}

/**
 * Loads of G devices in every layer.
 * @param {number} devices
 * @returns {{mean: number, max: number, balance: number, busiest: number, chance: number, effective: number}[]}
 *   selections; mean / max, NaN where nothing was counted; what fair routing of T and of T_eff gives
 */
const devicesOfLayers = memo((devices) => {
  const chance = page.data.table("device_layers_chance");
  const first = Array.from(chance.column("devices")).indexOf(devices);
  return page.data.layers.map((_, l) => {
    const loads = deviceLoads(ofLayer("count", l), devices);
    const [mean, max] = [sum(loads) / devices, Math.max(...loads)];
    return {
      mean, max, balance: max > 0 ? mean / max : NaN, busiest: loads.indexOf(max),
      chance: 1 / (1 + chance.column("max_vio")[first + l]),
      effective: 1 / (1 + chance.column("max_vio_effective")[first + l]),
    };
  });
});

function drawDeviceLayers(host) {
  const made = layersFigure("mean / max", { y_range: [0, 1.05], height: 320 });
  const x = page.data.layers.map((_, l) => l);
  const source = new Bokeh.ColumnDataSource({ data: { x, balance: [], chance: [], effective: [] } });
  const bars = made.vbar({ x: field("x"), top: field("balance"), bottom: 0, width: 0.8, source, fill_color: CATEGORICAL[0], line_color: colors.page });
  made.line(field("x"), field("chance"), { source, line_color: CATEGORICAL[6], line_width: 2, line_dash: DASHED });
  made.line(field("x"), field("effective"), { source, line_color: CATEGORICAL[3], line_width: 2.5, line_dash: DOTTED });
  const mark = made.vbar({ x: [], top: [], bottom: 0, width: 0.95, fill_alpha: 0, line_width: 2.5 });
  addKey(host, [
    { mark: "bar", color: CATEGORICAL[0], label: "layer" },
    { mark: "dashed", color: CATEGORICAL[6], label: "fair routing, T tokens" },
    { mark: "dotted", color: CATEGORICAL[3], label: "fair routing, T_eff tokens" },
  ]);
  page.show(made, host);
  page.onTap(made, (at) => layerAt(at) !== null && page.set({ shownLayer: layerAt(at) }));
  page.onHover(made, host, (at) => deviceText(layerAt(at)));
  return (changes) => {
    if (!concerns(changes, "devices", "shownLayer", "theme")) return;
    const found = devicesOfLayers(shownDevices());
    const of = (name) => found.map((one) => one[name]);
    source.data = { x, balance: of("balance"), chance: of("chance"), effective: of("effective") };
    const l = shownLayer();
    mark.data_source.data = l === null ? { x: [], top: [] } : { x: [l], top: [found[l].balance] };
    mark.glyph.line_color = colors.marker;
    bars.glyph.line_color = colors.page;
  };
}

/** First and last expert of a device. */
function expertsOn(device, l) {
  const size = page.data.layers[l].num_experts / shownDevices();
  return [device * size, (device + 1) * size - 1];
}

function deviceText(l) {
  if (l === null) return null;
  const { mean, max, balance, busiest, chance, effective } = devicesOfLayers(shownDevices())[l];
  return [
    `layer ${page.data.layers[l].layer}, ${shownDevices()} devices: mean / max ${format(balance, 3)}`,
    `busiest: device ${busiest}, experts ${expertsOn(busiest, l).join(" to ")}, ${format(max / mean, 3)} times the mean`,
    `fair routing: ${format(chance, 4)}, T_eff tokens ${format(effective, 4)}`,
  ];
}

function deviceLayersTable() {
  const { layers, meta } = page.data;
  const devices = shownDevices();
  const rows = devicesOfLayers(devices).map(({ mean, max, balance, busiest, chance, effective }, l) => [
    layers[l].layer, devices, mean, max, balance, chance, effective, busiest, ...expertsOn(busiest, l),
  ]);
  const columns = columnsOf([
    "layer", "devices", "mean_load", "max_load", "mean_max", "mean_max_null", "mean_max_null_effective",
    "busiest_device", "first_expert", "last_expert",
  ]);
  return { columns, rows, caption: `Loads of ${devices} devices, selections; ${meta.caption}` };
}

view({
  id: "devices",
  section: "devices",
  title: "Balance by number of devices",
  note:
    "One number for all layers, as different systems define it; the same loads give different " +
    "numbers, so compare like with like. More devices hold fewer experts each and even out less.",
  available: hasDevices,
  controls: () => [select({
    label: "Definition",
    options: Object.entries(BALANCES).map(([value, { label }]) => ({ value, label })),
    get: shownBalance,
    set: (balance) => page.set({ balance }),
  })],
  draw: drawDevices,
  table: devicesTable,
});

function shownBalance() {
  return page.state.balance ?? "vllm_avg";
}

function drawDevices(host) {
  const numbers = deviceNumbers();
  const x = numbers.map((_, i) => i);
  const made = page.figure({ height: 280, x_range: [-0.5, x.length - 0.5], x_axis_label: "devices G" });
  made.xgrids[0].visible = false;
  made.xaxes[0].ticker = new Bokeh.FixedTicker({ ticks: x });
  made.xaxes[0].major_label_overrides = new Map(numbers.map((number, i) => [i, String(number)]));
  const source = new Bokeh.ColumnDataSource({ data: { x, value: [], chance: [] } });
  made.line(field("x"), field("chance"), { source, line_color: CATEGORICAL[3], line_width: 2.5, line_dash: DOTTED });
  made.line(field("x"), field("value"), { source, line_color: CATEGORICAL[0], line_width: 2 });
  made.scatter(field("x"), field("value"), { source, size: 9, color: CATEGORICAL[0] });
  addKey(host, [
    { mark: "circle", color: CATEGORICAL[0], label: "this trace" },
    { mark: "dotted", color: CATEGORICAL[3], label: "fair routing, T_eff tokens (simulated)" },
  ]);
  page.show(made, host);
  const values = (suffix) => Array.from(page.data.table("devices").column(shownBalance() + suffix));
  page.onHover(made, host, (at) => {
    const i = Math.round(at);
    if (!(i in numbers)) return null;
    const [value, chance] = ["", "_null"].map((suffix) => format(values(suffix)[i], 4));
    return [`${numbers[i]} devices: ${value}`, `fair routing, T_eff tokens: ${chance}`];
  });
  return (changes) => {
    if (!concerns(changes, "balance")) return;
    source.data = { x, value: values(""), chance: values("_null") };
    made.yaxes[0].axis_label = BALANCES[shownBalance()].reads;
  };
}

function devicesTable() {
  const { table, meta } = page.data;
  const names = Object.keys(BALANCES);
  const columns = names.flatMap((name) => [name, `${name}_null`]);
  const values = columns.map((name) => table("devices").column(name));
  const rows = deviceNumbers().map((number, i) => [number, ...values.map((column) => column[i])]);
  return { columns: columnsOf(["devices", ...columns]), rows, caption: `Balancedness by definition, beside fair routing of T_eff tokens; ${meta.caption}` };
}
