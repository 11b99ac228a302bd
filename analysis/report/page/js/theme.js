/* Light and dark: what the system prefers until the reader chooses. */

const THEME_KEY = "moe-probe-theme";

function storedTheme() {
  try {
    const name = localStorage.getItem(THEME_KEY);
    return name in THEMES ? name : null;
  } catch {
    return null; // A page opened from a file may have no storage.
  }
}

function storeTheme(name) {
  try {
    localStorage.setItem(THEME_KEY, name);
  } catch {
    // The choice holds until the page is closed.
  }
}

/** Start with the theme in force and make the button that changes it. */
function startTheme() {
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = storedTheme();
  const button = document.getElementById("theme");
  const name = () => chosen ?? (prefersDark.matches ? "dark" : "light");
  function apply() {
    document.documentElement.dataset.theme = name();
    button.setAttribute("aria-pressed", String(name() === "dark"));
    useTheme(name());
    recolourAll();
    page.set({ theme: name() });
  }
  button.addEventListener("click", () => {
    chosen = name() === "dark" ? "light" : "dark";
    storeTheme(chosen);
    apply();
  });
  prefersDark.addEventListener("change", apply);
  button.hidden = false;
  apply();
}
