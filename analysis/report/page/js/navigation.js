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
      mine[0].draw();
      await painted();
    }
  }
  return cards;
}

/** Draw each view when it comes near the screen, and all of them before printing. */
function drawWhenNear(cards) {
  const byElement = new Map(cards.map((card) => [card.element, card]));
  const observer = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        observer.unobserve(target);
        byElement.get(target).draw();
      }
    }
  }, { rootMargin: "400px" });
  for (const card of cards) observer.observe(card.element);
  addEventListener("beforeprint", () => cards.forEach((card) => card.draw()));
}
