// How the page begins, and what is done when it has new numbers.

let read = null;

/** Mark in the list of sections the one that is read. */
function sections() {
  read?.disconnect();
  const links = new Map(all("nav a").map((link) => [link.hash.slice(1), link]));
  read = new IntersectionObserver((entries) => {
    for (const {target, isIntersecting} of entries) {
      if (!isIntersecting) continue;
      for (const link of links.values()) link.removeAttribute("aria-current");
      links.get(target.id).setAttribute("aria-current", "true");
    }
  }, {rootMargin: "-10% 0px -80% 0px"});
  for (const id of links.keys()) read.observe(find(id));
}

/** Have all that stands in the page be about the numbers of now. */
function refresh() {
  swatches();
  sortable();
  for (const box of all("#legend input")) box.checked = !chosen.hidden.has(data.groups[box.dataset.group].name);
  for (const input of all(".table-filter")) narrow(input.dataset.table);
  if (!data.axes[chosen.axis]) chosen.axis = data.along;
  options("axis", Object.entries(data.axes).map(([key, {label}]) => [key, label]), chosen.axis);
  if (!chosen.measures.size) chosen.measures = new Set(data.first);
  measuresList();
  arrange();
  clientSection();
  ownSection();
  if (find("outcome")) outcomeSection();
  timeSection();
  drawAll();
}

async function begin() {
  filters();
  sections();
  savers();
  if (innerWidth < 820) find("groups").open = false;
  if (typeof DecompressionStream === "undefined") throw new Error("this browser is older than 2023");
  const plotly = inflated("plotly");
  data = await numbersOf(document);
  chosen.axis = data.along;
  chosen.measures = new Set(data.first);
  observeFigures();
  controls();
  legend();
  outcomeControls();
  triedControls();
  clientControls();
  ownControls();
  timeControls();
  themes(drawAll);
  refresh();
  document.head.append(made("script", {".textContent": await plotly}));
  drawSeen();
  document.documentElement.dataset.drawn = "";
  live();
}

/** Buttons that save or copy a text of the page. */
function savers() {
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-save]");
    if (button) saveText(button.dataset.as, find(button.dataset.save).textContent, "text/plain");
  });
}

begin().catch((error) => {
  sortable();
  find("trouble").textContent = `The pictures cannot be drawn: ${error.message}. The tables are whole.`;
  find("trouble").hidden = false;
});
