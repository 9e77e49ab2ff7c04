// Clients' own models: against the global one, and by what each client has; the seeds of a group together.

const DOTS = 2000;
const BINS = 8;
const FEW = 10;
const ofOwn = {measure: null};

/** The groups that are shown, each with those clients that have all of some columns, and their values of these. */
function ownClients(...columns) {
  return data.groups
    .map((group, place) => ({group, place, clients: group.runs
      .filter((run) => columns.every((column) => run.clients?.[column] !== undefined))
      .flatMap((run) => clientNames(run).map((name, row) => ({name, seed: run.seed, never: run.clients.participation?.[row] === 0, values: columns.map((column) => run.clients[column][row])})))
      .filter(({values}) => values.every((value) => value !== null))}))
    .filter(({group, clients}) => !chosen.hidden.has(group.name) && clients.length);
}

const judgedBy = () => (data.clients.some(({name}) => name === "personal_accuracy") ? "accuracy" : "loss");
const ownWords = (measure) => (measure === "gain" ? (judgedBy() === "accuracy" ? "accuracy gained" : "loss saved") : words(measure));
const median = (values) => quantile(cumulated(values).x, 0.5);

/** Of each group dots of its clients, at most so many, open ones for those that have not taken part. */
function ownDots(found, hovertemplate) {
  return found.map(({group, place, clients}) => {
    const dots = evenly(clients, DOTS), symbol = SYMBOLS[place % SYMBOLS.length];
    return {
      x: dots.map(({values}) => values[0]), y: dots.map(({values}) => values[1]), text: dots.map(({name}) => plain(name)), name: plain(group.name), mode: "markers",
      marker: {color: faint(colourOf(place), dots.length > 500 ? 0.35 : 0.7), size: dots.length > 100 ? 5 : 8, symbol: dots.map(({never}) => (never ? `${symbol}-open` : symbol))}, hovertemplate,
    };
  });
}

/** The mean of each of so many bins of about equally many clients, who has the same being in the same; nothing of few. */
function ownMeans({place, clients}) {
  if (clients.length < BINS * FEW) return [];
  const order = clients.map(({values}) => values).sort(([a], [b]) => a - b), binned = new Map();
  let first = 0;
  order.forEach((values, rank) => {
    if (values[0] !== order[first][0]) first = rank;
    const bin = Math.floor((first * BINS) / order.length);
    if (!binned.has(bin)) binned.set(bin, []);
    binned.get(bin).push(values);
  });
  const bins = [...binned.values()];
  const mean = (bin, axis) => bin.reduce((sum, values) => sum + values[axis], 0) / bin.length;
  return [{x: bins.map((bin) => mean(bin, 0)), y: bins.map((bin) => mean(bin, 1)), mode: "lines", hoverinfo: "skip", line: {color: colourOf(place), dash: dashOf(place), width: 2.5}}];
}

/** A thin line between two points. */
const thin = (x, y) => ({x, y, mode: "lines", hoverinfo: "skip", line: {color: "#8c8c8c", width: 1}});

const ownNumbers = (columns) => (most) => {
  const rows = ownClients(...columns).flatMap(({group, clients}) => clients.map(({name, seed, values}) => [group.name, seed, name, ...values]));
  return {head: ["group", "seed", "client", ...columns.map(ownWords)], rows: evenly(rows, most), of: rows.length};
};

function ownAgainst() {
  const kind = judgedBy(), columns = [kind, `personal_${kind}`];
  return makeFigure({
    key: "own-global", title: "Own against global", small: kind === "accuracy" ? "above: better" : "below: better", draw: () => {
      const found = ownClients(...columns);
      if (!found.length) return null;
      const every = found.flatMap(({clients}) => clients.flatMap(({values}) => values));
      const least = every.reduce((a, b) => Math.min(a, b)), most = every.reduce((a, b) => Math.max(a, b));
      const type = kind === "loss" && least > 0 && most > 100 * least ? "log" : "linear";
      const traces = [thin([least, most], [least, most]), ...ownDots(found, "client %{text}: global %{x:.4g}, own %{y:.4g}")];
      const label = `${kind} of each client's own model against that of the global one; medians: ${found.map(({group, clients}) => `${group.name} ${[1, 0].map((axis) => shown(median(clients.map(({values}) => values[axis])))).join(" and ")}`).join(", ")}`;
      return {traces, label, layout: layoutOf({x: {title: `${kind} of the global model`, type}, y: {title: `${kind} of the own model`, type}, hovermode: "closest"})};
    },
    numbers: ownNumbers(columns),
  });
}

function ownBy(column, title, x) {
  return makeFigure({
    key: `own-${column}`, title, draw: () => {
      const found = ownClients(column, ofOwn.measure);
      if (!found.length) return null;
      const traces = [...ownDots(found, `client %{text}: ${x.title} %{x:.4g}, %{y:.4g}`), ...found.flatMap(ownMeans)];
      if (ofOwn.measure === "gain") {
        const every = found.flatMap(({clients}) => clients.map(({values}) => values[0]));
        traces.unshift(thin([every.reduce((a, b) => Math.min(a, b)), every.reduce((a, b) => Math.max(a, b))], [0, 0]));
      }
      return {traces, label: `${ownWords(ofOwn.measure)} of each client by its ${x.title}`, layout: layoutOf({x, y: {title: ownWords(ofOwn.measure)}, hovermode: "closest"})};
    },
    numbers: (most) => ownNumbers([column, ofOwn.measure])(most),
  });
}

function ownClusters() {
  const figure = makeFigure({
    key: "own-clusters", title: "Clusters", small: "who is in which", draw: () => {
      const found = ownClients("client", "cluster");
      if (!found.length) return null;
      const several = found.length > 1, names = [], traces = [];
      for (const {group, place, clients} of found) {
        const seeds = [...new Set(clients.map(({seed}) => seed))];
        for (const seed of seeds) {
          const own = clients.filter((client) => client.seed === seed);
          for (const cluster of [...new Set(own.map(({values}) => values[1]))].sort((a, b) => a - b)) {
            const within = own.filter(({values}) => values[1] === cluster);
            const name = plain(`${several ? `${group.name}, ` : ""}${seeds.length > 1 ? `seed ${seed}, ` : ""}${cluster} (${within.length})`);
            names.push(name);
            const [dots] = ownDots([{group, place, clients: within.map((client) => ({...client, values: [client.values[0], name]}))}], "client %{text}");
            traces.push(dots);
          }
        }
      }
      const y = {type: "category", categoryorder: "array", categoryarray: names, autorange: "reversed", tickfont: {size: 11}, title: "cluster (clients in it)"};
      return {traces, label: `Clusters of clients, and how many are in each: ${names.join(", ")}`, layout: layoutOf({x: {title: "client"}, y, hovermode: "closest", height: Math.max(200, 90 + 26 * names.length)})};
    },
    numbers: ownNumbers(["cluster"]),
  });
  figure.element.classList.add("broad", "low");
  return figure;
}

/** What may be drawn by what clients have. */
function ownSection() {
  if (!find("own-measure")) return;
  const measures = data.clients.map(({name}) => name).filter((name) => name === "gain" || name.startsWith("personal_"));
  measures.sort((one, other) => (other === "gain") - (one === "gain"));
  if (!measures.includes(ofOwn.measure)) ofOwn.measure = measures.includes("gain") ? "gain" : `personal_${judgedBy()}`;
  options("own-measure", measures.map((name) => [name, ownWords(name)]), ofOwn.measure);
}

function ownControls() {
  if (!find("own-measure")) return;
  const known = (column) => data.groups.some(({runs}) => runs.some((run) => run.clients?.[column] !== undefined));
  ownSection();
  const drawn = [
    ...(known("gain") ? [ownAgainst()] : []),
    ...(known("train_examples") ? [ownBy("train_examples", "By training examples", {title: "training examples", type: "log"})] : []),
    ...(known("label_distance") ? [ownBy("label_distance", "By labels", {title: "distance from the mean label distribution"})] : []),
    ...(known("cluster") ? [ownClusters()] : []),
  ];
  find("own-measure").addEventListener("change", (event) => { ofOwn.measure = event.target.value; drawAll(); });
  find("own-figures").replaceChildren(...drawn.map(({element}) => element));
}
