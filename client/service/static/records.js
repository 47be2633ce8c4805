// Thresholds and the operation log.

import * as api from "./api.js";
import { failed, find, h, table } from "./dom.js";
import { code, facts } from "./recognise.js";

const rate = (value) => `${Number((100 * value).toPrecision(2))}%`;
const KINDS = [
  ["verify", "To verify", "False match rate"],
  ["identify", "To identify", "False positive identification rate"],
];

export async function showThresholds() {
  await fill("#thresholds .list", async () => {
    const found = await api.thresholds();
    return h("div", { class: "cards" }, ...KINDS.map(([purpose, title, name]) =>
      h("article", { class: "card" }, h("h3", {}, title), described(found[purpose], name))));
  });
}

export async function showLog() {
  await fill("#log .list", async () => {
    const entries = await api.log();
    if (!entries.length) return h("p", { class: "empty" }, "Nothing was done yet.");
    return table("Operations", ["Time", "Operation", "Outcome", "Pseudonym"],
      entries.map((entry) => [h("time", {}, String(entry.time).replace("T", " ").slice(0, 19)),
        entry.operation, entry.outcome, entry.pseudonym ? code(entry.pseudonym) : "–"]));
  });
}

function described(threshold, name) {
  if (!threshold) {
    return h("p", { class: "empty" }, "Not calibrated. ", h("br"),
      "Run ", h("code", {}, "veilface template calibrate"), ".");
  }
  const among = threshold.gallery ? ` among ${threshold.gallery.toLocaleString()} persons` : "";
  return h("div", {}, h("p", { class: "big" }, threshold.value.toFixed(4)), facts([
    [name, `${rate(threshold.target)}${among}`],
    ["95% interval", `${rate(threshold.low)} to ${rate(threshold.high)}`],
    ["Rests on", `${threshold.comparisons.toLocaleString()} comparisons of `
      + `${threshold.persons.toLocaleString()} persons`],
    ["Source", threshold.source],
    ["Model", code(threshold.model_id.slice(0, 12))]]));
}

async function fill(selector, work) {
  const list = find(selector);
  try {
    list.replaceChildren(await work());
  } catch (error) {
    list.replaceChildren(failed(error));
  }
}
