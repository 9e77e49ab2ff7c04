// A page of runs that go on asks its own address for news, and keeps what its reader has chosen.

const EVERY = 3000;
const CONTROLS = {tried: triedControls, clients: clientControls, personal: ownControls, time: timeControls};
let before = null, tag = null;

/** Replace what the server says anew by its text of now; what stays is what was chosen, sorted, opened and zoomed. */
async function renew() {
  const answer = await fetch(location.href, {cache: "no-store", headers: tag === null ? {} : {"If-None-Match": tag}});
  if (answer.status === 304) return;
  if (!answer.ok) throw new Error(`the server says ${answer.status}`);
  tag = answer.headers.get("ETag");
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const now = all("[data-renewed]", page).map((part) => part.innerHTML).join("") + page.getElementById("numbers").textContent;
  if (now === before) return;
  before = now;
  const news = await numbersOf(page);
  if (!data.groups.length && news.groups.length) return location.reload();  // until now there was nothing to choose
  data = news;
  const added = all("main > section", page).filter(({id}) => !find(id));
  const following = new Map(added.map((section) => [section, section.nextElementSibling?.id]));
  // the last first, so that what follows a new section is there before it
  for (const section of added.reverse()) find("main").insertBefore(section, find(following.get(section) ?? ""));
  for (const part of all("[data-renewed]", page)) {
    const place = find(part.id);
    if (place.innerHTML === part.innerHTML) continue;
    const open = all("details[open][id]", place).map((details) => details.id);
    place.replaceChildren(...part.childNodes);
    for (const id of open) if (find(id)) find(id).open = true;
  }
  find("sections").replaceChildren(...page.getElementById("sections").childNodes);
  for (const {id} of added) CONTROLS[id]?.();
  if (added.length) sections();
  refresh();
}

function live() {
  if (document.documentElement.dataset.live === undefined) return;
  const state = find("state");
  const say = (text) => { if (state.textContent !== text) state.textContent = text; };  // a reader aloud says what changes
  const again = async () => {
    if (!document.hidden) {
      try {
        await renew();
        say("live");
      } catch (error) {
        say(`not renewed: ${error.message}`);
      }
    }
    setTimeout(again, EVERY);
  };
  setTimeout(again, EVERY);
}
