/* The relative load that the heat map shows: which text, which order of experts. */

/**
 * What a choice of text is: counts [L*N], tokens [L], and by how much design effects are larger
 * where few documents were counted.
 * @param {string} choice all, area:NAME, subject, segment:G or rule:NAME
 */
function slice(choice) {
  const { counts, meta } = page.data;
  const at = choice.indexOf(":");
  const kind = at < 0 ? choice : choice.slice(0, at);
  const text = choice.slice(at + 1);
  const key = { area: text, subject: page.state.subject ?? 0, segment: Number(text), rule: text }[kind];
  const few = kind === "subject" ? meta.subjects[key].few : meta.few;
  return { kind, key, counts: counts[kind](key), tokens: counts.tokens[kind](key), few };
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

/** Selections of one expert that chance would give, each token weighing 1 / deff. */
function expectedSelections(l, tokens, deff) {
  const { num_experts, top_k } = page.data.layers[l];
  return (tokens * top_k) / num_experts / Math.max(deff || 1, 1);
}
