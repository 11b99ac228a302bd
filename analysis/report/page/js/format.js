/* Numbers and names as text. */

/** Names of characters that turn the direction of text, or that no screen shows. */
const UNPRINTABLE = /[\p{C}\p{Zl}\p{Zp}]/gu;

/**
 * A number with so many significant digits at most; a dash where there is none.
 * @param {number|null} x
 * @param {number} [digits]
 */
function format(x, digits = 4) {
  if (x === null || x === undefined || Number.isNaN(x)) return "–";
  if (Number.isInteger(x)) return x.toLocaleString("en-US");
  const size = Math.abs(x);
  if (size !== 0 && (size < 1e-4 || size >= 1e6)) return x.toExponential(Math.max(digits - 2, 0));
  return x.toLocaleString("en-US", { maximumSignificantDigits: digits });
}

/**
 * A text from the trace on one line, cut in the middle where it is long.
 * @param {string} text
 * @param {number} [most]
 */
function short(text, most = 40) {
  const letters = Array.from(String(text).replace(UNPRINTABLE, "?"));
  if (letters.length <= most) return letters.join("");
  const half = Math.floor((most - 1) / 2);
  return `${letters.slice(0, most - 1 - half).join("")}…${letters.slice(-half).join("")}`;
}

/** One value of a CSV file: null is empty, floats have the digits that they came with. */
function csvValue(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "";
  if (typeof value === "number") {
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(6)));
  }
  return /[",\r\n]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

/**
 * @param {string[]} names
 * @param {Iterable<Array>} rows
 * @returns {string}
 */
function csv(names, rows) {
  const lines = [names.map(csvValue).join(",")];
  for (const row of rows) lines.push(Array.from(row, csvValue).join(","));
  return lines.join("\n") + "\n";
}
