// The curves: a figure a measure, and what is chosen for all of them.

const panels = new Map();
let zoom = null;

function panelOf(measure) {
  const {better} = data.measures.find(({name}) => name === measure);
  const draw = () => {
    const {traces, logarithmic, bands} = pictureOf(measure);
    if (!bands.length) return null;
    const x = {title: data.axes[chosen.axis].label, type: chosen.across ? "log" : "linear", uirevision: String(zoom)};
    const layout = layoutOf({x: zoom ? {...x, range: zoom, autorange: false} : x, y: {type: logarithmic ? "log" : "linear"}});
    const last = bands.slice(0, 6).map(({group, band}) => `${group.name} ${shown(band.mean.at(-1))}`).join(", ");
    return {traces, layout, label: `${words(measure)} against ${data.axes[chosen.axis].label}; last values: ${last}`};
  };
  const figure = makeFigure({
    key: measure, title: words(measure), small: better ? `${better} is better` : "", draw,
    numbers: (most) => tableOf(measure, most), zoomed: (change) => zoomed(figure, change),
  });
  return figure;
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

/** Put up the panels of the measures that are chosen, in the order of the list. */
function arrange() {
  const wanted = data.measures.map(({name}) => name).filter((name) => chosen.measures.has(name));
  for (const [measure, panel] of panels) {
    if (wanted.includes(measure)) continue;
    dropFigure(panel);
    panels.delete(measure);
  }
  for (const measure of wanted) if (!panels.has(measure)) panels.set(measure, panelOf(measure));
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

function options(id, pairs, value) {
  find(id).replaceChildren(...pairs.map(([key, text]) => made("option", {value: key}, text)));
  find(id).value = value;
}

function controls() {
  const on = (id, event, change) => find(id).addEventListener(event, () => { change(find(id)); for (const panel of panels.values()) panel.stale = true; drawSeen(); });
  on("axis", "change", (element) => { chosen.axis = element.value; zoom = null; });
  on("smoothing", "input", (element) => {
    chosen.smoothing = Number(element.value);
    find("smoothed").textContent = chosen.smoothing ? chosen.smoothing.toFixed(2) : "off";
  });
  on("seeds", "change", (element) => { chosen.seeds = element.value; });
  on("vertical", "change", (element) => { chosen.vertical = element.value; });
  on("horizontal", "change", (element) => { chosen.across = element.checked; zoom = null; });
  find("reset").addEventListener("click", () => {
    zoom = null;
    for (const {plot} of panels.values()) if (plot.data) Plotly.relayout(plot, {"xaxis.autorange": true, "yaxis.autorange": true});
  });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  filterList("measure-filter", "measures");
  filterList("group-filter", "legend");
}

/** Show of a list the items that have the text of an input. */
function filterList(input, list) {
  find(input).addEventListener("input", () => {
    const text = find(input).value.toLowerCase();
    for (const item of find(list).children) item.hidden = !item.textContent.toLowerCase().includes(text);
  });
}

/** The list of groups says which are shown, by their names. */
function legend() {
  const boxes = () => all("#legend input");
  const changed = () => {
    chosen.hidden = new Set(boxes().filter((box) => !box.checked).map((box) => data.groups[box.dataset.group].name));
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
}
