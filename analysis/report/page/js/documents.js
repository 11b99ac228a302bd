/* One document token by token: which experts each token selected. */

/* Without the grey one, which would look like no colour. */
const EXPERT_COLOURS = CATEGORICAL.filter((_, place) => place !== 6);
const MOST_COLOURED = EXPERT_COLOURS.length;

view({
  id: "document",
  section: "documents",
  title: "One document, token by token",
  note:
    "Each box is a token; below it stands the expert in the chosen slot. The seven experts that most " +
    "tokens of the excerpt have there are coloured. A solid frame: the selected expert is in this " +
    "slot; a dotted one: in another slot. Point at a token for all its experts; click it, or press " +
    "Enter, to select the one shown. Arrow keys go from token to token. Excerpts begin after the " +
    "few-shot prefix and show all tokens, whatever the counting rule.",
  available: () => page.data.meta.documents.length > 0 || noDocuments(),
  controls: () => [
    select({
      label: "Document",
      options: page.data.meta.documents.map((_, d) => ({ value: d, label: documentName(d) })),
      get: () => page.state.document ?? 0,
      set: (d) => page.set({ document: Number(d) }),
    }),
    oneLayerControl(),
    select({
      label: "Slot",
      options: slotOptions(),
      get: shownSlot,
      set: (slot) => page.set({ slot: Number(slot) }),
    }),
  ],
  draw: drawDocument,
  table: documentTable,
});

function noDocuments() {
  const which = page.data.meta.has_rows ? " with token ids after a few-shot prefix" : "";
  return `the trace has no rows of tokens${which}`;
}

function documentName(d) {
  const { subject, doc_id, sequence_id } = page.data.meta.documents[d];
  const which = doc_id < 0 ? `sequence ${sequence_id}` : `document ${doc_id}`;
  return `${subjectName(subject, 30)}, ${which}`;
}

function slotOptions() {
  const most = Math.max(...page.data.layers.map(({ top_k }) => top_k));
  const named = page.data.meta.slot_order !== "unknown";
  return Array.from({ length: most }, (_, slot) => (
    { value: slot, label: `${slot + 1}${named && slot === 0 ? " (first choice)" : ""}` }));
}

/** The slot that is shown, of a layer that has as many. */
const shownSlot = () => Math.min(page.state.slot ?? 0, page.data.layers[oneLayer()].top_k - 1);

/**
 * The tokens of the excerpt that is shown, at the layer that is shown.
 * @returns {{position: number, id: number, text: string|null, segment: string, experts: number[]}[]}
 *   experts by slot; NaN for an empty slot
 */
function shownTokens() {
  const { layers, meta, array } = page.data;
  const d = page.state.document ?? 0;
  const { start, tokens } = meta.documents[d];
  const first = meta.documents.slice(0, d).reduce((sum, one) => sum + one.tokens, 0);
  const l = oneLayer();
  const { top_k, num_experts } = layers[l];
  const all = array("documents.token_id").values.length;
  const before = layers.slice(0, l).reduce((sum, one) => sum + all * one.top_k, 0);
  const ids = array("documents.ids").values;
  return Array.from({ length: tokens }, (_, t) => {
    const id = array("documents.token_id").values[first + t];
    const at = before + (first + t) * top_k;
    return {
      position: start + t,
      id,
      text: meta.token_texts?.[id] ?? null,
      segment: meta.segments[array("documents.segment").values[first + t]],
      experts: Array.from(ids.subarray(at, at + top_k), (e) => (e < num_experts ? e : NaN)),
    };
  });
}

/** Experts by how many of the tokens have them in the slot: [expert, tokens], most first. */
function commonExperts(tokens, slot) {
  const found = new Map();
  for (const { experts } of tokens) {
    if (!Number.isNaN(experts[slot])) found.set(experts[slot], (found.get(experts[slot]) ?? 0) + 1);
  }
  return [...found].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
}

/** A token as one line of text: spaces and line ends are to be seen. */
function tokenText({ text, id }) {
  if (text === null) return String(id);
  return text.replace(/\r?\n/g, "⏎").replace(/\t/g, "⇥").replace(UNPRINTABLE, "?") || "∅";
}

function drawDocument(host) {
  const chips = element("div", { class: "chips", role: "group", "aria-label": "Tokens of the document" });
  const key = element("div");
  const [says, about] = [element("p", { class: "status", role: "status" }), element("p", { class: "status" })];
  host.append(key, chips, says, about);
  host.style.minHeight = "0";
  let [tokens, focused] = [[], 0];
  const boxes = () => chips.querySelectorAll("button");
  const say = (t) => void (says.textContent = tokens[t] ? tokenWords(tokens[t]) : "");

  function focus(t) {
    boxes()[focused]?.setAttribute("tabindex", "-1");
    focused = Math.max(0, Math.min(t, tokens.length - 1));
    boxes()[focused].setAttribute("tabindex", "0");
    boxes()[focused].focus();
  }
  const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -Infinity, End: Infinity };
  chips.addEventListener("keydown", (event) => {
    if (!(event.key in steps)) return;
    event.preventDefault();
    focus(focused + steps[event.key]);
  });
  const tokenOf = ({ target }) => Number(target.closest("button")?.dataset.token ?? -1);
  for (const kind of ["pointerover", "focusin"]) chips.addEventListener(kind, (event) => say(tokenOf(event)));
  chips.addEventListener("click", (event) => {
    const token = tokens[tokenOf(event)];
    if (!token) return;
    const expert = token.experts[shownSlot()];
    page.select(...(Number.isNaN(expert) ? [null] : [oneLayer(), expert]));
  });

  return (changes) => {
    if (!concerns(changes, "document", "slot", "shownLayer", "layer", "expert")) return;
    if (concerns(changes, "document", "slot", "shownLayer")) {
      tokens = shownTokens();
      focused = 0;
      const common = commonExperts(tokens, shownSlot());
      chips.replaceChildren(...chipsOf(tokens, common));
      key.replaceChildren();
      addKey(key, documentKey(common, tokens.length));
    }
    tokens.forEach((token, t) => markToken(boxes()[t], token));
    about.textContent = documentWords(tokens);
  };
}

/** Boxes of the tokens, with the name of each stretch of the prompt before it. */
function chipsOf(tokens, common) {
  const colour = new Map(common.slice(0, MOST_COLOURED).map(([e], place) => [e, EXPERT_COLOURS[place]]));
  return tokens.flatMap((token, t) => {
    const expert = token.experts[shownSlot()];
    const box = element(
      "button", { type: "button", "data-token": t, tabindex: t ? -1 : 0 },
      element("span", {}, tokenText(token)), element("small", {}, Number.isNaN(expert) ? "–" : String(expert)),
    );
    if (colour.has(expert)) box.style.setProperty("--expert", colour.get(expert));
    const isNew = token.segment !== tokens[t - 1]?.segment;
    return isNew ? [element("span", { class: "segment" }, token.segment), box] : [box];
  });
}

/** Frame a token that selects the selected expert. */
function markToken(box, { experts }) {
  const { layer, expert } = page.state;
  const slot = layer === oneLayer() ? experts.indexOf(expert) : -1;
  box.classList.toggle("chosen", slot >= 0 && slot === shownSlot());
  box.classList.toggle("elsewhere", slot >= 0 && slot !== shownSlot());
  box.setAttribute("aria-pressed", String(slot >= 0));
}

function documentKey(common, tokens) {
  const { num_experts } = page.data.layers[oneLayer()];
  const chance = `others; by chance each ${format(tokens / num_experts, 2)} of ${format(tokens)} tokens`;
  return [
    ...common.slice(0, MOST_COLOURED).map(([e, number], place) => (
      { mark: "square", color: EXPERT_COLOURS[place], label: `expert ${e}: ${format(number)} tokens` })),
    { mark: "square", color: "transparent", label: chance },
  ];
}

function tokenWords(token) {
  const experts = token.experts.map((e) => (Number.isNaN(e) ? "none" : e)).join(", ");
  const name = token.text === null ? `token id ${token.id}` : `“${tokenText(token)}” (token id ${token.id})`;
  return `${name} at position ${token.position}, ${token.segment}: experts ${experts}, by slot.`;
}

/** How often the selected expert is used here, beside all text and chance. */
function documentWords(tokens) {
  const { layers, meta, counts, N } = page.data;
  const { num_tokens } = meta.documents[page.state.document ?? 0];
  const l = oneLayer();
  const shown = `${format(tokens.length)} of the sequence's ${format(num_tokens)} tokens are shown.`;
  if (page.state.layer !== l) return `${shown} No expert of this layer is selected.`;
  const e = page.state.expert;
  const number = tokens.filter(({ experts }) => experts.includes(e)).length;
  const everywhere = counts.all()[l * N + e] / counts.tokens.all()[l];
  const percent = (share) => `${format(100 * share, 3)} %`;
  const { num_experts, mean_k } = layers[l];
  return `${shown} Expert ${e} is in any slot of ${format(number)} of them, ${percent(number / tokens.length)}; ` +
    `of all counted tokens ${percent(everywhere)}, fair ${percent(mean_k / num_experts)}.`;
}

function documentTable() {
  const { layers } = page.data;
  const l = oneLayer();
  const slots = Array.from({ length: layers[l].top_k }, (_, slot) => `expert_${slot + 1}`);
  const names = ["layer", "position", "token_id", "text", "segment", ...slots];
  const rows = shownTokens().map(({ position, id, text, segment, experts }) =>
    [layers[l].layer, position, id, text, segment, ...experts]);
  return {
    columns: columnsOf(names, ["text", "segment"]), rows,
    caption: `${documentName(page.state.document ?? 0)}, layer ${layers[l].layer}: experts by slot. ` +
      "All tokens, whatever the counting rule.",
    origin: { counting_rule: null, token_order: null },
  };
}
