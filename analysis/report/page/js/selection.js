/* The bar at the foot: numbers of the selected expert, and fields to select one by keyboard. */

const FACTS = [
  ["count", "selections"],
  ["relative_load", "load r"],
  ["ci_low", "r from"],
  ["ci_high", "to"],
  ["tier", "tier"],
  ["longest_idle", "longest idle run"],
  ["burstiness", "burstiness"],
  ["documents", "documents"],
];

/** @returns {HTMLElement} */
function selectionBar() {
  const { layers, table, expertRow } = page.data;
  const experts = table("experts");
  const says = element("p", { class: "selected", role: "status" });
  const layer = select({
    label: "Layer",
    options: [{ value: "", label: "none" }, ...layerOptions()],
    get: () => page.state.layer ?? "",
    set: (l) => (l === "" ? page.select(null) : page.select(Number(l), page.state.expert ?? 0)),
  });
  const expert = number({
    label: "expert",
    min: 0,
    max: page.data.N - 1,
    get: () => page.state.expert ?? "",
    set: (e) => page.select(page.state.layer ?? 0, e),
  });
  const clear = element("button", { type: "button", click: () => page.select(null) }, "Clear");

  function update() {
    const { layer: l, expert: e } = page.state;
    layer.update();
    expert.update();
    clear.disabled = l === null;
    if (l === null) {
      says.textContent = "No expert is selected. Click one in a figure.";
      return;
    }
    const row = expertRow(l, e);
    const values = FACTS.filter(([name]) => experts.names.includes(name)).map(([name, label]) => {
      const value = experts.column(name)[row];
      const unit = name === "longest_idle" ? ` ${idleUnit()}` : "";
      return `${label} ${experts.isText(name) ? value : format(value)}${unit}`;
    });
    says.textContent = `Layer ${layers[l].layer}, expert ${e}: ${values.join(", ")}`;
  }
  page.listeners.add(update);
  update();
  return element(
    "section", { class: "bar", "aria-label": "Selected expert" },
    says, element("div", { class: "controls" }, layer.element, expert.element, clear),
  );
}
