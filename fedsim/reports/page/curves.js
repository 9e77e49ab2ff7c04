// Curves: from rows to lines, the mean over seeds and its band, along any axis. The rules are those of fedsim.plots.curves.

/** Where along an axis each row of a run stands; null where that is not known, or nothing has been counted yet. */
function placesOf(run, axis) {
  const {column, sum} = data.axes[axis];
  const values = run.columns[column];
  if (values === undefined) return new Array(run.rows).fill(null);
  if (!sum) return values;
  let total = 0;
  return values.map((value) => (total += value ?? 0) || null);
}

/** Places and values of a column of a run, where both are known; of several rows at one place the last counts. */
function lineOf(run, column, axis) {
  const values = run.columns[column];
  if (values === undefined) return {x: [], y: []};
  const points = new Map();
  placesOf(run, axis).forEach((place, row) => {
    if (place !== null && values[row] !== null) points.set(place, values[row]);
  });
  return {x: [...points.keys()], y: [...points.values()]};
}

/** The value that a line has at each place: that of its last point until then. */
function valuesAt(line, places) {
  let next = 0;
  return places.map((place) => {
    while (next < line.x.length && line.x[next] <= place) next += 1;
    return line.y[next - 1];
  });
}

/** The places at which a line changes while all are known, and the lines' values there. */
function commonPlaces(lines) {
  const begin = Math.max(...lines.map((line) => line.x[0]));
  const end = Math.min(...lines.map((line) => line.x.at(-1)));
  const places = [...new Set(lines.flatMap((line) => line.x))].filter((x) => x >= begin && x <= end).sort((a, b) => a - b);
  return {x: places, values: lines.map((line) => valuesAt(line, places))};
}

/** The rounds that all lines have, and their values there; where their rounds differ, as `commonPlaces`. */
function commonRounds(lines) {
  const rounds = [...new Set(lines[0].x)].filter((x) => lines.every((line) => line.x.includes(x)));
  const least = Math.min(...lines.map((line) => line.x.length));
  return rounds.length < least ? commonPlaces(lines) : {x: rounds, values: lines.map((line) => valuesAt(line, rounds))};
}

/** Exponential smoothing that begins with the first value, as TensorBoard's: the weights of all values sum to one. */
function smooth(values, factor) {
  if (!factor) return values;
  let sum = 0, weight = 0;
  return values.map((value) => {
    sum = factor * sum + (1 - factor) * value;
    weight = factor * weight + (1 - factor);
    return sum / weight;
  });
}

/** The lines of a group: of each seed, their mean, and what the band is between; null where it has no number. */
function bandOf(group, column, axis, seeds) {
  const lines = group.runs.map((run) => lineOf(run, column, axis)).filter((line) => line.x.length);
  if (!lines.length) return null;
  if (lines.length === 1) return {lines, x: lines[0].x, mean: lines[0].y, low: null, high: null};
  const {x, values} = axis === "round" ? commonRounds(lines) : commonPlaces(lines);
  const at = x.map((_, place) => values.map((line) => line[place]));
  const mean = at.map((found) => found.reduce((a, b) => a + b, 0) / found.length);
  if (seeds === "range") return {lines, x, mean, low: at.map((found) => Math.min(...found)), high: at.map((found) => Math.max(...found))};
  const spread = at.map((found, place) => Math.sqrt(found.reduce((sum, value) => sum + (value - mean[place]) ** 2, 0) / (found.length - 1)));
  return {lines, x, mean, low: mean.map((value, place) => value - spread[place]), high: mean.map((value, place) => value + spread[place])};
}

/** The groups that are shown, each with its place and its band of a column. */
function bandsOf(column) {
  return data.groups
    .map((group, place) => ({group, place, band: chosen.hidden.has(group.name) ? null : bandOf(group, column, chosen.axis, chosen.seeds)}))
    .filter(({band}) => band !== null && band.x.length > 0);
}

/** Whether a vertical axis is logarithmic: as asked for, or where positive numbers span more than two powers of ten. */
function isLogarithmic(bands) {
  if (chosen.vertical !== "auto") return chosen.vertical === "log";
  let least = Infinity, greatest = 0;
  for (const {band} of bands) {
    for (const value of band.mean) {
      if (value <= 0) return false;
      least = Math.min(least, value);
      greatest = Math.max(greatest, value);
    }
  }
  return greatest > 100 * least;
}

const faint = (colour, alpha) => `${colour}${Math.round(255 * alpha).toString(16).padStart(2, "0")}`;

/** What Plotly draws of a column, and on which axes. */
function pictureOf(column) {
  const bands = bandsOf(column), logarithmic = isLogarithmic(bands), traces = [];
  const shape = chosen.axis === "round" ? "linear" : "hv";
  for (const {group, place, band} of bands) {
    const colour = colourOf(place), dash = dashOf(place), name = plain(group.name);
    const quiet = {hoverinfo: "skip", showlegend: false, mode: "lines"};
    const raw = (line, alpha) => ({...quiet, x: line.x, y: line.y, line: {color: faint(colour, alpha), width: 1, shape}});
    if (chosen.seeds === "each" && band.lines.length > 1) {
      band.lines.forEach((line) => traces.push(raw({x: line.x, y: smooth(line.y, chosen.smoothing)}, 0.45)));
    } else if (band.low) {
      traces.push({...quiet, x: band.x, y: smooth(band.low, chosen.smoothing), line: {width: 0, shape}});
      traces.push({...quiet, x: band.x, y: smooth(band.high, chosen.smoothing), line: {width: 0, shape}, fill: "tonexty", fillcolor: faint(colour, 0.18)});
    } else if (chosen.smoothing) {
      traces.push(raw({x: band.x, y: band.mean}, 0.3));
    }
    const single = band.x.length === 1;
    traces.push({
      x: band.x, y: smooth(band.mean, chosen.smoothing), name, mode: single ? "markers" : "lines",
      line: {color: colour, dash, width: 2, shape}, marker: {color: colour, size: 8},
      hovertemplate: "%{y:.5g}",
    });
  }
  const level = data.targets[column];
  if (level !== undefined && bands.length) {
    traces.push({x: [Math.min(...bands.map(({band}) => band.x[0])), Math.max(...bands.map(({band}) => band.x.at(-1)))], y: [level, level],
      mode: "lines", name: "target", hoverinfo: "skip", line: {color: isDark() ? "#9aa4af" : "#57606a", width: 1, dash: "dash"}});
  }
  return {traces, logarithmic, bands};
}

/** Numbers behind a picture: a line a place, a column a group. */
function tableOf(column, most) {
  const bands = bandsOf(column);
  const places = [...new Set(bands.flatMap(({band}) => band.x))].sort((a, b) => a - b);
  const head = [data.axes[chosen.axis].label, ...bands.map(({group}) => group.name)];
  const at = (band, place) => (place < band.x[0] || place > band.x.at(-1) ? null : valuesAt({x: band.x, y: band.mean}, [place])[0]);
  return {head, rows: evenly(places, most).map((place) => [place, ...bands.map(({band}) => at(band, place))]), of: places.length};
}
