// What the final models come to on each client: distributions over clients, a scatter by size, and a table of one run.

const WORST = 10;
const LINES = 100;
const ofClients = {measure: null, run: null, every: false};

/** The groups that are shown and have clients, each with the values of a column in all its runs together. */
function clientValues(column) {
  return data.groups
    .map((group, place) => ({group, place, runs: group.runs.filter((run) => run.clients?.[column] !== undefined)}))
    .filter(({group, runs}) => !chosen.hidden.has(group.name) && runs.length)
    .map((found) => ({...found, values: found.runs.flatMap((run) => run.clients[column]).filter((value) => value !== null)}))
    .filter(({values}) => values.length);
}

const cumulated = (values) => {
  const sorted = [...values].sort((a, b) => a - b);
  return {x: sorted, y: sorted.map((_, place) => (place + 1) / sorted.length)};
};

const quantile = (sorted, share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];

function clientFigures() {
  const name = () => words(ofClients.measure);
  const distribution = makeFigure({
    key: "clients", title: "Share of clients at or below", draw: () => {
      const found = clientValues(ofClients.measure);
      if (!found.length) return null;
      const traces = found.map(({group, place, values}) => ({
        ...cumulated(values), name: plain(group.name), mode: "lines", line: {color: colourOf(place), dash: dashOf(place), width: 2, shape: "hv"},
        hovertemplate: "%{x:.4g}: %{y:.1%}",
      }));
      const label = `Share of clients whose ${name()} is at or below a value; medians: ${found.map(({group, values}) => `${group.name} ${shown(quantile(cumulated(values).x, 0.5))}`).join(", ")}`;
      return {traces, label, layout: layoutOf({x: {title: name()}, y: {tickformat: ".0%", range: [0, 1.02]}, hovermode: "closest"})};
    },
    numbers: () => {
      const shares = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1];
      const found = clientValues(ofClients.measure).map(({group, values}) => [group.name, cumulated(values).x]);
      return {head: ["share of clients", ...found.map(([group]) => group)], of: shares.length,
        rows: shares.map((share) => [`${share * 100} %`, ...found.map(([, sorted]) => quantile(sorted, share))])};
    },
  });
  const histogram = makeFigure({
    key: "histogram", title: "Clients by their value", draw: () => {
      const found = clientValues(ofClients.measure);
      if (!found.length) return null;
      const every = found.flatMap(({values}) => values);
      const least = every.reduce((a, b) => Math.min(a, b)), most = every.reduce((a, b) => Math.max(a, b));
      const size = 1.0001 * (most - least) / 20 || 1;  // so that the greatest is in the last one
      const traces = found.map(({group, place, values}) => ({
        type: "histogram", x: values, name: plain(group.name), xbins: {start: least, end: most, size}, histnorm: "percent",
        marker: {color: faint(colourOf(place), 0.75), line: {color: colourOf(place), width: 1}, pattern: {shape: PATTERNS[place % PATTERNS.length], fgcolor: "#ffffff", fgopacity: 0.55, size: 7, fillmode: "overlay"}},
        hovertemplate: "%{x}: %{y:.1f} %",
      }));
      return {traces, label: `Histogram of ${name()} over clients`, layout: layoutOf({x: {title: name()}, y: {ticksuffix: " %"}, barmode: "group", bargap: 0.05})};
    },
    numbers: () => ({head: ["group", "clients", "mean", "least", "greatest"], of: 0, rows: clientValues(ofClients.measure).map(({group, values}) => [
      group.name, values.length, values.reduce((a, b) => a + b, 0) / values.length, values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))])}),
  });
  const scatter = makeFigure({
    key: "sizes", title: "By number of examples", draw: () => {
      const found = clientValues("examples").filter(({runs}) => runs[0].clients[ofClients.measure]);
      if (!found.length) return null;
      const traces = found.map(({group, place, runs}) => ({
        x: runs.flatMap((run) => run.clients.examples), y: runs.flatMap((run) => run.clients[ofClients.measure]), name: plain(group.name), mode: "markers",
        text: runs.flatMap((run) => clientNames(run).map(plain)),
        marker: {color: faint(colourOf(place), 0.7), size: 7, symbol: SYMBOLS[place % SYMBOLS.length]}, hovertemplate: "client %{text}: %{x} examples, %{y:.4g}",
      }));
      return {traces, label: `${name()} of each client by its number of examples`, layout: layoutOf({x: {title: "examples"}, y: {title: name()}, hovermode: "closest"})};
    },
    numbers: (most) => {
      const rows = clientValues("examples").flatMap(({group, runs}) => runs.flatMap((run) => clientNames(run).map((client, place) => [group.name, run.seed, client, run.clients.examples[place], run.clients[ofClients.measure]?.[place]])));
      return {head: ["group", "seed", "client", "examples", name()], rows: evenly(rows, most), of: rows.length};
    },
  });
  const sized = data.groups.some(({runs}) => runs.some((run) => run.clients?.examples));
  find("client-figures").replaceChildren(...[distribution, histogram, ...(sized ? [scatter] : [])].map(({element}) => element));
}

const PATTERNS = ["", "/", ".", "x", "\\", "-", "+"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "x", "cross", "star"];

/** What the clients of a run are called. */
const clientNames = (run) => run.clients.name ?? run.clients.client;

/** The table of one run's clients, the worst first, and a sentence on them. */
function clientTable() {
  const [group, seed] = ofClients.run.split(" ").map(Number);
  const run = data.groups[group].runs[seed];
  const {measure} = ofClients, {better} = data.clients.find(({name}) => name === measure);
  const columns = [...new Set(["examples", "train_examples", "label_distance", "participation", "cluster", ...data.clients.map(({name}) => name)])].filter((column) => run.clients[column] !== undefined);
  const names = clientNames(run), values = run.clients[measure] ?? [];
  const order = names.map((_, place) => place).sort((one, other) => {
    const [a, b] = [values[one] ?? null, values[other] ?? null];
    if (a === null || b === null) return (a === null) - (b === null);
    return better === "lower" ? b - a : a - b;
  });
  const kept = ofClients.every ? order : order.slice(0, LINES);
  const head = (text) => made("th", {scope: "col"}, made("button", {type: "button"}, text));
  const cell = (value) => made("td", value === null ? {} : {"data-number": value}, shown(value));
  const table = made("table", {id: "table-clients", class: "sortable"},
    made("caption", {}, `${data.groups[group].name}${data.groups[group].runs.length > 1 ? `, seed ${run.seed}` : ""}: ${kept.length < order.length ? `the ${kept.length} worst of ${order.length} clients` : `${order.length} clients`} by ${words(measure)}`),
    made("thead", {}, made("tr", {}, head("client"), ...columns.map((column) => head(words(column))))),
    made("tbody", {}, ...kept.map((place) => made("tr", {}, made("th", {scope: "row"}, String(names[place])), ...columns.map((column) => cell(run.clients[column][place]))))));
  const before = sorted["table-clients"];
  find("client-table").replaceChildren(made("div", {class: "wide", role: "region", tabindex: "0", "aria-label": "Clients"}, table));
  sortable(find("client-table"));
  if (before === undefined) all("thead th", table)[columns.indexOf(measure) + 1]?.setAttribute("aria-sort", better === "lower" ? "descending" : "ascending");
  find("every-client").hidden = order.length <= LINES;
  const worst = order.filter((place) => values[place] !== null).slice(0, WORST);
  find("worst").textContent = worst.length ? `Worst by ${words(measure)}: ${worst.map((place) => `${names[place]} (${shown(values[place])})`).join(", ")}.` : "";
}

function clientSection() {
  if (!data.clients.length) return;
  const measures = data.clients.map(({name}) => name);
  if (!measures.includes(ofClients.measure)) ofClients.measure = measures.includes("accuracy") ? "accuracy" : measures[0];
  options("client-measure", measures.map((name) => [name, words(name)]), ofClients.measure);
  const runs = data.groups.flatMap((group, place) => group.runs.flatMap((run, number) => (run.clients ? [[`${place} ${number}`, `${group.name}${group.runs.length > 1 ? `, seed ${run.seed}` : ""}`]] : [])));
  if (!runs.some(([key]) => key === ofClients.run)) ofClients.run = runs[0][0];
  options("client-run", runs, ofClients.run);
  clientTable();
}

function clientControls() {
  if (!data.clients.length) return;
  find("client-measure").addEventListener("change", (event) => { ofClients.measure = event.target.value; delete sorted["table-clients"]; clientTable(); drawAll(); });
  find("client-run").addEventListener("change", (event) => { ofClients.run = event.target.value; clientTable(); });
  find("every-client").addEventListener("click", () => { ofClients.every = !ofClients.every; find("every-client").textContent = ofClients.every ? "show the worst" : "show all"; clientTable(); });
  clientFigures();
  clientSection();
}
