// A figure: a heading, a picture that is drawn when it comes into sight, and the numbers behind it.

const figures = new Set();
let seen = null;

/** The look of all pictures; `axes` says what theirs are. */
function layoutOf({x = {}, y = {}, ...rest}) {
  const dark = isDark(), ink = dark ? "#e6e9ed" : "#1b1f24", grid = dark ? "#313842" : "#e5e8ec", line = dark ? "#596270" : "#9aa4af";
  // As long as an axis is about the same its reader's zoom stays when there are new numbers.
  const axis = ({title = "", ...given}) => ({
    uirevision: `${x.title} ${title} ${given.type}`, gridcolor: grid, linecolor: line, zeroline: false, automargin: true, tickfont: {size: 11},
    title: {text: plain(title), font: {size: 12}, standoff: 6}, ...given,
  });
  return {
    margin: {l: 52, r: 10, t: 8, b: 42}, showlegend: false, dragmode: "zoom", hovermode: data.groups.length > 8 ? "closest" : "x unified",
    font: {color: ink, family: "system-ui, sans-serif", size: 12}, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    hoverlabel: {bgcolor: dark ? "#262d36" : "#ffffff", bordercolor: line, font: {color: ink, size: 12}, namelength: 40},
    legend: {orientation: "h", y: 1.02, yanchor: "bottom", x: 0, font: {size: 11}},
    xaxis: axis({exponentformat: "SI", ...x}), yaxis: axis({exponentformat: "power", ...y}), ...rest,
  };
}

const BUTTONS = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]};

/**
 * A figure. key: its name, of its files, too. draw: makes {traces, layout, label}, label being the picture in words, or
 * null where there is nothing. numbers: makes {head, rows, of} of at most so many rows. zoomed: is told of its axes.
 */
function makeFigure({key, title, small = "", draw, numbers, zoomed = null}) {
  const plot = made("div", {class: "plot", role: "img"});
  const broad = made("button", {type: "button", "aria-pressed": "false"}, "wide");
  const behind = made("details", {}, made("summary", {}, "numbers"));
  const nothing = made("p", {class: "nothing", hidden: ""}, "There is nothing to draw of the groups that are shown.");
  const element = made("article", {class: "panel", "data-measure": key},
    made("h3", {}, title, made("small", {}, small)), nothing, plot, made("div", {class: "below"}, behind, broad));
  const figure = {key, title, element, plot, behind, nothing, draw, numbers, zoomed, stale: true, visible: false, listening: false};
  broad.addEventListener("click", () => {
    broad.setAttribute("aria-pressed", String(element.classList.toggle("broad")));
    if (plot.data) Plotly.Plots.resize(plot);
  });
  behind.addEventListener("toggle", () => fillNumbers(figure));
  element.figure = figure;
  figures.add(figure);
  seen.observe(element);
  return figure;
}

function drawFigure(figure) {
  figure.stale = false;
  const found = figure.draw();
  figure.nothing.hidden = found !== null;
  figure.plot.hidden = found === null;
  fillNumbers(figure);
  if (found === null) return;
  figure.plot.setAttribute("aria-label", found.label);
  Plotly.react(figure.plot, found.traces, found.layout, {...BUTTONS, toImageButtonOptions: {format: "svg", filename: figure.key}});
  if (figure.zoomed && !figure.listening) {
    figure.listening = true;
    figure.plot.on("plotly_relayout", (change) => figure.zoomed(change));
  }
}

function dropFigure(figure) {
  seen.unobserve(figure.element);
  if (figure.plot.data) Plotly.purge(figure.plot);
  figure.element.remove();
  figures.delete(figure);
}

/** Draw the figures that are in sight, or all for a printer, and not up to date. */
function drawSeen() {
  if (typeof Plotly === "undefined") return;
  for (const figure of figures) if ((figure.visible || printed) && figure.stale) drawFigure(figure);
}

function drawAll() {
  for (const figure of figures) figure.stale = true;
  drawSeen();
}

function observeFigures() {
  seen = new IntersectionObserver((entries) => {
    for (const entry of entries) entry.target.figure.visible = entry.isIntersecting;
    drawSeen();
  }, {rootMargin: "200px"});
}

const MOST = 60;

function fillNumbers(figure) {
  if (!figure.behind.open) return;
  const {head, rows, of} = figure.numbers(MOST);
  const table = made("table", {}, made("caption", {}, `${figure.title}${rows.length < of ? `, ${rows.length} of ${of} lines` : ""}`),
    made("thead", {}, made("tr", {}, ...head.map((text) => made("th", {scope: "col"}, text)))),
    made("tbody", {}, ...rows.map(([first, ...others]) => made("tr", {}, made("th", {scope: "row"}, shown(first)), ...others.map((value) => made("td", {}, shown(value)))))));
  const save = made("button", {type: "button"}, "save all as CSV");
  save.addEventListener("click", () => {
    const all = figure.numbers(Infinity);
    saveText(`${figure.key}.csv`, [all.head, ...all.rows].map((row) => row.map(csvCell).join(",")).join("\n"), "text/csv");
  });
  figure.behind.replaceChildren(figure.behind.firstElementChild, made("div", {class: "wide", role: "region", tabindex: "0", "aria-label": figure.title}, table), save);
}

/** Of many rows so many, evenly chosen. */
function evenly(rows, most) {
  if (rows.length <= most) return rows;
  return Array.from({length: most}, (_, number) => rows[Math.round((number * (rows.length - 1)) / (most - 1))]);
}

// A text that a spreadsheet would take for a formula begins with a quote.
function csvCell(value) {
  if (typeof value === "number") return String(value);
  return `"${String(value ?? "").replace(/^[=+\-@\t]/, (sign) => `'${sign}`).replaceAll('"', '""')}"`;
}

function saveText(name, text, type) {
  const link = made("a", {href: URL.createObjectURL(new Blob([text], {type})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
