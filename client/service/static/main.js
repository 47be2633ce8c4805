// Shows the tabs that a token is good for.

import { find, tabs } from "./dom.js";
import { start } from "./gate.js";
import * as people from "./people.js";
import * as recognise from "./recognise.js";
import * as records from "./records.js";

const TABS = [
  ["enrol", "Enrol", ["enrol", "extend"]],
  ["verify", "Verify", ["verify"]],
  ["identify", "Identify", ["identify"]],
  ["people", "People", ["admin", "erase"]],
  ["thresholds", "Thresholds", ["verify", "identify", "admin"]],
  ["log", "Log", ["admin"]],
];
const SHOWN = { people: people.show, thresholds: records.showThresholds, log: records.showLog };

recognise.start();
people.start();
start((scopes) => {
  const may = (wanted) => wanted.some((scope) => scopes.includes(scope));
  find("#people .list").hidden = !may(["admin"]);
  find("#people .erasure").hidden = !may(["erase"]);
  if (!may(["admin"])) delete SHOWN.people;
  const names = TABS.filter(([, , wanted]) => may(wanted)).map(([name, label]) => [name, label]);
  find("#tabs").hidden = false;
  tabs(find("#tabs"), names, (name) => SHOWN[name]?.());
  return find("#tabs [aria-selected=true]");
}, () => { find("#tabs").hidden = true; });
