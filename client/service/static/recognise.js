// Enrol, verify, identify.

import * as api from "./api.js";
import { find, h, note, onSubmit, scale } from "./dom.js";
import { Pictures } from "./pictures.js";

const rate = (value) => `${Number((100 * value).toPrecision(2))}%`;
const number = (value) => value.toFixed(3);

const checks = (answer) => answer.warnings.map((warning) => note("warn", "Please check", h("p", {}, warning)));

export function start() {
  form("enrol", async (subject, pictures) => {
    const done = await api.enrol(subject, pictures.need());
    pictures.set([]);
    return [note("good", "Enrolled", facts([
      ["Pseudonym", code(done.pseudonym)], ["Templates added", String(done.templates)]])), ...checks(done)];
  });
  form("verify", async (subject, pictures) => {
    const decision = await api.verify(subject, pictures.need()[0]);
    const title = decision.accepted ? "Accepted: the same person" : "Rejected: not the same person";
    return [note(decision.accepted ? "good" : "bad", title, facts([
      ["Score", decision.score === null ? "Not told to a token that may only verify"
        : h("span", { class: "score" }, number(decision.score), scale(decision.score, decision.threshold))],
      ["Threshold", `${number(decision.threshold)}, at which ${rate(decision.fmr)} of strangers would pass`],
      ["Pseudonym", code(decision.pseudonym)]])), ...checks(decision)];
  });
  form("identify", async (_, pictures) => {
    const found = await api.identify(pictures.need()[0], find("#identify-top").value);
    const title = found.accepted ? "Found" : "Nobody of this vault";
    const about = found.accepted ? code(found.accepted.pseudonym)
      : "No candidate reaches the threshold.";
    return [
      note(found.accepted ? "good" : "bad", title, h("p", {}, about)),
      ...checks(found),
      found.candidates.length ? gallery(found) : null,
    ];
  });
}

function form(name, work) {
  const section = find(`#${name}`);
  const pictures = new Pictures(find(".pictures", section));
  const subject = find(`#${name}-subject`);
  onSubmit(find("form", section), find(".result", section), () => work(subject?.value, pictures));
}

function gallery(found) {
  const rows = found.candidates.map((one) => {
    const reached = one.score >= found.threshold;
    return h("li", { class: reached ? "reached" : null },
      code(one.pseudonym), scale(one.score, found.threshold),
      h("span", { class: "value" }, number(one.score),
        h("span", { class: "unseen" }, reached ? ", reaches the threshold" : ", below the threshold")));
  });
  return h("figure", {},
    h("figcaption", {}, `Best candidates. The line is the threshold, ${number(found.threshold)}: `
      + `${rate(found.fpir)} of strangers would be taken for someone.`),
    h("ol", { class: "gallery" }, ...rows));
}

export const code = (text) => h("code", { class: "id", title: text }, text);

export function facts(pairs) {
  return h("dl", {}, ...pairs.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
}
