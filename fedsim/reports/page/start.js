// What the other scripts share: what is chosen, the numbers, colours, and small ways to make and find elements.

const chosen = {axis: "round", smoothing: 0, seeds: "band", vertical: "auto", across: false, hidden: new Set(), measures: null};
let data = null;

const find = (id) => document.getElementById(id);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];

/** An element with attributes, properties that begin with a dot, and children, which are texts or elements. */
function made(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith(".")) element[name.slice(1)] = value;
    else if (value !== null) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** The text that an element of `page` holds as deflate in Base64. */
async function inflated(id, page = document) {
  const text = page.getElementById(id).textContent;
  const letters = atob(text), bytes = new Uint8Array(letters.length);
  for (let place = 0; place < bytes.length; place += 1) bytes[place] = letters.charCodeAt(place);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Response(stream).text();
}

/** The numbers of a page, with every column as a list. */
async function numbersOf(page) {
  const found = JSON.parse(await inflated("numbers", page));
  for (const run of found.groups.flatMap((group) => group.runs)) {
    for (const table of run.clients ? [run, run.clients] : [run]) {
      const columns = table.columns ?? table;
      for (const [name, column] of Object.entries(columns)) {
        if (name !== "rows" && !Array.isArray(column)) columns[name] = new Array(table.rows).fill(column);
      }
    }
  }
  return found;
}

/** A text for Plotly, which takes some HTML for markup. */
const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

const words = (name) => name.replaceAll("_", " ");
const shown = (value) => (value === null || value === undefined ? "–" : typeof value !== "number" ? value : Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(5))));
const colourOf = (place) => data.colours[place % data.colours.length];
const dashOf = (place) => data.dashes[place % data.dashes.length];
const LENGTHS = {solid: "", dash: "7 4", dot: "2 3", dashdot: "7 3 2 3"};

/** Draw beside each name of a group the line that stands for it in all pictures. */
function swatches(within = document) {
  for (const place of all(".swatch", within)) {
    const group = Number(place.dataset.group);
    place.innerHTML = `<svg width="26" height="10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="${colourOf(group)}" stroke-width="3" stroke-dasharray="${LENGTHS[dashOf(group)]}"/></svg>`;
  }
}

const THEMES = ["auto", "light", "dark"];
const system = matchMedia("(prefers-color-scheme: dark)");
let printed = false;

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return !printed && (theme === "dark" || (theme !== "light" && system.matches));
}

/** Light, dark, or as the system has it; kept for the next page where the browser lets it. */
function themes(changed) {
  const button = find("theme");
  const set = (theme) => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `theme: ${theme}`;
  };
  set(THEMES.includes(remembered("theme")) ? remembered("theme") : "auto");
  button.addEventListener("click", () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
    set(next);
    remember("theme", next);
    changed();
  });
  system.addEventListener("change", changed);
  addEventListener("beforeprint", () => { printed = true; changed(); });
  addEventListener("afterprint", () => { printed = false; changed(); });
}

// A browser may keep nothing for pages that are opened from disk.
function remembered(name) {
  try { return localStorage.getItem(`fedsim-${name}`); } catch { return null; }
}

function remember(name, value) {
  try { localStorage.setItem(`fedsim-${name}`, value); } catch { /* then the next page begins as the system has it */ }
}
