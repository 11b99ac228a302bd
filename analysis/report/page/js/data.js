/* `page.data`: facts, counts and tables as views ask for them. */

/** @param {ReturnType<typeof decode>} decoded */
function makeData(decoded) {
  const { meta, array } = decoded;
  const layers = meta.layers;
  const N = Math.max(...layers.map((layer) => layer.num_experts));
  const tables = new Map();

  /** @param {string} name @returns {{names: string[], length: number, column: Function}} */
  function table(name) {
    if (!tables.has(name)) tables.set(name, makeTable(name));
    return tables.get(name);
  }

  function makeTable(name) {
    const { length, columns } = decoded.tables[name] ?? { length: 0, columns: [] };
    const made = new Map();
    const column = (wanted) => {
      if (!made.has(wanted)) {
        const facts = columns.find((one) => one.name === wanted);
        if (!facts) throw new Error(`table ${name} has no column ${wanted}`);
        made.set(wanted, decodeColumn(facts, array(`${name}.${wanted}`).values));
      }
      return made.get(wanted);
    };
    const isText = (wanted) => columns.find((one) => one.name === wanted).kind === "text";
    return { names: columns.map((one) => one.name), length, column, isText };
  }

  /** Row `index` of the first axis of an array. */
  function row(name, index) {
    const { values, shape } = array(name);
    const size = shape.slice(1).reduce((product, n) => product * n, 1);
    return values.subarray(index * size, (index + 1) * size);
  }

  const ruleIndex = (name) => meta.rules.findIndex((rule) => rule.name === name);
  const counts = {
    subject: (s) => row("counts.subject", s),
    segment: (g) => row("counts.segment", g),
    rule: (name) => row("counts.rule", ruleIndex(name)),
    all: once(() => sumRows("counts.segment", meta.segments.map((_, g) => g))),
    /** Sum of the subjects of an area. */
    area: memo((area) => sumRows("counts.subject", subjectsOf(area))),
  };
  const tokens = {
    subject: (s) => row("tokens.subject", s),
    segment: (g) => row("tokens.segment", g),
    rule: (name) => row("tokens.rule", ruleIndex(name)),
    all: once(() => sumRows("tokens.segment", meta.segments.map((_, g) => g))),
    area: memo((area) => sumRows("tokens.subject", subjectsOf(area))),
  };
  counts.tokens = tokens;

  function subjectsOf(area) {
    return meta.subjects.map((_, s) => s).filter((s) => meta.subjects[s].area === area);
  }

  function sumRows(name, indices) {
    const { shape } = array(name);
    const sum = new Float64Array(shape.slice(1).reduce((product, n) => product * n, 1));
    for (const index of indices) {
      const values = row(name, index);
      for (let i = 0; i < sum.length; i++) sum[i] += values[i];
    }
    return sum;
  }

  return { meta, layers, N, areas: meta.areas, table, counts, array, expertRow: expertRows(layers) };
}

/** Where each expert's row stands in the table `experts`: (l, e) -> row. */
function expertRows(layers) {
  const starts = [0];
  for (const layer of layers) starts.push(starts.at(-1) + layer.num_experts);
  return (l, e) => starts[l] + e;
}

function memo(make) {
  const made = new Map();
  return (key) => {
    if (!made.has(key)) made.set(key, make(key));
    return made.get(key);
  };
}
