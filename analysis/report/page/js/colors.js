/* Colours, the same for every view. Those of marks do for both themes; those of text do not. */

const THEMES = {
  light: {
    text: "#1b1f24", faint: "#59636e", page: "#ffffff", line: "#d0d7de", plot: "#ffffff",
    marker: "#000000", absent: "#9a9a9a",
  },
  dark: {
    text: "#e6e9ed", faint: "#a3acb7", page: "#14171a", line: "#3d444d", plot: "#1b2025",
    marker: "#ffffff", absent: "#6b7076",
  },
};
/* Okabe and Ito; black, which dark pages lack, is left out. */
const CATEGORICAL = [
  "#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7", "#8a8a8a", "#b8a800",
];
const IDLE = "#ffd400";
const CLIP = 3;
/* Anchors of ColorBrewer's RdBu, reversed, and of cividis. */
const DIVERGING = [
  "#053061", "#2166ac", "#4393c3", "#92c5de", "#d1e5f0", "#f7f7f7",
  "#fddbc7", "#f4a582", "#d6604d", "#b2182b", "#67001f",
];
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678",
  "#a59c74", "#c3b369", "#e1cc55", "#fee838",
];

/**
 * Anchors joined by straight lines in RGB.
 * @param {string[]} anchors
 * @param {number} length
 * @returns {string[]}
 */
function ramp(anchors, length) {
  const rgb = anchors.map((c) => [1, 3, 5].map((at) => parseInt(c.slice(at, at + 2), 16)));
  return Array.from({ length }, (_, i) => {
    const place = (i / (length - 1)) * (rgb.length - 1);
    const from = Math.min(Math.floor(place), rgb.length - 2);
    const mixed = rgb[from].map((v, c) => v + (rgb[from + 1][c] - v) * (place - from));
    return "#" + mixed.map((v) => Math.round(v).toString(16).padStart(2, "0")).join("");
  });
}

/** `page.colors`: constants, and the colours of the theme in force. */
const colors = {
  categorical: CATEGORICAL,
  diverging: ramp(DIVERGING, 255),
  sequential: ramp(CIVIDIS, 256),
  idle: IDLE,
  clip: CLIP,
  ...THEMES.light,
};

/** @param {"light"|"dark"} name */
function useTheme(name) {
  Object.assign(colors, THEMES[name]);
}
