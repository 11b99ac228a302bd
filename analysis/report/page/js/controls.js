/* Native form elements with labels. Each control: {element, update()}. */

let controlNumber = 0;

/** @typedef {{element: HTMLElement, update: () => void}} Control */

/**
 * A choice. `options` is a list of {value, label} or {group, options}; values are texts.
 * `get` reads the value from the state, `set` gets the chosen one.
 * @returns {Control}
 */
function select({ label, options, get, set }) {
  const id = `control-${++controlNumber}`;
  const one = ({ value, label }) => element("option", { value }, short(label));
  const box = element("select", { id, change: () => set(box.value) });
  for (const option of options) {
    if (option.group) {
      const group = element("optgroup", { label: short(option.group) });
      group.append(...option.options.map(one));
      box.append(group);
    } else box.append(one(option));
  }
  const update = () => void (box.value = String(get()));
  update();
  return { element: labelled(id, label, box), update };
}

/**
 * A slider; `show` turns its value into text. `set` is called while it moves.
 * @returns {Control}
 */
function slider({ label, min, max, step = 1, get, set, show = (value) => format(value) }) {
  const id = `control-${++controlNumber}`;
  const box = element("input", {
    id, type: "range", min, max, step, input: () => { say(); set(Number(box.value)); },
  });
  const output = element("output", { for: id });
  function say() {
    output.textContent = show(Number(box.value));
    box.setAttribute("aria-valuetext", output.textContent);
  }
  const update = () => { box.value = String(get()); say(); };
  update();
  return { element: labelled(id, label, box, output), update };
}

/** @returns {Control} */
function checkbox({ label, get, set }) {
  const id = `control-${++controlNumber}`;
  const box = element("input", { id, type: "checkbox", change: () => set(box.checked) });
  const update = () => void (box.checked = Boolean(get()));
  update();
  const made = element("span", { class: "control" }, box, element("label", { for: id }, label));
  return { element: made, update };
}

/**
 * A whole number that is typed.
 * @returns {Control}
 */
function number({ label, min, max, get, set }) {
  const id = `control-${++controlNumber}`;
  const box = element("input", {
    id, type: "number", min, max, step: 1, inputmode: "numeric",
    change: () => {
      const value = Math.round(Number(box.value));
      if (box.value !== "" && value >= min && value <= max) set(value);
      update();
    },
  });
  const update = () => void (box.value = String(get()));
  update();
  return { element: labelled(id, label, box), update };
}

function labelled(id, label, ...content) {
  return element("span", { class: "control" }, element("label", { for: id }, label), ...content);
}

/** Options for every layer, by the model's own index; values are places. */
function layerOptions() {
  return page.data.layers.map(({ layer }, l) => ({ value: l, label: `layer ${layer}` }));
}

/** Options for every subject; values are places. */
function subjectOptions() {
  const { subjects } = page.data.meta;
  return subjects.map(({ name }, s) => ({ value: s, label: name }));
}
