// What was tried: options and outcomes side by side, how much an option matters, and the outcome against each of them.

/** Where values of an option or outcome stand between 0 and 1, and the ticks of their axis. */
function scaleOf(values, log) {
  const known = values.filter((value) => value !== null);
  if (!known.length) return {at: () => null, ticks: []};
  if (known.some((value) => typeof value !== "number")) {
    const kinds = [...new Set(known.map(String))].sort((a, b) => a.localeCompare(b, "en", {numeric: true}));
    const place = (value) => (kinds.length > 1 ? kinds.indexOf(String(value)) / (kinds.length - 1) : 0.5);
    return {at: (value) => (value === null ? null : place(value)), ticks: kinds.map((kind) => [place(kind), kind])};
  }
  const to = log ? Math.log : (value) => value, back = log ? Math.exp : (value) => value;
  const least = to(Math.min(...known)), most = to(Math.max(...known)), span = most - least;
  const at = (value) => (value === null ? null : span ? (to(value) - least) / span : 0.5);
  const kinds = [...new Set(known)];
  const ticks = kinds.length <= 5 ? kinds.map((kind) => [at(kind), shown(kind)]) : [0, 0.25, 0.5, 0.75, 1].map((share) => [share, Number(back(least + share * span).toPrecision(2)).toString()]);
  return {at, ticks};
}

const triedLines = () => data.tried.lines.filter(({group}) => group === null || !chosen.hidden.has(data.groups[group].name));

/** The colour of an outcome, from viridis: light is better. */
function outcomeColour(outcome, scale) {
  if (outcome === null) return "#888888";
  const share = scale.at(outcome);
  return viridis(data.tried.better === "lower" ? 1 - share : share);
}

function parallelPicture() {
  const lines = triedLines();
  if (!lines.length) return null;
  const {axes, metric} = data.tried, outcomes = scaleOf(lines.map(({outcome}) => outcome), false);
  const scales = [...axes.map(({log}, place) => scaleOf(lines.map(({values}) => values[place]), log)), outcomes];
  const ink = isDark() ? "#e6e9ed" : "#1b1f24", names = [...axes.map(({name}) => name), metric];
  const ordered = [...lines].sort((one, other) => (one.outcome === null) - (other.outcome === null) || (data.tried.better === "lower" ? other.outcome - one.outcome : one.outcome - other.outcome)).reverse();
  const traces = ordered.map((line, place) => {
    const values = [...line.values, line.outcome];
    return {
      mode: "lines+markers", x: names.map((_, axis) => axis), y: values.map((value, axis) => scales[axis].at(value)), name: plain(line.name),
      line: {color: outcomeColour(line.outcome, outcomes), width: place === 0 ? 4 : 1.6, dash: line.outcome === null ? "dot" : "solid"}, marker: {size: 6},
      text: values.map((value, axis) => plain(`${line.name}${line.state === "complete" ? "" : ` (${line.state})`}: ${words(names[axis])} ${shown(value)}; ${metric} ${shown(line.outcome)}`)), hovertemplate: "%{text}<extra></extra>",
    };
  }).reverse();
  const annotations = scales.flatMap(({ticks}, axis) => ticks.map(([y, text]) => ({x: axis, y, text: plain(text), xanchor: axis === names.length - 1 ? "left" : "right", xshift: axis === names.length - 1 ? 8 : -8, showarrow: false, font: {size: 11, color: ink}, bgcolor: isDark() ? "#1b2027cc" : "#ffffffcc"})));
  const shapes = names.map((_, axis) => ({type: "line", x0: axis, x1: axis, y0: 0, y1: 1, line: {color: isDark() ? "#596270" : "#9aa4af", width: 1}, layer: "below"}));
  const short = (name) => (name.length > 24 ? `…${name.slice(-23)}` : name);
  const layout = layoutOf({
    x: {tickvals: names.map((_, axis) => axis), ticktext: names.map((name) => plain(short(name))), range: [-0.35, names.length - 0.65], showgrid: false, showline: false},
    y: {showticklabels: false, showgrid: false, showline: false, range: [-0.06, 1.06]}, hovermode: "closest", annotations, shapes, dragmode: false, margin: {l: 20, r: 20, t: 8, b: 42},
  });
  return {traces, layout, label: `Options and ${metric} of ${lines.length} ${data.tried.lines[0].group === null ? "trials" : "groups"}; the best is ${ordered[0].name}`};
}

function effectFigure({name, log}, axis) {
  const {metric} = data.tried;
  const pairs = () => triedLines().filter(({values, outcome}) => values[axis] !== null && outcome !== null);
  return makeFigure({
    key: `by-${name}`, title: `by ${name}`, draw: () => {
      const lines = pairs();
      if (!lines.length) return null;
      const scale = scaleOf(lines.map(({outcome}) => outcome), false), numbers = lines.every(({values}) => typeof values[axis] === "number");
      const traces = [{
        mode: "markers", x: lines.map(({values}) => (numbers ? values[axis] : plain(values[axis]))), y: lines.map(({outcome}) => outcome), text: lines.map(({name: line}) => plain(line)),
        marker: {size: 9, color: lines.map(({group, outcome}) => (group === null ? outcomeColour(outcome, scale) : colourOf(group))), symbol: lines.map(({group}) => SYMBOLS[(group ?? 0) % SYMBOLS.length]), line: {width: 1, color: isDark() ? "#1b2027" : "#ffffff"}},
        hovertemplate: "%{text}: %{x}, %{y:.5g}<extra></extra>",
      }];
      return {traces, label: `${metric} by ${name}`, layout: layoutOf({x: {title: name, type: numbers ? (log ? "log" : "linear") : "category"}, y: {title: words(metric)}, hovermode: "closest"})};
    },
    numbers: (most) => ({head: [name, metric, "of"], rows: evenly(pairs(), most).map((line) => [line.values[axis], line.outcome, line.name]), of: pairs().length}),
  });
}

function triedControls() {
  if (!data.tried || !find("tried-figures")) return;
  const {axes, metric, importance} = data.tried;
  const parallel = makeFigure({
    key: "tried", title: "Options and outcome", small: `light: better ${metric}`, draw: parallelPicture,
    numbers: (most) => ({head: ["of", ...axes.map(({name}) => name), metric, "state"], rows: evenly(triedLines(), most).map(({name, values, outcome, state}) => [name, ...values, outcome, state]), of: triedLines().length}),
  });
  parallel.element.classList.add("broad");
  const made = [parallel];
  if (importance && Object.keys(importance).length) {
    const order = Object.entries(importance).sort(([, a], [, b]) => a - b);
    made.push(makeFigure({
      key: "importance", title: "Importance", small: `share of what ${metric} differs by`,
      draw: () => ({
        traces: [{type: "bar", orientation: "h", x: order.map(([, share]) => share), y: order.map(([name]) => plain(name)), marker: {color: data.colours[0]}, hovertemplate: "%{y}: %{x:.1%}<extra></extra>"}],
        layout: layoutOf({x: {tickformat: ".0%", rangemode: "tozero"}, y: {type: "category"}, hovermode: "closest"}), label: `Importance: ${[...order].reverse().map(([name, share]) => `${name} ${Math.round(100 * share)} %`).join(", ")}`,
      }),
      numbers: () => ({head: ["option", "share"], rows: [...order].reverse(), of: order.length}),
    }));
  }
  made.push(...axes.map(effectFigure));
  find("tried-figures").replaceChildren(...made.map(({element}) => element));
}
