(() => {
"use strict";
const EVERY = 2000;  // milliseconds between two questions for news
const table = document.getElementById("runs");
const filter = document.getElementById("filter");
const trouble = document.getElementById("trouble");
const folded = new Set();
const told = new WeakMap();  // of each part of the table what the server has said of it
let tag = "", asking = false, isAway = false;

const warn = (said) => {
  trouble.textContent = said;
  trouble.hidden = !said;
};

const show = () => {
  const wanted = filter.value.trim().toLowerCase();
  for (const body of table.tBodies) {
    const fold = body.querySelector(".fold");
    body.toggleAttribute("data-folded", folded.has(body.id) && !wanted);
    if (fold) {
      fold.hidden = false;
      fold.setAttribute("aria-expanded", String(!folded.has(body.id)));
      fold.textContent = folded.has(body.id) ? "unfold" : "fold";
    }
    const runs = [...body.querySelectorAll("tr.run")];
    const whole = body.id.toLowerCase().includes(wanted);
    for (const run of runs) run.hidden = !whole && !run.textContent.toLowerCase().includes(wanted);
    body.hidden = runs.every((run) => run.hidden);
  }
};

// The rows that are new or other ones replace what is there; what has been chosen, folded and focused stays so.
const renew = (fresh) => {
  const old = new Map([...table.tBodies].map((body) => [body.id, body]));
  const chosen = new Set([...table.querySelectorAll("input:checked")].map((box) => box.value));
  const focused = document.activeElement?.closest("#runs tr a, #runs tr input, #runs .fold");
  const place = focused && [focused.closest("tbody").id, focused.getAttribute("href"), focused.value, focused.className];
  const scrolled = [scrollX, scrollY];
  let before = table.tHead;
  for (const body of [...fresh.getElementById("runs").tBodies]) {
    const known = old.get(body.id);
    const same = known && told.get(known) === body.innerHTML;
    const shown = same ? known : document.importNode(body, true);
    if (!same) {
      told.set(shown, body.innerHTML);
      for (const box of shown.querySelectorAll("input")) box.checked = chosen.has(box.value);
      known?.remove();
    }
    if (before.nextElementSibling !== shown) before.after(shown);
    old.delete(body.id);
    before = shown;
  }
  for (const gone of old.values()) gone.remove();
  for (const part of document.querySelectorAll("[data-renewed]")) {
    part.textContent = fresh.getElementById(part.id).textContent;
  }
  warn(fresh.getElementById("trouble").textContent);
  show();
  if (place && !focused.isConnected) {
    const again = [...(document.getElementById(place[0])?.querySelectorAll("a, input, .fold") ?? [])];
    again.find((one) => one.getAttribute("href") === place[1] && one.value === place[2])?.focus({ preventScroll: true });
  }
  scrollTo(...scrolled);
};

const ask = async () => {
  if (asking || document.hidden) return;
  asking = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
    if (answer.status === 200) {
      tag = answer.headers.get("ETag") ?? "";
      renew(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } else if (answer.status !== 304) {
      throw new Error(await answer.text());
    } else if (isAway) {
      tag = "";  // so that the next answer says again what is to be warned of
    }
    isAway = false;
  } catch (error) {
    if (!isAway) warn(`No news since ${new Date().toLocaleTimeString()}: ${error.message}`);
    isAway = true;
  }
  asking = false;
};

table.addEventListener("click", (event) => {
  const fold = event.target.closest(".fold");
  if (!fold) return;
  const { id } = fold.closest("tbody");
  if (!folded.delete(id)) folded.add(id);
  show();
});
filter.addEventListener("input", show);
filter.parentElement.hidden = false;
for (const body of table.tBodies) told.set(body, body.innerHTML);
show();
setInterval(ask, EVERY);
document.addEventListener("visibilitychange", ask);
})();
