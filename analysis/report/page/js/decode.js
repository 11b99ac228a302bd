/* What the page is given: one deflated block, see payload.py. */

const ARRAYS = {
  uint8: Uint8Array,
  uint16: Uint16Array,
  uint32: Uint32Array,
  int32: Int32Array,
  float32: Float32Array,
  float64: Float64Array,
};
const NO_INTEGER = -(2 ** 31);

const ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%()*+-./:;=?@[]^_{|}";

/**
 * Read text as text.py writes it: a length, a line break, and 5 letters for every 4 bytes.
 * @param {string} text
 * @returns {Uint8Array}
 */
function fromText(text) {
  const digit = new Uint8Array(128);
  for (let i = 0; i < 85; i++) digit[ALPHABET.charCodeAt(i)] = i;
  const start = text.indexOf("\n") + 1;
  const words = (text.length - start) / 5;
  const view = new DataView(new ArrayBuffer(words * 4));
  for (let word = 0, at = start; word < words; word++) {
    let value = 0;
    for (const end = at + 5; at < end; at++) value = value * 85 + digit[text.charCodeAt(at)];
    view.setUint32(word * 4, value);
  }
  return new Uint8Array(view.buffer, 0, Number(text.slice(0, start)));
}

/**
 * Inflate what text.py wrote.
 * @param {string} text
 * @returns {Promise<Uint8Array>}
 */
async function inflate(text) {
  const bytes = fromText(text);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Bring bytes that stand by significance back together.
 * @param {Uint8Array} planes
 * @param {string} type
 */
function joinPlanes(planes, type) {
  const size = ARRAYS[type].BYTES_PER_ELEMENT;
  const length = planes.length / size;
  const bytes = new Uint8Array(planes.length);
  for (let plane = 0; plane < size; plane++) {
    for (let i = 0; i < length; i++) bytes[i * size + plane] = planes[plane * length + i];
  }
  return new ARRAYS[type](bytes.buffer);
}

/**
 * @param {Uint8Array} bytes
 * @returns {{meta: object, array: (name: string) => {values: *, shape: number[]}, tables: object}}
 */
function decode(bytes) {
  const length = new DataView(bytes.buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(8, 8 + length)));
  let offset = 8 + Math.ceil(length / 8) * 8;
  const made = new Map();
  for (const { name, type, shape } of header.arrays) {
    const size = shape.reduce((product, n) => product * n, 1) * ARRAYS[type].BYTES_PER_ELEMENT;
    const planes = bytes.subarray(offset, offset + size);
    made.set(name, once(() => ({ values: joinPlanes(planes, type), shape })));
    offset += Math.ceil(size / 8) * 8;
  }
  return { meta: header.meta, array: (name) => made.get(name)?.(), tables: header.tables };
}

/** What `make` gives, made when it is first asked for. */
function once(make) {
  let made;
  return () => (made ??= make());
}

/**
 * One column as views read it: null is NaN in numbers and null in texts.
 * @param {{kind: string, texts: string[]}} column
 * @param {ArrayLike<number>} values
 */
function decodeColumn(column, values) {
  if (column.kind === "text") {
    return Array.from(values, (code) => (code ? column.texts[code - 1] : null));
  }
  if (column.kind === "integer" && values instanceof Int32Array && values.includes(NO_INTEGER)) {
    return Float64Array.from(values, (value) => (value === NO_INTEGER ? NaN : value));
  }
  return values;
}
