// Virtual time: when the first clients worked on which version, how stale replies were, how often clients took part.

const VIRIDIS = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];
const OUTCOMES = {
  used: {text: "at work", shape: ""}, working: {text: "still at work", shape: ""}, late: {text: "late: a window closed without it", shape: "-"},
  cancelled: {text: "cancelled", shape: "/"}, failed: {text: "failed", shape: "x"}, dropped: {text: "dropped: no reply has arrived", shape: "."}, lost: {text: "lost", shape: "+"},
};
const CLOSINGS = 80;
let timed = null;

/** A colour for a share of one, neither the darkest nor the lightest. */
function viridis(share) {
  const place = (0.15 + 0.8 * share) * (VIRIDIS.length - 1), low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return `rgb(${VIRIDIS[low].map((value, part) => Math.round(value + (place - low) * (VIRIDIS[low + 1][part] - value))).join(",")})`;
}

/** The works of the group that is chosen, a row each. */
function worksOf() {
  const {columns, rows, names} = data.groups[timed].timeline;
  return Array.from({length: rows}, (_, row) => {
    const work = Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, Array.isArray(column) ? column[row] : column]));
    return {...work, name: names[work.client] ?? String(work.client)};
  });
}

function timelinePicture() {
  const {until, of, rows, population, clients, names: given} = data.groups[timed].timeline, works = worksOf();
  if (!works.length) return null;
  const versions = works.map(({version}) => version), first = versions.reduce((a, b) => Math.min(a, b)), last = versions.reduce((a, b) => Math.max(a, b));
  const ink = isDark() ? "#e6e9ed" : "#333333", names = Array.from({length: clients}, (_, client) => given[client] ?? String(client));
  const traces = [];
  for (const [outcome, {text, shape}] of Object.entries(OUTCOMES)) {
    const found = works.filter((work) => work.outcome === outcome);
    if (!found.length) continue;
    traces.push({
      type: "bar", orientation: "h", name: text, y: found.map(({name}) => plain(name)), base: found.map(({start}) => start), x: found.map(({start, stop}) => Math.min(stop, until) - start), width: 0.72,
      marker: {color: found.map(({version}) => viridis(last > first ? (version - first) / (last - first) : 0)), line: {color: outcome === "late" ? ink : "#ffffff", width: outcome === "late" ? 1.2 : 0.5}, pattern: {shape, fgcolor: outcome === "failed" || outcome === "lost" ? "#CC3311" : ink, size: 6, fillmode: "overlay"}},
      text: found.map((work) => `version ${work.version}, ${shown(work.start)} to ${shown(work.stop)} s${work.used === null ? "" : `, taken at ${shown(work.used)} s`}`), textposition: "none", hovertemplate: "client %{y}: %{text}",
    });
  }
  const waits = works.filter(({stop, used}) => used !== null && used !== stop);
  if (waits.length) {
    traces.push({mode: "lines", name: "idle until its window closes", hoverinfo: "skip", line: {color: ink, width: 1.5},
      x: waits.flatMap(({stop, used}) => [stop, Math.min(used, until), null]), y: waits.flatMap(({name}) => [plain(name), plain(name), null])});
  }
  const closings = [...new Set(works.map(({used}) => used).filter((used) => used !== null && used <= until))];
  const shapes = closings.length > CLOSINGS ? [] : closings.map((x) => ({type: "line", x0: x, x1: x, yref: "paper", y0: 0, y1: 1, line: {color: "#999999", width: 0.6}, layer: "below"}));
  find("timeline-note").textContent = [
    names.length < population ? `The first ${names.length} of ${population.toLocaleString("en")} clients.` : "",
    rows < of ? `The first part, up to ${shown(until)} s.` : "",
    `Colours are the version of the model that a client started from: ${first} dark, ${last} light.`,
    closings.length > CLOSINGS ? "" : "A vertical line is the close of a window.",
  ].filter(Boolean).join(" ");
  const layout = layoutOf({
    x: {title: "virtual time (s)", range: [works[0].start, until]}, y: {title: "client", type: "category", categoryorder: "array", categoryarray: names.map(plain).reverse(), showgrid: false, nticks: 20},
    hovermode: "closest", barmode: "overlay", showlegend: true, shapes,
  });
  return {traces, layout, label: `When the first ${names.length} clients of ${data.groups[timed].name} worked`};
}

/** A bar a value of a count, as its share in each group that is shown. */
function sharesFigure(key, title, across, countsOf) {
  const found = () => data.groups
    .map((group, place) => ({group, place, counts: countsOf(group)}))
    .filter(({group, counts}) => !chosen.hidden.has(group.name) && counts.length)
    .map((one) => ({...one, all: one.counts.reduce((sum, [, count]) => sum + count, 0)}));
  return makeFigure({
    key, title, draw: () => {
      const groups = found();
      if (!groups.length) return null;
      const traces = groups.map(({group, place, counts, all}) => ({
        type: "bar", name: plain(group.name), x: counts.map(([value]) => value), y: counts.map(([, count]) => count / all),
        marker: {color: colourOf(place), pattern: {shape: PATTERNS[place % PATTERNS.length], fgcolor: "#ffffff", fgopacity: 0.55, size: 7, fillmode: "overlay"}}, hovertemplate: "%{x}: %{y:.2%}",
      }));
      const means = groups.map(({group, counts, all}) => `${group.name} ${shown(counts.reduce((sum, [value, count]) => sum + value * count, 0) / all)}`);
      return {traces, label: `${title}; means: ${means.join(", ")}`, layout: layoutOf({x: {title: across}, y: {tickformat: ".0%"}, barmode: "group"})};
    },
    numbers: (most) => {
      const groups = found(), values = [...new Set(groups.flatMap(({counts}) => counts.map(([value]) => value)))].sort((a, b) => a - b);
      return {head: [across, ...groups.map(({group}) => group.name)], of: values.length,
        rows: evenly(values, most).map((value) => [value, ...groups.map(({counts}) => counts.find(([other]) => other === value)?.[1] ?? 0)])};
    },
  });
}

/** Counts of several runs of a group together: pairs of a value and how often it was seen. */
function added(lists) {
  const sums = new Map();
  for (const [value, count] of lists.flat()) sums.set(value, (sums.get(value) ?? 0) + count);
  return [...sums].sort(([a], [b]) => a - b);
}

function timeSection() {
  const traced = data.groups.flatMap(({name, timeline}, place) => (timeline ? [[String(place), name]] : []));
  if (!traced.length || !find("timeline-group")) return;
  if (!traced.some(([place]) => Number(place) === timed)) timed = Number(traced[0][0]);
  options("timeline-group", traced, String(timed));
}

function timeControls() {
  if (!find("timeline-group")) return;
  timeSection();
  const timeline = makeFigure({
    key: "timeline", title: "Timeline", draw: timelinePicture, numbers: (most) => {
      const works = worksOf();
      return {head: ["client", "version", "start (s)", "end (s)", "taken (s)", "outcome"], of: works.length,
        rows: evenly(works, most).map((work) => [work.name, work.version, work.start, work.stop, work.used, work.outcome])};
    },
  });
  timeline.element.classList.add("broad");
  find("timeline-group").addEventListener("change", (event) => { timed = Number(event.target.value); drawFigure(timeline); });
  const staleness = sharesFigure("staleness", "Staleness of replies", "versions of the model that were made while a client worked",
    (group) => added(group.runs.map((run) => Object.entries(run.staleness ?? {}).map(([value, count]) => [Number(value), count]))));
  const participation = sharesFigure("participation", "Participation", "replies of a client that were used", (group) => added(group.runs.map((run) => run.participation ?? [])));
  find("time-figures").replaceChildren(timeline.element, staleness.element, participation.element);
}
