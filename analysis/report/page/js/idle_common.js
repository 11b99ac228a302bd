/* What the views of idle runs share: the window W, and numbers of layers for it. */

const NO_RUNS = "idle runs need rows of tokens in order, and a counting rule that counts each once";

/** Whether idle runs are known. @returns {true|string} */
function knowsRuns() {
  const { table } = page.data;
  if (countsAny() !== true) return countsAny();
  const isKnown = table("experts").names.includes("longest_idle") &&
    table("experts").column("longest_idle").some((run) => run >= 0);
  return isKnown || NO_RUNS;
}

/** What idle runs and W are counted in. */
const idleUnit = () => page.data.meta.idle_unit;

/** Whether they are counted in forward passes, of which only the windows of the settings have nulls. */
const inPasses = () => page.data.meta.idle_left_out !== null;

/** Whether runs are known, and in tokens. @returns {true|string} */
const knowsTokenRuns = () => (inPasses() ? page.data.meta.idle_left_out : knowsRuns());

/** W of the slider: about ten per decade, those of the settings, and T. */
const windowSteps = once(() => {
  const { T, windows } = page.data.meta;
  if (inPasses()) return windows;
  return logSteps(10, Math.max(T, 10), [...windows, T]);
});

/** The window W, in `idleUnit`, that all views of idle runs show. */
const shownWindow = () => page.state.window ?? firstWindow();

/* The shortest of the settings if an expert idles so long, else one that a tenth of them reach. */
const firstWindow = once(() => {
  const runs = page.data.table("experts").column("longest_idle");
  const wanted = Math.min(...page.data.meta.windows);
  if (runs.some((run) => run >= wanted) && windowSteps().includes(wanted)) return wanted;
  const most = quantile(runs, 0.9);
  return windowSteps().filter((step) => step <= most).at(-1) ?? windowSteps()[0];
});

/** @returns {Control} */
function windowControl() {
  const steps = windowSteps();
  const control = slider({
    label: "Idle for at least W =",
    min: 0,
    max: steps.length - 1,
    get: () => steps.indexOf(shownWindow()),
    set: (at) => page.set({ window: steps[at] }),
    show: (at) => `${format(steps[at])} ${idleUnit()}${tokensOf(steps[at])}`,
  });
  // A step is a few pixels.
  control.element.querySelector("input").style.width = "16rem";
  return control;
}

/** A / (T N): how often a token selects each expert under even load. */
function fairRate(l) {
  const { layers, table } = page.data;
  return table("layers").column("assignments")[l] / (layers[l].tokens * layers[l].num_experts);
}

/** A run in mean distances between selections under even load. */
const inFairIntervals = (run, l) => run * fairRate(l);

/** What the null of forward passes says of one layer and window of the settings. */
function chanceInPasses(window, l) {
  const chance = page.data.table("idle_chance");
  for (let i = 0; i < chance.length; i++) {
    if (chance.column("window")[i] === window && placeOfLayer(chance.column("layer")[i]) === l) {
      return Object.fromEntries(chance.names.map((name) => [name, chance.column(name)[i]]));
    }
  }
  return {};
}

/** Tokens of W forward passes, on average. */
function tokensOf(window) {
  const tokens = inPasses() ? chanceInPasses(window, 0).window_tokens : NaN;
  return Number.isFinite(tokens) ? ` (${format(tokens, 3)} tokens on average)` : "";
}

/** W in mean distances between selections under even load. */
const windowIntervals = (window, l) => inPasses()
  ? inFairIntervals(chanceInPasses(window, l).window_tokens ?? NaN, l) : inFairIntervals(window, l);

/** What `longest_idle_expected` is of, where that is not the order of the caption. */
const inOneStream = () => (page.data.meta.order === "request-local" ? ", all documents in one stream" : "");

/** An expected number: tiny ones only say that they are. */
const expectation = (value) => (value < 0.001 ? "under 0.001" : format(value, 3));

/** Stretches of tokens that no idle run leaves, the longest first: all tokens, or documents. */
const stretches = once(() => {
  const { values, shape } = page.data.array("stretches");
  const found = Array.from({ length: shape[1] }, (_, i) => ({ tokens: values[i], number: values[shape[1] + i] }));
  return found.reverse();
});

/** Those that a run of W tokens fits into. */
const stretchesFor = (window) => stretches().filter(({ tokens }) => tokens >= window);

/** What a stretch is expected to have, summed over all of them. */
const inStretches = (window, of) => sum(stretchesFor(window).map(({ tokens, number }) => number * of(tokens)));

/** Chance of any idle run of W tokens or more, independent tokens at one rate. */
function chanceOfAnyRun(p, window) {
  let none = 1;
  for (const { tokens, number } of stretchesFor(window)) {
    none *= (1 - chanceOfRun(p, tokens, window)) ** number;
    if (none < 1e-9) break;
  }
  return 1 - none;
}

const sum = (values) => values.reduce((total, value) => total + value, 0);

/**
 * How many experts of each layer idle for W or more, exactly, and how many would.
 * @param {number} window
 * @returns {{idle: number, shuffled: number, own: number, fair: number}[]} by layer; `shuffled` is
 *   NaN without shuffled orders, `own` and `fair` are expectations
 */
const idleOfLayers = memo((window) => page.data.layers.map(({ num_experts }, l) => {
  const rates = Array.from(ofLayer("frequency", l));
  const reaching = (name) => {
    const runs = Array.from(ofLayer(name, l));
    return runs.some((run) => run >= 0) ? runs.filter((run) => run >= window).length : NaN;
  };
  return {
    idle: reaching("longest_idle"),
    shuffled: reaching("longest_idle_shuffled"),
    ...(inPasses() ? { own: NaN, fair: NaN, ...chanceInPasses(window, l) } : {
      own: sum(rates.map((p) => chanceOfAnyRun(p, window))),
      fair: num_experts * chanceOfAnyRun(fairRate(l), window),
    }),
  };
}));

/**
 * Runs of W or more in each layer and the share of the stream inside them, at a W of the settings.
 * @param {number} window
 * @returns {{runs: number, shuffled: number, expected: number, share: number, expectedShare: number}[]}
 *   sums of runs and means of shares over a layer's experts; NaN at any other W
 */
const runsOfLayers = memo((window) => {
  const { layers, table, meta } = page.data;
  const isCounted = meta.windows.includes(window);
  const found = layers.map(({ num_experts, tokens }, l) => {
    const rates = Array.from(ofLayer("frequency", l));
    const start = isCounted ? 0 : NaN;
    return {
      runs: start,
      shuffled: meta.shuffles > 0 && !inPasses() ? start : NaN,
      share: start,
      ...(inPasses() ? { expected: NaN, expectedShare: NaN, ...chanceInPasses(window, l) } : {
        expected: sum(rates.map((p) => inStretches(window, (length) => expectedRuns(p, length, window)))),
        expectedShare: sum(rates.map((p) => (
          inStretches(window, (length) => length * expectedIdleShare(p, length, window))))) / num_experts / tokens,
      }),
    };
  });
  const rows = table("idle_windows");
  for (let i = 0; i < rows.length; i++) {
    if (rows.column("window")[i] !== window) continue;
    const l = placeOfLayer(rows.column("layer")[i]);
    found[l].runs += rows.column("runs")[i];
    found[l].shuffled += rows.column("runs_shuffled")[i];
    found[l].share += rows.column("share")[i] / layers[l].num_experts;
  }
  return found;
});

/** Every expert that idles for W or more, the longest run first: rows of `experts`. */
const idleExperts = memo((window) => {
  const runs = page.data.table("experts").column("longest_idle");
  const rows = Array.from(runs, (_, row) => row).filter((row) => runs[row] >= window);
  return rows.sort((a, b) => runs[b] - runs[a] || a - b);
});

/** Place of the layer and expert of every row of `experts`. */
const expertPlaces = once(() => page.data.layers.flatMap(
  ({ num_experts }, l) => Array.from({ length: num_experts }, (_, e) => [l, e])));
