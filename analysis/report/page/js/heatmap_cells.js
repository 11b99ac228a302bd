/* From places of the map to experts and back, by pointer and by keyboard. */

/** The expert at a place of the map: [place of the layer, expert], or null. */
function cellAt({ order }, x, y) {
  const { layers, N } = page.data;
  const [column, l] = [Math.round(x), Math.round(y)];
  const isInside = l >= 0 && l < layers.length && column >= 0 && column < N;
  const e = isInside ? order[l * N + column] : -1;
  return e < 0 ? null : [l, e];
}

/** Where the selected expert is: [column, place of the layer], or null. */
function selectedPlace({ order }) {
  const { layer: l, expert: e } = page.state;
  const N = page.data.N;
  return l === null ? null : [order.subarray(l * N, (l + 1) * N).indexOf(e), l];
}

const STEPS = {
  ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1],
};

/**
 * Let arrow keys move the selection, and say in a status region where it is.
 * @param {HTMLElement} host
 * @param {() => object} get what is shown
 * @returns {(shown: object) => void} says it
 */
function moveByKeys(host, get) {
  const { layers, N } = page.data;
  const status = element("p", { class: "status", role: "status" });
  const plot = host.querySelector(".plot");
  plot.tabIndex = 0;
  plot.setAttribute("role", "application");
  plot.setAttribute("aria-label", "Map of layers by experts. Arrow keys select an expert.");
  host.after(status);
  plot.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (event.key === "Escape") page.select(null);
    if (!step) return;
    event.preventDefault();
    const shown = get();
    const [column, l] = selectedPlace(shown) ?? [-step[0], -step[1]];
    const nextLayer = Math.max(0, Math.min(l + step[1], layers.length - 1));
    const last = layers[nextLayer].num_experts - 1;
    const nextColumn = Math.max(0, Math.min(column + step[0], last));
    page.select(nextLayer, shown.order[nextLayer * N + nextColumn]);
  });
  let said = "";
  return (shown) => {
    const { layer: l, expert: e } = page.state;
    const text = l === null ? "" : cellText(shown, l, e).join("; ");
    if (text !== said) status.textContent = text;
    said = text;
  };
}
