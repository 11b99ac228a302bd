/*
 * Subjects: divergences, log-odds and q-values from counts, as tables/subjects.py has them. Pure but
 * for `subjectMath`, which reads the page's data once. S subjects, N experts of a layer.
 */

const PRIOR = 0.01;
const SIGNIFICANT = 0.05;

/**
 * Log-odds of one expert in a subject against the others, and its z (Monroe et al. 2008).
 * @param {number} count of the subject @param {number} total of all subjects
 * @param {number} size selections of the subject @param {number} all selections
 * @param {number} deff design effect; NaN where unknown
 * @returns {{logOdds: number, z: number}} NaN where undefined
 */
function logOddsOf(count, total, size, all, deff) {
  const prior = PRIOR * total;
  const [inside, outside] = [count + prior, total - count + prior];
  const [insideAll, outsideAll] = [size + PRIOR * all, all - size + PRIOR * all];
  const isDefined = size > 0 && size < all && inside > 0 && outside > 0
    && inside < insideAll && outside < outsideAll;
  if (!isDefined) return { logOdds: NaN, z: NaN };
  const logOdds = Math.log(inside / (insideAll - inside)) - Math.log(outside / (outsideAll - outside));
  const variance = (1 - (PRIOR * all) / insideAll) / inside + (1 - (PRIOR * all) / outsideAll) / outside;
  return { logOdds, z: deff > 0 ? logOdds / Math.sqrt(variance * deff) : NaN };
}

/** The larger of two numbers, of which either may be NaN. */
function largerKnown(a, b) {
  return Number.isNaN(a) ? b : Number.isNaN(b) ? a : Math.max(a, b);
}

/**
 * ln P(|Z| >= |z|) of a standard normal, also where the chance itself is too small for a number.
 * @param {number} z
 */
function logTwoSidedP(z) {
  const x = Math.abs(z) / Math.SQRT2;
  if (x < 2) {
    // The series of erf, all of whose terms have one sign.
    let [term, sum] = [x, x];
    for (let n = 1; n < 60; n++) {
      term *= (2 * x * x) / (2 * n + 1);
      sum += term;
    }
    return Math.log(1 - (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum);
  }
  let fraction = x;
  for (let n = 60; n >= 1; n--) fraction = x + n / 2 / fraction;
  return -x * x - Math.log(fraction) - Math.log(Math.PI) / 2;
}

/**
 * Benjamini and Hochberg over two-sided tests.
 * @param {Float64Array} z of all tests; NaN is no test
 * @returns {{logQ: (z: number) => number, critical: (level: number) => number}} ln q of a test that
 *   was among them, and the |z| from which on q is below a level
 */
function falseDiscovery(z) {
  const sizes = absoluteSorted(z);
  const tests = sizes.length;
  const logQ = new Float64Array(tests);
  let least = 0;
  for (let i = 0; i < tests; i++) {
    // Of `tests - i` tests p is as small as this one's, or smaller.
    least = Math.min(least, logTwoSidedP(sizes[i]) + Math.log(tests / (tests - i)));
    logQ[i] = least;
  }
  return {
    logQ: (value) => logQ[placeOf(sizes, Math.abs(value))] ?? NaN,
    critical: (level) => sizes[logQ.findIndex((value) => value < Math.log(level))] ?? Infinity,
  };
}

/** Absolute values in ascending order, without NaN. @param {Float64Array} values */
function absoluteSorted(values) {
  return values.filter((value) => !Number.isNaN(value)).map(Math.abs).sort();
}

/** First place of a value among ascending ones. */
function placeOf(sorted, value) {
  let [low, high] = [0, sorted.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * Jensen-Shannon divergence of two subjects' assignment shares, in bits.
 * @param {ArrayLike<number>} one_N selections @param {ArrayLike<number>} other_N
 * @returns {number} in [0, 1]; NaN where one has no selections
 */
function divergenceBits(one_N, other_N) {
  let [size, otherSize] = [0, 0];
  for (let e = 0; e < one_N.length; e++) {
    size += one_N[e];
    otherSize += other_N[e];
  }
  if (!size || !otherSize) return NaN;
  const part = (share, middle) => (share > 0 ? share * Math.log2(share / middle) : 0);
  let bits = 0;
  for (let e = 0; e < one_N.length; e++) {
    const [p, q] = [one_N[e] / size, other_N[e] / otherSize];
    bits += (part(p, (p + q) / 2) + part(q, (p + q) / 2)) / 2;
  }
  return Math.min(Math.max(bits, 0), 1);
}

/**
 * Divergence of two samples that differ by noise alone, in bits; NaN where one has no selections.
 * @param {number} used experts that something selects @param {number} topK
 * @param {number} size effective selections, A / deff @param {number} otherSize
 */
function divergenceNull(used, topK, size, otherSize) {
  if (!(size > 0 && otherSize > 0)) return NaN;
  return Math.min(((used - topK) / (8 * Math.LN2)) * (1 / size + 1 / otherSize), 1);
}

/** Subjects with as many documents as a test needs. */
const testedSubjects = once(() => {
  const { meta, array } = page.data;
  const documents = array("subjects.documents").values;
  return meta.subjects.map((_, s) => s).filter((s) => documents[s] >= meta.least_documents);
});

/** Numbers of subjects and experts, made of the page's counts when they are first asked for. */
const subjectMath = once(() => {
  const { layers, N, counts, meta, array } = page.data;
  const S = meta.subjects.length;
  const of = (s, l) => counts.subject(s).subarray(l * N, l * N + layers[l].num_experts);
  const all = counts.all();
  const sum = (values) => values.reduce((total, value) => total + value, 0);
  const sizes = Array.from({ length: S }, (_, s) => layers.map((_, l) => sum(of(s, l))));
  const totals = layers.map((_, l) => sizes.reduce((total, one) => total + one[l], 0));
  const tokens = layers.map((_, l) => sum(meta.subjects.map((_, s) => counts.tokens.subject(s)[l])));
  const [deff, mean, within] = ["deff", "deff_mean", "deff_within"].map((name) => array(`subjects.${name}`).values);
  const tested = testedSubjects();
  const hasInference = (s) => tested.includes(s);
  const mine = memo((s) => ({ counts: counts.subject(s), tokens: counts.tokens.subject(s) }));

  /** The row of the table `subjects`, without its q-value. */
  function row(s, l, e) {
    const [count, total] = [mine(s).counts[l * N + e], all[l * N + e]];
    const own = mine(s).tokens[l];
    const frequency = own ? count / own : NaN;
    const rest = tokens[l] - own ? (total - count) / (tokens[l] - own) : NaN;
    const lift = rest > 0 ? frequency / rest : NaN;
    const known = hasInference(s) ? effect(s, l, e, count) : { logOdds: NaN, z: NaN };
    return { s, l, e, count, frequency, rest, lift, ...known };
  }

  function effect(s, l, e, count) {
    const worst = largerKnown(deff[l * S + s], within[l * N + e]);
    return logOddsOf(count, all[l * N + e], sizes[s][l], totals[l], worst);
  }

  /** Rows of one subject: every layer and expert. */
  function rows(s) {
    return layers.flatMap(({ num_experts }, l) => Array.from({ length: num_experts }, (_, e) => row(s, l, e)));
  }

  /** z of all experts in a subject with tests: Float64Array [L*N]; NaN where undefined. */
  const zOf = memo((s) => {
    const z = new Float64Array(layers.length * N).fill(NaN);
    const own = mine(s).counts;
    layers.forEach(({ num_experts }, l) => {
      for (let e = 0; e < num_experts; e++) z[l * N + e] = effect(s, l, e, own[l * N + e]).z;
    });
    return z;
  });

  const discovery = once(() => {
    const z = new Float64Array(tested.length * layers.length * N);
    tested.forEach((s, place) => z.set(zOf(s), place * layers.length * N));
    return falseDiscovery(z);
  });
  const logQ = (found) => (Number.isNaN(found.z) ? NaN : discovery().logQ(found.z));

  /** Divergence of two subjects in a layer, or its mean over layers where `l` is null. */
  function divergence(l, s, other) {
    if (l === null) return array("subjects.mean_divergence").values[s * S + other];
    return divergenceBits(of(s, l), of(other, l));
  }

  const used = layers.map(({ num_experts }, l) => {
    return all.subarray(l * N, l * N + num_experts).filter((count) => count > 0).length;
  });
  const counting = layers.map((_, l) => l).filter((l) => totals[l] > 0);
  function noise(l, s, other) {
    if (l === null) return sum(counting.map((one) => noise(one, s, other))) / counting.length;
    const effective = (t) => sizes[t][l] / mean[l * S + t];
    return divergenceNull(used[l], layers[l].null_k, effective(s), effective(other));
  }
  const critical = once(() => discovery().critical(SIGNIFICANT));
  return { S, hasInference, row, rows, zOf, logQ, critical, divergence, noise };
});
