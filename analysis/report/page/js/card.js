/* A view on the page: heading, note, controls, figure, caption, table. Drawn when it comes near,
   and drawn again when it is near after a change: far ones would make every change wait for them. */

/**
 * @typedef {object} Card
 * @property {HTMLElement} element
 * @property {() => void} catchUp draw what the state asks for, wherever the view is
 * @property {(isNear: boolean) => void} setNear whether the view is close to the screen
 */

/**
 * @param {View} view
 * @returns {Card}
 */
function makeCard(view) {
  const heading = element("h3", { id: `${view.id}-title` }, view.title);
  const card = element(
    "article", { id: view.id, class: "view", "aria-labelledby": heading.id },
    heading, element("p", { class: "note" }, view.note),
  );
  const available = view.available ? view.available(page) : true;
  if (available !== true) {
    card.append(element("p", { class: "absent" }, `Not shown: ${available}.`));
    return { element: card, catchUp: () => {}, setNear: () => {} };
  }
  const controls = view.controls ? view.controls(page) : [];
  const bar = element("div", { class: "controls" }, ...controls.map((one) => one.element));
  const host = element("div", { class: "host" });
  const words = view.caption ?? (() => page.data.meta.caption);
  const caption = element("figcaption", {}, words(page));
  const drawing = element("figure", { "aria-label": `${view.title}. ${view.note}` }, host, caption);
  const below = tableButtons(view);
  card.append(bar, drawing, below.element);

  let update = null;
  let isNear = false;
  /** Names that changed since the view was last drawn. */
  const missed = new Set();

  function catchUp() {
    if (!update) {
      update = view.draw(host, page) ?? (() => {});
      update();
      card.dataset.drawn = "";
    } else if (missed.size) update(new Set(missed));
    if (missed.size) {
      caption.textContent = words(page);
      below.update();
    }
    missed.clear();
  }
  page.listeners.add((names) => {
    // They are cheap, and a screen reader reads them wherever they are.
    controls.forEach((one) => one.update());
    names.forEach((name) => missed.add(name));
    if (isNear) catchUp();
  });
  // A button can be pressed in the moment before the observer reports its view.
  card.addEventListener("click", () => update && catchUp(), { capture: true });
  return {
    element: card,
    catchUp,
    setNear: (near) => {
      isNear = near;
      if (isNear) catchUp();
    },
  };
}

/**
 * The buttons below a figure, and the table that one of them shows.
 * @returns {{element: HTMLElement, update: () => void}}
 */
function tableButtons(view) {
  const place = element("div", { id: `${view.id}-table` });
  let shown = null;
  const toggle = element("button", {
    type: "button", "aria-expanded": "false", "aria-controls": place.id, click: () => {
      shown = shown ? null : makeTable(() => view.table(page));
      place.replaceChildren(...(shown ? [shown.element] : []));
      toggle.textContent = shown ? "Hide table" : "Show as table";
      toggle.setAttribute("aria-expanded", String(Boolean(shown)));
    },
  }, "Show as table");
  const save = element("button", {
    type: "button", click: () => downloadCsv(view.id, view.table(page)),
  }, "Download CSV");
  const describe = `${view.id}-title`;
  for (const button of [toggle, save]) button.setAttribute("aria-describedby", describe);
  const buttons = element("div", { class: "buttons" }, toggle, save);
  return {
    element: element("div", { class: "below" }, buttons, place),
    update: () => shown?.update(),
  };
}
