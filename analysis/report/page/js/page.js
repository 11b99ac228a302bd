/* The page object that every view is given, and the list of views. */

/**
 * @typedef {object} View
 * @property {string} id anchor
 * @property {string} section overview, load, idle, subjects, structure, devices or documents
 * @property {string} title
 * @property {string} note what is shown and how to read it
 * @property {(page: object) => true|string} [available]
 * @property {(page: object) => string} [caption] how what is shown now was counted, where that may
 *   not be what the report's caption says
 * @property {(page: object) => Control[]} [controls]
 * @property {(host: HTMLElement, page: object) => (() => void)} draw
 * @property {(page: object) => {columns: object[], rows: Iterable, caption: string}} table
 */

/** @type {View[]} */
const views = [];

/** @param {View} view */
function view(view) {
  if (views.some((other) => other.id === view.id)) throw new Error(`two views ${view.id}`);
  views.push(view);
}

const page = {
  /** @type {ReturnType<typeof makeData>} set before any view is asked */
  data: null,
  state: { layer: null, expert: null, subject: null },
  colors,
  format,
  short,
  /** Functions called after every change of state, each with the names that changed. */
  listeners: new Set(),

  /** Merge into the state; listeners hear of it once per animation frame. */
  set(changes) {
    for (const [name, value] of Object.entries(changes)) {
      if (page.state[name] !== value) changed.add(name);
      page.state[name] = value;
    }
    if (changed.size && !isWaiting) {
      isWaiting = true;
      requestAnimationFrame(notify);
    }
  },

  /** Select an expert everywhere: place of the layer and expert, whose layer is then shown; null clears. */
  select(l, e = null) {
    const isOne = l !== null && e !== null && page.data.layers[l]?.num_experts > e && e >= 0;
    page.set(isOne ? { layer: l, expert: e, shownLayer: l } : { layer: null, expert: null });
  },
};

const changed = new Set();
let isWaiting = false;

function notify() {
  const names = new Set(changed);
  changed.clear();
  isWaiting = false;
  for (const listener of [...page.listeners]) listener(names);
}

/**
 * Make an element. Strings become text, never markup.
 * @param {string} tag
 * @param {object} [attributes] `class`, `for` ...; functions are listeners of that event
 * @param {...(Node|string)} content
 */
function element(tag, attributes = {}, ...content) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name, value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) {
      made.setAttribute(name, String(value));
    }
  }
  made.append(...content);
  return made;
}
