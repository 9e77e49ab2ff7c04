// What every run has come to: its value, the mean of its group, and the interval of that mean.

let outcome = null;

function outcomePicture() {
  const found = data.outcomes.find(({label}) => label === outcome);
  const groups = data.groups.map((group, place) => ({group, place, values: found.values[place].filter((value) => value !== null), interval: found.intervals[place]}))
    .filter(({group, values}) => !chosen.hidden.has(group.name) && values.length)
    .map((one) => ({...one, mean: one.values.reduce((a, b) => a + b, 0) / one.values.length}));
  if (!groups.length) return null;
  groups.sort((one, other) => (found.better === "lower" ? other.mean - one.mean : one.mean - other.mean));
  const names = groups.map(({group}) => plain(group.name)), traces = [];
  groups.forEach(({group, place, values, interval, mean}, row) => {
    const colour = colourOf(place), y = names[row];
    if (interval) traces.push({x: interval, y: [y, y], mode: "lines", hoverinfo: "skip", line: {color: colour, width: 3, dash: dashOf(place)}});
    traces.push({x: values, y: values.map(() => y), mode: "markers", text: values.map((_, run) => String(data.groups[place].runs[run]?.seed ?? "")), hovertemplate: "seed %{text}: %{x:.5g}<extra></extra>", marker: {color: faint(colour, 0.35), size: 8, line: {color: colour, width: 1}}});
    traces.push({x: [mean], y: [y], mode: "markers", hovertemplate: `mean %{x:.5g}${interval ? `, 95 % interval ${shown(interval[0])} to ${shown(interval[1])}` : ""}<extra></extra>`, marker: {color: colour, size: 13, symbol: "diamond", line: {color: isDark() ? "#1b2027" : "#ffffff", width: 1}}});
  });
  const layout = layoutOf({x: {title: words(outcome)}, y: {type: "category", categoryorder: "array", categoryarray: names, tickfont: {size: 11}}, hovermode: "closest", height: Math.max(160, 90 + 30 * groups.length)});
  const label = `${outcome}: ${[...groups].reverse().map(({group, mean}) => `${group.name} ${shown(mean)}`).join(", ")}`;
  return {traces, layout, label};
}

function outcomeSection() {
  if (!data.outcomes.some(({label}) => label === outcome)) outcome = data.outcomes[0]?.label ?? null;
  if (outcome !== null) options("outcome", data.outcomes.map(({label}) => [label, words(label)]), outcome);
}

function outcomeControls() {
  if (!find("outcome") || !data.outcomes.length) return;
  outcomeSection();
  const figure = makeFigure({
    key: "outcomes", title: "Every seed, means and intervals", small: "diamond: mean; line: its 95 % interval; circles: seeds", draw: outcomePicture,
    numbers: () => {
      const found = data.outcomes.find(({label}) => label === outcome);
      const rows = data.groups.flatMap((group, place) => found.values[place].map((value, run) => [group.name, group.runs[run]?.seed ?? null, value, found.intervals[place]?.[0] ?? null, found.intervals[place]?.[1] ?? null]));
      return {head: ["group", "seed", outcome, "interval from", "to"], rows, of: rows.length};
    },
  });
  figure.element.classList.add("broad", "low");
  find("outcome").addEventListener("change", (event) => { outcome = event.target.value; drawFigure(figure); });
  find("outcome-figure").replaceChildren(figure.element);
}
