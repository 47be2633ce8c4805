// The models that a run has made, round by round: a line for each score, and a table.

import { call } from "./service.js";
import { failed, find, h, table } from "./dom.js";
import { number, percent, score } from "./words.js";

const known = new Map();

// They are asked for when somebody looks, and again after each round; until the answer is there,
// what was known before is shown.
export function models(it, open) {
  const place = h("div", {});
  const details = h("details", { class: "models", open }, h("summary", {}, "Models"), place);
  details.addEventListener("toggle", async () => {
    if (!details.open) return;
    try {
      if (known.get(it.run_id)?.round !== it.round) {
        const { versions } = await call(`/v1/runs/${encodeURIComponent(it.run_id)}`);
        known.set(it.run_id, { round: it.round, versions });
      }
      show(place, it.run_id);
    } catch (error) {
      place.replaceChildren(failed(error));
    }
  });
  if (open) show(place, it.run_id);
  return details;
}

// Whoever reads further down goes on reading there, though a new model comes on top.
function show(place, id) {
  const was = find(".scroll", place), below = was?.scrollTop ? was.scrollHeight - was.scrollTop : 0;
  const versions = known.get(id)?.versions ?? [];
  if (!versions.length) return place.replaceChildren(
    h("p", { class: "empty" }, known.has(id) ? "No round has finished yet." : "Working…"));
  const names = [...new Set(versions.flatMap((one) => Object.keys(one.scores)))].sort();
  const all = table(`Models of ${id}, the newest first`,
    ["Round", ...names.map(score), "Updates used", "Seconds", "Model"], versions.map((one) => [
      String(one.round),
      ...names.map((name) => name in one.scores ? percent(one.scores[name]) : "–"),
      one.accepted ? String(one.accepted) : "none: no sum",
      number(one.seconds),
      one.model ? h("code", { title: one.model }, one.model.slice(0, 12)) : "–"]));
  all.classList.add("tall");
  place.replaceChildren(
    h("div", { class: "trends" }, ...names.map((name) => trend(name, versions))), all);
  if (below) all.scrollTop = all.scrollHeight - below;
}

// A score over the rounds, as a line between its lowest and its highest value.
function trend(name, versions) {
  const points = versions.filter((one) => name in one.scores)
    .map((one) => [one.round, one.scores[name]]).reverse();
  if (points.length < 2) return null;
  const values = points.map(([, value]) => value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [[first, begin], [last, end]] = [points[0], points.at(-1)];
  const place = ([round, value]) =>
    `${100 * (round - first) / (last - first)},${40 * (high - value) / (high - low || 1)}`;
  const said = `${score(name)}: ${percent(begin)} after round ${first}, ${percent(end)} after ${last}`;
  return h("figure", { class: "trend" }, h("figcaption", {}, score(name)),
    h("span", { class: "high" }, percent(high)), h("span", { class: "low" }, percent(low)),
    svg("svg", { viewBox: "0 0 100 40", preserveAspectRatio: "none", role: "img", "aria-label": said },
      svg("polyline", { points: points.map(place).join(" "), "vector-effect": "non-scaling-stroke" })),
    h("span", { class: "first" }, `Round ${first}`), h("span", { class: "last" }, String(last)));
}

function svg(tag, properties, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(properties)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
