/* Start: read the data, then BokehJS, then draw what is on the screen. */

/** @param {string} id text of a script element that is no script */
const block = (id) => document.getElementById(id).textContent;

async function start() {
  performance.mark("moe-probe-start");
  const blocks = ["moe-probe-data", "moe-probe-bokeh"].map((id) => inflate(block(id)));
  const [data, bokeh] = await Promise.all(blocks);
  page.data = makeData(decode(data));
  document.head.append(element("script", {}, new TextDecoder().decode(bokeh)));
  startTheme();
  const cards = await buildSections();
  document.getElementById("foot").append(selectionBar());
  drawWhenNear(cards);
  if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  document.documentElement.dataset.ready = "";
}

globalThis.MoeProbe = {
  page, view, select, slider, checkbox, number, element, layerOptions, subjectOptions, wholeTable,
  csv, format, shareInterval, fairBand,
};

start().catch((error) => {
  const message = document.getElementById("problem");
  message.textContent =
    `The figures cannot be shown: ${error.message}. A browser of 2023 or later is needed.`;
  message.hidden = false;
  console.error(error);
});
