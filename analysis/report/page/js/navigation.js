/* Sections with their views, and links to them. */

const SECTIONS = {
  overview: "Relative load",
  load: "Load and balance",
  idle: "Idle experts",
  subjects: "Subjects",
  structure: "Structure of routing",
  devices: "Devices",
  documents: "Documents",
};

/** Two frames: what was drawn is then on the screen. */
const painted = () => new Promise((done) => {
  requestAnimationFrame(() => requestAnimationFrame(done));
});

/**
 * Put every view into its section and a link to each section into the navigation. The first view
 * is drawn before any other is made.
 * @returns {Promise<Card[]>}
 */
async function buildSections() {
  const place = document.getElementById("views");
  const links = document.getElementById("sections");
  const cards = [];
  for (const [id, title] of Object.entries(SECTIONS)) {
    const mine = views.filter((view) => view.section === id).map(makeCard);
    if (!mine.length) continue;
    const heading = element("h2", { id: `section-${id}`, tabindex: -1 }, title);
    place.append(element(
      "section", { "aria-labelledby": heading.id }, heading, ...mine.map((card) => card.element),
    ));
    links.append(element("li", {}, element("a", { href: `#${heading.id}` }, title)));
    cards.push(...mine);
    if (cards.length === mine.length) {
      mine[0].setNear(true);
      await painted();
    }
  }
  return cards;
}

/** Keep views current that are close to the screen, and all of them on paper. */
function drawWhenNear(cards) {
  const byElement = new Map(cards.map((card) => [card.element, card]));
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      byElement.get(target).setNear(isIntersecting);
    }
  }, { rootMargin: "400px" });
  for (const card of cards) observer.observe(card.element);
  // Two listeners: between them Bokeh takes over the data, which it does not do at once.
  addEventListener("beforeprint", () => cards.forEach((card) => card.catchUp()));
  addEventListener("beforeprint", paintAll);
  const button = document.getElementById("print");
  button.hidden = false;
  // What is drawn for the first time appears later, and the browser's own command does not wait.
  button.addEventListener("click", async () => {
    cards.forEach((card) => card.catchUp());
    await allShown();
    await painted();
    print();
  });
}
