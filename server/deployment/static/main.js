// Keeps the page up to date while somebody looks.

import { call } from "./service.js";
import { failed, find, h, note, table } from "./dom.js";
import { start } from "./gate.js";
import { run } from "./runs.js";
import { ago, number, spent, state } from "./words.js";

const EVERY = 3000;
const everything = find("#everything");
const drawn = new Map();
let before = null, timer = 0;

const lock = start(async (scopes) => {
  if (!scopes.includes("view")) throw Object.assign(new Error("This token is for metrics only."), {
    hint: "Ask for one with the scope “view”.",
  });
  await refresh();
  everything.hidden = false;
  return find("#main");
}, () => {
  clearTimeout(timer);
  everything.hidden = true;
});

async function refresh() {
  clearTimeout(timer);
  const found = await call("/v1/status");
  find("#trouble").replaceChildren();
  show(found);
  timer = setTimeout(again, EVERY);
}

async function again() {
  if (document.hidden) return;
  try {
    await refresh();
  } catch (error) {
    if (error.status === 401) return lock(failed(error));
    if (!find("#trouble").firstChild) {
      find("#trouble").replaceChildren(note("bad", error.message,
        h("p", {}, `Below is what it said at ${before.now.slice(11, 19)} UTC. Trying again.`)));
    }
    timer = setTimeout(again, EVERY);
  }
}

function show(found) {
  find("#federation").textContent = found.federation;
  find("#fresh").textContent = `As of ${found.now.slice(11, 19)} UTC`;
  const online = found.sites.filter((site) => site.state === "online").length;
  find("#sites-line").textContent = found.sites.length
    ? `${online} of ${found.sites.length} online.` : "The roster has no site.";
  draw("sites", found.sites.map((site) => [site, ago(site.heard, found.now)]), () =>
    found.sites.length ? sites(found) : h("p", { class: "empty" }, ""));
  if (!found.runs.length) {
    draw("runs", "none", () => h("p", { class: "empty" }, "No run yet. Start one with ",
      h("code", {}, "veilface server run"), "."));
  } else {
    list(found.runs);
  }
  const news = told(before, found);
  if (news) find("#news").textContent = news;
  before = found;
}

function sites({ sites, now }) {
  return table("Who takes part, and what each may have spent over all runs",
    ["Site", "State", "Last heard", "ε at most"], sites.map((site) => [
      h("strong", {}, site.site), state(site.state),
      site.heard ? h("time", { datetime: site.heard, title: site.heard }, ago(site.heard, now)) : "–",
      h("span", {}, spent(site.epsilon), site.delta
        ? h("span", { class: "delta" }, `δ ${number(site.delta)}`) : null)]));
}

// Redraws a run only when it has changed, so that focus, scrolling and open details stay.
function list(runs) {
  const place = find("#runs");
  if (!place.querySelector("article")) place.replaceChildren();
  for (const id of [...drawn.keys()].filter((key) => key.startsWith("run "))) {
    if (!runs.some((each) => `run ${each.run_id}` === id)) drawn.delete(id), find(`#${CSS.escape(id)}`)?.remove();
  }
  runs.forEach((each, row) => {
    const id = `run ${each.run_id}`, said = JSON.stringify(each);
    if (drawn.get(id) === said) return;
    drawn.set(id, said);
    const old = document.getElementById(id), made = run(each, id, old);
    if (old) replace(old, made);
    else place.insertBefore(made, place.children[row] ?? null);
  });
  drawn.delete("runs");
}

function draw(id, value, make) {
  const said = JSON.stringify(value);
  if (drawn.get(id) === said) return;
  drawn.set(id, said);
  const place = find(`#${id}`);
  if (place.firstElementChild) replace(place.firstElementChild, make());
  else place.replaceChildren(make());
}

// Puts the new in the place of the old, with focus and scrolling as they were.
function replace(old, made) {
  const inside = (root) => [...root.querySelectorAll("button, summary, [tabindex]")];
  const focused = [old, ...inside(old)].indexOf(document.activeElement);
  const scrolled = [old, ...old.querySelectorAll(".scroll")].map((each) => [each.scrollLeft, each.scrollTop]);
  old.replaceWith(made);
  [made, ...made.querySelectorAll(".scroll")].forEach((each, row) => each.scrollTo(...scrolled[row] ?? [0, 0]));
  if (focused >= 0) [made, ...inside(made)][focused]?.focus({ preventScroll: true });
}

// What a listener should hear: sites that come and go, runs that begin and end; not every round.
function told(old, found) {
  if (!old) return "";
  const was = new Map([...old.sites.map((site) => [site.site, site.state]),
    ...old.runs.map((each) => [`run ${each.run_id}`, each.state])]);
  const is = [...found.sites.map((site) => [site.site, site.state]),
    ...found.runs.map((each) => [`run ${each.run_id}`, each.state])];
  return is.filter(([name, now]) => was.get(name) !== now)
    .map(([name, now]) => `${name} is ${now === "never" ? "new" : now}.`).join(" ");
}

document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !everything.hidden) again();
});
