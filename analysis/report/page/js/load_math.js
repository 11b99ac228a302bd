/*
 * What chance gives for loads and idle runs, and the steps of the window slider: pure functions.
 * T tokens, p rate, W window, as in analysis/statistics/idle_null.py, which has the derivations.
 */

const ALMOST_SURE = 10;
const TERMS = 40;

/**
 * Expected idle runs of W tokens or more, independent tokens at one rate: q^W (1 + (T - W) p).
 * @param {number} p @param {number} tokens @param {number} window
 * @returns {number} 0 where W > T
 */
function expectedRuns(p, tokens, window) {
  return window <= tokens ? (1 - p) ** window * (1 + (tokens - window) * p) : 0;
}

/**
 * Chance of any idle run of W tokens or more (de Moivre's problem of runs).
 * @param {number} p @param {number} tokens @param {number} window
 * @returns {number} in [0, 1]; NaN where p is
 */
function chanceOfRun(p, tokens, window) {
  const expected = expectedRuns(p, tokens, window);
  if (!(expected < ALMOST_SURE)) return 1 - Math.exp(-expected);
  const idle = (1 - p) ** window;
  let chance = 0;
  for (let j = 1; j <= TERMS && j * window <= tokens; j += 1) {
    const room = tokens - j * window;
    let term = idle;
    // Powers and binomials apart would overflow.
    for (let i = 0; i < j - 1; i += 1) term *= (Math.max(room - i, 0) * p * idle) / (i + 1);
    term *= 1 + (Math.max(room - j + 1, 0) * p) / j;
    chance += j % 2 ? term : -term;
    // Terms only fall once they are this small.
    if (term < 1e-12) break;
  }
  return Math.min(Math.max(chance, 0), 1);
}

/**
 * Expected share of tokens in idle runs of W or more, independent tokens at one rate.
 * @param {number} p @param {number} tokens @param {number} window
 * @returns {number} in [0, 1]
 */
function expectedIdleShare(p, tokens, window) {
  const sliding = Math.max(tokens - window + 1, 0) * (1 - p) ** window;
  return (sliding + (window - 1) * expectedRuns(p, tokens, window)) / tokens;
}

/**
 * Steps of a logarithmic slider: ten per decade in two digits, and some values that must be there.
 * @param {number} least @param {number} most @param {number[]} wanted left out where not between
 * @returns {number[]} ascending, without repeats
 */
function logSteps(least, most, wanted) {
  const steps = new Set(wanted.filter((value) => value >= least && value <= most));
  for (let i = Math.round(10 * Math.log10(least)); 10 ** (i / 10) <= most; i += 1) {
    const unit = 10 ** Math.max(Math.floor(i / 10) - 1, 0);
    steps.add(Math.round(10 ** (i / 10) / unit) * unit);
  }
  return [...steps].filter((step) => step >= least && step <= most).sort((a, b) => a - b);
}

/**
 * The loads that chance gives the sorted experts of a layer: median and 95 % band of each rank.
 * @param {ArrayLike<number>} scores_3N sorted normals from the least used: 2.5 %, 50 %, 97.5 %
 * @param {number} topK @param {number} tokens effective ones; NaN loads without any
 * @returns {{low: number[], middle: number[], high: number[]}} relative loads
 */
function chanceOfOrder(scores_3N, topK, tokens) {
  const numExperts = scores_3N.length / 3;
  // CV0 is of loads around their own mean; those of the normals are around the true one.
  const cv = tokens > 0 ? Math.sqrt((numExperts - topK) / (topK * tokens)) : NaN;
  const spread = cv * Math.sqrt(numExperts / Math.max(numExperts - 1, 1));
  const most = numExperts / topK;
  const fair = topK / numExperts;
  const skew = (1 - 2 * fair) / Math.sqrt(tokens * fair * (1 - fair));
  // Counts are whole: the ends lie half of one further out.
  const half = spread > 0 ? 0.5 / (tokens * fair) : 0;
  const load = (score, further) => {
    const skewed = spread > 0 ? score + (skew / 6) * (score * score - 1) : 0;
    return Math.min(Math.max(1 + spread * skewed + further * half, 0), most);
  };
  const row = (number) =>
    Array.from(scores_3N.slice(number * numExperts, (number + 1) * numExperts), (score) =>
      load(score, number - 1));
  return { low: row(0), middle: row(1), high: row(2) };
}

/**
 * Loads of devices that hold experts in contiguous groups of equal size.
 * @param {ArrayLike<number>} counts_N selections @param {number} devices divides N
 * @returns {number[]} selections of each device
 */
function deviceLoads(counts_N, devices) {
  const size = counts_N.length / devices;
  const loads = new Array(devices).fill(0);
  for (let expert = 0; expert < counts_N.length; expert += 1) {
    loads[Math.floor(expert / size)] += counts_N[expert];
  }
  return loads;
}

/**
 * A quantile of numbers, interpolated linearly between neighbours; NaN left out.
 * @param {ArrayLike<number>} values @param {number} part in [0, 1]
 * @returns {number} NaN where there is none
 */
function quantile(values, part) {
  const sorted = Array.from(values).filter(Number.isFinite).sort((a, b) => a - b);
  if (!sorted.length) return NaN;
  const place = part * (sorted.length - 1);
  const below = Math.floor(place);
  const above = Math.min(below + 1, sorted.length - 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}
