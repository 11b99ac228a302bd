/* 95 % intervals of a selection frequency; the same as statistics/intervals.py, for any text. */

const Z = 1.959963984540054;
const FEW = 10;
const RULE_OF_THREE = 3;

/** Wilson's interval of a frequency that `tokens` independent tokens gave. */
function wilson(share, tokens) {
  const centre = share + Z ** 2 / (2 * tokens);
  const half = Z * Math.sqrt((share * (1 - share)) / tokens + (Z / (2 * tokens)) ** 2);
  const scale = 1 + Z ** 2 / tokens;
  return [Math.max((centre - half) / scale, 0), Math.min((centre + half) / scale, 1)];
}

/** Clopper and Pearson's, with real-valued counts. */
function clopperPearson(share, tokens) {
  const hits = share * tokens;
  const misses = tokens - hits;
  const low = hits > 0 ? betaQuantile(0.025, hits, misses + 1) : 0;
  return [low, misses > 0 ? betaQuantile(0.975, hits + 1, misses) : 1];
}

/**
 * Interval of p = count / tokens: Wilson from 10 selections on, Clopper-Pearson below, and from 0
 * to 3 / T_eff for none.
 * @param {number} deff design effect of the expert; NaN where undefined
 * @param {number} median design effect of the layer
 * @returns {[number, number]}
 */
function shareInterval(count, tokens, deff, median) {
  if (!(tokens > 0)) return [NaN, NaN];
  const own = deff > 0 ? deff : median;
  const few = Math.max(own, Number.isNaN(median) ? own : median, 1);
  if (Number.isNaN(own)) return [NaN, NaN];
  if (count === 0) return [0, Math.min((RULE_OF_THREE * few) / tokens, 1)];
  const share = count / tokens;
  return count < FEW ? clopperPearson(share, tokens / few) : wilson(share, tokens / own);
}

/** Half the width of the 95 % band that fair routing keeps r = 1 in, at `tokens` independent ones. */
function fairBand(tokens, numExperts, topK) {
  return Z * Math.sqrt((numExperts / topK - 1) / tokens);
}

function betaQuantile(chance, a, b) {
  let [low, high] = [0, 1];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (incompleteBeta(middle, a, b) < chance) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** I_x(a, b) by its continued fraction (Lentz). */
function incompleteBeta(x, a, b) {
  if (x <= 0 || x >= 1) return x <= 0 ? 0 : 1;
  if (x > (a + 1) / (a + b + 2)) return 1 - incompleteBeta(1 - x, b, a);
  const front = a * Math.log(x) + b * Math.log1p(-x) + logGamma(a + b) - logGamma(a) - logGamma(b);
  const tiny = 1e-300;
  const keep = (value) => (Math.abs(value) < tiny ? tiny : value);
  let c = 1;
  let d = 1 / keep(1 - ((a + b) * x) / (a + 1));
  let value = d;
  for (let m = 1; m < 300; m++) {
    const even = (m * (b - m) * x) / ((a + 2 * m - 1) * (a + 2 * m));
    d = 1 / keep(1 + even * d);
    c = keep(1 + even / c);
    value *= d * c;
    const odd = (-(a + m) * (a + b + m) * x) / ((a + 2 * m) * (a + 2 * m + 1));
    d = 1 / keep(1 + odd * d);
    c = keep(1 + odd / c);
    value *= d * c;
    if (Math.abs(d * c - 1) < 1e-13) break;
  }
  return (Math.exp(front) * value) / a;
}

/** ln Gamma(x) for x > 0: Stirling's series, after raising x. */
function logGamma(x) {
  let shift = 0;
  while (x < 12) shift += Math.log(x++);
  const inverse = 1 / (x * x);
  const series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse / 1680))) / x;
  return (x - 0.5) * Math.log(x) - x + Math.log(2 * Math.PI) / 2 + series - shift;
}
