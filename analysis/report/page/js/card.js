/* A view on the page: heading, note, controls, figure, caption, table. Drawn when it comes near. */

/** @typedef {{view: View, element: HTMLElement, draw: () => void, isDrawn: () => boolean}} Card */

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
    return { view, element: card, draw: () => {}, isDrawn: () => true };
  }
  const controls = view.controls ? view.controls(page) : [];
  const bar = element("div", { class: "controls" }, ...controls.map((one) => one.element));
  const host = element("div", { class: "host" });
  const caption = element("figcaption", {}, page.data.meta.caption);
  const drawing = element("figure", { "aria-label": `${view.title}. ${view.note}` }, host, caption);
  card.append(bar, drawing, tableButtons(view));

  let update = null;
  function draw() {
    if (update) return;
    update = view.draw(host, page) ?? (() => {});
    // The state may have changed since the controls were made.
    controls.forEach((one) => one.update());
    update();
    page.listeners.add((names) => {
      controls.forEach((one) => one.update());
      update(names);
    });
    card.dataset.drawn = "";
  }
  return { view, element: card, draw, isDrawn: () => update !== null };
}

/** The buttons below a figure, and the table that one of them shows. */
function tableButtons(view) {
  const place = element("div", { id: `${view.id}-table` });
  let shown = null;
  const toggle = element("button", {
    type: "button", "aria-expanded": "false", "aria-controls": place.id, click: () => {
      if (shown) {
        page.listeners.delete(shown.update);
        shown = null;
      } else {
        shown = makeTable(() => view.table(page));
        page.listeners.add(shown.update);
      }
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
  return element("div", { class: "below" }, buttons, place);
}
