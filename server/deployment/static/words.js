// Numbers, times and states in words.

import { h } from "./dom.js";

const STATES = {
  online: "good", running: "good", finished: "good", failed: "bad", offline: "bad",
  waiting: "warn", cancelled: "warn", never: "warn",
};
const WORDS = { never: "not yet seen" };

export const state = (name) =>
  h("span", { class: `state ${STATES[name] ?? "warn"}` }, WORDS[name] ?? name);
export const number = (value) => value && Math.abs(value) < 1e-3
  ? value.toExponential(value.toPrecision(2).endsWith("0") ? 0 : 1).replace("-", "−")
  : String(Number(value.toPrecision(3)));
// An epsilon: of what was spent never less, of what is left never more.
export const spent = (epsilon) => String(Math.ceil(100 * epsilon - 1e-6) / 100);
export const left = (epsilon) => String(Math.floor(100 * epsilon + 1e-6) / 100);
export const percent = (value) => `${number(100 * value)}%`;

export function ago(then, now) {
  if (!then) return "";
  const seconds = Math.max(0, (Date.parse(now) - Date.parse(then)) / 1000);
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]]
    .find(([many]) => seconds >= many) ?? [1, "s"];
  return seconds < 5 ? "just now" : `${Math.floor(seconds / size)} ${unit} ago`;
}

export const time = (stamp) => `${stamp.slice(0, 10)} ${stamp.slice(11, 19)} UTC`;

// What a score of the server, such as fnmr_at_fmr_1e-2, is called.
export const score = (name) => `FNMR at FMR ${percent(Number(name.split("_").at(-1)))}`;
