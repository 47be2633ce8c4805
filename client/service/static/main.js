// Unlocks the page with a token and shows the tabs that the token is good for.

import { me, token } from "./service.js";
import { failed, find, h, tabs } from "./dom.js";
import * as people from "./people.js";
import * as recognise from "./recognise.js";
import * as records from "./records.js";

const TABS = [
  ["enrol", "Enrol", ["enrol"]],
  ["verify", "Verify", ["verify"]],
  ["identify", "Identify", ["identify"]],
  ["people", "People", ["admin", "erase"]],
  ["thresholds", "Thresholds", ["verify", "identify", "admin"]],
  ["log", "Log", ["admin"]],
];
const SHOWN = { people: people.show, thresholds: records.showThresholds, log: records.showLog };
const gate = find("#gate"), result = find("#gate .result"), field = find("#token");

async function unlock() {
  const { id, scopes } = await me();
  const may = (wanted) => wanted.some((scope) => scopes.includes(scope));
  find("#people .list").hidden = !may(["admin"]);
  find("#people .erasure").hidden = !may(["erase"]);
  if (!may(["admin"])) delete SHOWN.people;
  find("#who").textContent = `Token ${id.slice(0, 6)}`;
  gate.hidden = true;
  find("#session").hidden = find("#tabs").hidden = false;
  const names = TABS.filter(([, , wanted]) => may(wanted)).map(([name, label]) => [name, label]);
  tabs(find("#tabs"), names, (name) => SHOWN[name]?.());
}

function lock(...why) {
  token.forget();
  gate.hidden = false;
  result.replaceChildren(...why);
  field.focus();
}

find("#unlock").addEventListener("submit", async (event) => {
  event.preventDefault();
  token.set(field.value.trim());
  field.value = "";
  result.replaceChildren(h("p", { class: "wait" }, "Working…"));
  try {
    await unlock();
    result.replaceChildren();
    find("#tabs [aria-selected=true]").focus();
  } catch (error) {
    lock(failed(error));
  }
});
// A fresh page holds no picture and no result of whoever worked here before.
find("#leave").addEventListener("click", () => { token.forget(); location.reload(); });

recognise.start();
people.start();
if (token.get()) unlock().catch((error) => lock(failed(error)));
else lock();
