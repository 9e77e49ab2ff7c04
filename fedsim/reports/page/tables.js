// Tables: sorted by a click on a heading, and narrowed by a filter. What was chosen is kept by the table's id.

const sorted = {};

function cellsOf(row) {
  return [...row.children];
}

/** What a cell is sorted by: its number, or its text; nothing comes last whichever way. */
function keyOf(cell) {
  if (cell.dataset.number !== undefined) return Number(cell.dataset.number);
  const text = cell.textContent.trim();
  return text === "-" || text === "–" || text === "" ? null : text;
}

function compareKeys(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  return String(one).localeCompare(String(other), "en", {numeric: true});
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [keyOf(cellsOf(row)[column]), row]);
  rows.sort(([one], [other]) => {
    if (one === null || other === null) return (one === null) - (other === null);
    return (descending ? -1 : 1) * compareKeys(one, other);
  });
  body.append(...rows.map(([, row]) => row));
  all("thead th", table).forEach((head, place) => {
    head.setAttribute("aria-sort", place === column ? (descending ? "descending" : "ascending") : "none");
  });
  sorted[table.id] = [column, descending];
}

/** Make the tables in an element sortable, as they were sorted before. */
function sortable(within = document) {
  for (const table of all("table.sortable", within)) {
    all("thead th", table).forEach((head, column) => {
      head.setAttribute("aria-sort", "none");
      head.querySelector("button").addEventListener("click", () => {
        const [before, descending] = sorted[table.id] ?? [];
        sortTable(table, column, before === column ? !descending : isNumeric(table, column));
      });
    });
    if (sorted[table.id] !== undefined) sortTable(table, ...sorted[table.id]);
  }
}

/** Columns of numbers begin with the largest. */
function isNumeric(table, column) {
  return [...table.tBodies[0].rows].some((row) => cellsOf(row)[column].dataset.number !== undefined);
}

/** Show of a table the rows that have a text, and, where that is asked for, that differ. */
function narrow(id) {
  const table = find(id);
  const text = all(".table-filter").find((input) => input.dataset.table === id)?.value.toLowerCase() ?? "";
  const differing = all(".differing").find((box) => box.dataset.table === id)?.checked ?? false;
  for (const row of table.tBodies[0].rows) {
    row.hidden = !row.textContent.toLowerCase().includes(text) || (differing && !row.classList.contains("differs"));
  }
}

function filters() {
  for (const input of all(".table-filter, .differing")) {
    input.addEventListener("input", () => narrow(input.dataset.table));
  }
}
