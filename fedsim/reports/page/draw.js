// The curves' panels and controls, and how the page begins.

const panels = new Map();
let seen = null, zoom = null;

function layoutOf(title, logarithmic, across) {
  const dark = isDark(), ink = dark ? "#e6e9ed" : "#1b1f24", grid = dark ? "#313842" : "#e5e8ec";
  const axis = {gridcolor: grid, linecolor: dark ? "#596270" : "#9aa4af", zeroline: false, automargin: true, tickfont: {size: 11}, title: {font: {size: 12}, standoff: 6}};
  return {
    margin: {l: 52, r: 10, t: 8, b: 42}, showlegend: false, hovermode: data.groups.length > 8 ? "closest" : "x unified", dragmode: "zoom",
    font: {color: ink, family: "system-ui, sans-serif", size: 12}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: {bgcolor: dark ? "#262d36" : "#ffffff", bordercolor: dark ? "#596270" : "#9aa4af", font: {color: ink, size: 12}},
    xaxis: {...axis, title: {...axis.title, text: plain(title)}, type: across ? "log" : "linear", exponentformat: "SI"},
    yaxis: {...axis, type: logarithmic ? "log" : "linear", exponentformat: "power"},
  };
}

const CONFIG = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"], toImageButtonOptions: {format: "svg"}};

function drawPanel(panel) {
  const {traces, logarithmic, bands} = pictureOf(panel.measure);
  panel.stale = false;
  const layout = layoutOf(data.axes[chosen.axis].label, logarithmic, chosen.across);
  if (zoom) layout.xaxis = {...layout.xaxis, range: zoom, autorange: false};
  panel.nothing.hidden = bands.length > 0;
  Plotly.react(panel.plot, traces, layout, {...CONFIG, toImageButtonOptions: {format: "svg", filename: panel.measure}});
  const end = bands.map(({group, band}) => `${group.name} ${shown(band.mean.at(-1))}`).slice(0, 6).join(", ");
  panel.plot.setAttribute("aria-label", `${words(panel.measure)} against ${data.axes[chosen.axis].label}; last values: ${end || "none"}`);
  if (!panel.listening) {
    panel.listening = true;
    panel.plot.on("plotly_relayout", (change) => zoomed(panel, change));
  }
  if (panel.numbers.open) fillNumbers(panel);
}

/** Every panel has the horizontal range of the one that was zoomed. */
function zoomed(panel, change) {
  if (!Object.keys(change).some((name) => name.startsWith("xaxis."))) return;
  const {range, autorange} = panel.plot.layout.xaxis;
  const next = autorange ? null : [...range];
  if (JSON.stringify(next) === JSON.stringify(zoom)) return;
  zoom = next;
  for (const other of panels.values()) if (other !== panel) other.stale = true;
  drawSeen();
}

function fillNumbers(panel) {
  const {head, rows, of} = tableOf(panel.measure, 60);
  const table = made("table", {}, made("caption", {}, `${words(panel.measure)}${rows.length < of ? `, ${rows.length} of ${of} points` : ""}`),
    made("thead", {}, made("tr", {}, ...head.map((text) => made("th", {scope: "col"}, text)))),
    made("tbody", {}, ...rows.map(([place, ...values]) => made("tr", {}, made("th", {scope: "row"}, shown(place)), ...values.map((value) => made("td", {}, shown(value)))))));
  const save = made("button", {type: "button"}, "save all as CSV");
  save.addEventListener("click", () => saveCsv(panel.measure));
  panel.numbers.replaceChildren(panel.numbers.firstElementChild, made("div", {class: "wide", role: "region", tabindex: "0", "aria-label": words(panel.measure)}, table), save);
}

function saveCsv(measure) {
  const {head, rows} = tableOf(measure, Infinity);
  // A text that a spreadsheet would take for a formula begins with a quote.
  const quoted = (value) => `"${String(value ?? "").replace(/^[=+\-@\t]/, (sign) => (typeof value === "number" ? sign : `'${sign}`)).replaceAll('"', '""')}"`;
  const text = [head, ...rows].map((row) => row.map(quoted).join(",")).join("\n");
  const link = made("a", {href: URL.createObjectURL(new Blob([text], {type: "text/csv"})), download: `${measure}.csv`});
  link.click();
  URL.revokeObjectURL(link.href);
}

function makePanel(measure) {
  const {better} = data.measures.find(({name}) => name === measure);
  const plot = made("div", {class: "plot", role: "img"});
  const broad = made("button", {type: "button", "aria-pressed": "false"}, "wide");
  const numbers = made("details", {}, made("summary", {}, "numbers"));
  const nothing = made("p", {}, "No number of the groups that are shown has both.");
  const element = made("article", {class: "panel", "data-measure": measure},
    made("h3", {}, words(measure), made("small", {}, better ? `${better} is better` : "")), nothing, plot, made("div", {class: "row"}, broad), numbers);
  const panel = {measure, element, plot, numbers, nothing, stale: true, visible: false};
  broad.addEventListener("click", () => {
    broad.setAttribute("aria-pressed", String(element.classList.toggle("broad")));
    Plotly.Plots.resize(plot);
  });
  numbers.addEventListener("toggle", () => numbers.open && fillNumbers(panel));
  element.panel = panel;
  seen.observe(element);
  return panel;
}

/** Draw the panels that are in sight and not up to date. */
function drawSeen() {
  if (typeof Plotly === "undefined") return;
  for (const panel of panels.values()) if (panel.visible && panel.stale) drawPanel(panel);
}

function drawAll() {
  for (const panel of panels.values()) panel.stale = true;
  drawSeen();
}

/** Put up the panels of the measures that are chosen, in the order of the list. */
function arrange() {
  const wanted = data.measures.map(({name}) => name).filter((name) => chosen.measures.has(name));
  for (const [measure, panel] of panels) {
    if (wanted.includes(measure)) continue;
    seen.unobserve(panel.element);
    if (panel.plot.data) Plotly.purge(panel.plot);
    panel.element.remove();
    panels.delete(measure);
  }
  for (const measure of wanted) if (!panels.has(measure)) panels.set(measure, makePanel(measure));
  find("panels").replaceChildren(...wanted.map((measure) => panels.get(measure).element));
  find("chosen").textContent = `${wanted.length} of ${data.measures.length} shown`;
}

function measuresList() {
  find("measures").replaceChildren(...data.measures.map(({name}) => {
    const box = made("input", {type: "checkbox", ".checked": chosen.measures.has(name), ".value": name});
    box.addEventListener("change", () => {
      if (box.checked) chosen.measures.add(name);
      else chosen.measures.delete(name);
      arrange();
    });
    return made("li", {}, made("label", {}, box, words(name)));
  }));
}

function controls() {
  const axis = find("axis");
  axis.replaceChildren(...Object.entries(data.axes).map(([key, {label}]) => made("option", {value: key}, label)));
  axis.value = chosen.axis;
  const on = (id, event, change) => find(id).addEventListener(event, () => { change(find(id)); drawAll(); });
  on("axis", "change", (element) => { chosen.axis = element.value; zoom = null; });
  on("smoothing", "input", (element) => {
    chosen.smoothing = Number(element.value);
    find("smoothed").textContent = chosen.smoothing ? chosen.smoothing.toFixed(2) : "off";
  });
  on("seeds", "change", (element) => { chosen.seeds = element.value; });
  on("vertical", "change", (element) => { chosen.vertical = element.value; });
  on("horizontal", "change", (element) => { chosen.across = element.checked; zoom = null; });
  on("reset", "click", () => { zoom = null; for (const {plot} of panels.values()) if (plot.data) Plotly.relayout(plot, {"xaxis.autorange": true, "yaxis.autorange": true}); });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("measure-filter").addEventListener("input", (event) => {
    const text = event.target.value.toLowerCase();
    for (const item of find("measures").children) item.hidden = !item.textContent.toLowerCase().includes(text);
  });
}

function legend() {
  const boxes = () => all("#legend input");
  const changed = () => {
    chosen.hidden = new Set(boxes().filter((box) => !box.checked).map((box) => Number(box.dataset.group)));
    drawAll();
  };
  const set = (wanted) => { for (const box of boxes()) box.checked = wanted(box); changed(); };
  find("legend").addEventListener("change", changed);
  find("legend").addEventListener("click", (event) => {
    const only = event.target.closest(".only");
    if (only) set((box) => box.dataset.group === only.dataset.group);
  });
  find("all").addEventListener("click", () => set(() => true));
  find("none").addEventListener("click", () => set(() => false));
  find("group-filter").addEventListener("input", (event) => {
    const text = event.target.value.toLowerCase();
    for (const item of find("legend").children) item.hidden = !item.textContent.toLowerCase().includes(text);
  });
}

/** Mark in the list of sections the one that is read. */
function sections() {
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  const observer = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id).setAttribute("aria-current", "true");
    }
  }, {rootMargin: "-10% 0px -80% 0px"});
  for (const id of links.keys()) observer.observe(find(id));
}

async function begin() {
  sortable();
  filters();
  sections();
  if (innerWidth < 820) find("groups").open = false;
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is older than 2023");
  const plotly = inflated("plotly");
  data = await numbersOf(document);
  chosen.axis = data.along;
  chosen.measures = new Set(data.first);
  swatches();
  controls();
  legend();
  measuresList();
  seen = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.target.panel.visible = entry.isIntersecting;
    drawSeen();
  }, {rootMargin: "200px"});
  themes(drawAll);
  arrange();
  document.head.append(made("script", {".textContent": await plotly}));
  drawSeen();
  document.documentElement.dataset.drawn = "";
}

begin().catch((error) => {
  find("trouble").textContent = `The pictures cannot be drawn: ${error.message}. The tables are whole.`;
  find("trouble").hidden = false;
});
