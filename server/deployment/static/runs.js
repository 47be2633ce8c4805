// A run as a card: how far, what each site gave and spent, how good the model is, downloads.

import { ServiceError, token } from "./service.js";
import { failed, find, h, table } from "./dom.js";
import { models } from "./models.js";
import { left, number, percent, score, spent, state, time } from "./words.js";

export function run(it, id, old) {
  const result = h("div", { class: "result", "aria-live": "polite" });
  const part = `${it.run_id}-more`;
  const open = (name) => (old ? find(name, old).open : it.state === "running");
  return h("article", { class: "card run", id, tabindex: "-1", "aria-labelledby": `${part}-title` },
    h("div", { class: "line" },
      h("h3", { id: `${part}-title` }, it.run_id), state(it.state),
      h("span", { class: "round" }, `Round ${it.round} of ${it.rounds}`)),
    h("progress", { max: it.rounds, value: it.round, "aria-label": `Rounds of ${it.run_id}` }),
    it.why ? h("p", { class: it.state === "failed" ? "why bad" : "why" }, it.why) : null,
    h("div", { class: "figures" }, ...figures(it)),
    it.model || it.report ? h("div", { class: "buttons" },
      it.model ? fetched(it, "model", "Download model", `${it.run_id}.safetensors`, result) : null,
      it.report ? fetched(it, "report", "Download report", `${it.run_id}.html`, result) : null) : null,
    result,
    models(it, open(".models")),
    h("details", { class: "more", open: open(".more") },
      h("summary", {}, "Sites and settings"),
      it.sites.length ? shares(it) : h("p", { class: "empty" }, "No site was asked yet."),
      h("dl", {}, ...Object.entries({
        "Model": `${it.backbone}, ${it.trained} trained`,
        "Budget of each site": it.budget === null ? "none: not private"
          : `ε ${it.budget} at δ ${number(it.delta)}, one person added or removed`,
        "Seconds a round": it.round ? number(it.seconds / it.round) : "–",
        "Asked for": time(it.asked), "Last change": time(it.changed),
      }).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]))));
}

function figures(it) {
  const most = Math.max(0, ...it.sites.map((site) => site.spent));
  const found = [];
  if (it.budget !== null) {
    found.push(figure("ε spent at most", spent(most), `of ${it.budget} a site`,
      most / it.budget));
  }
  for (const [name, value] of Object.entries(it.scores).sort()) {
    const start = name in it.start ? `; ${percent(it.start[name])} before private training` : "";
    found.push(figure(score(name), percent(value),
      `TMR ${percent(1 - value)}, public test faces${start}`));
  }
  return found;
}

function figure(name, value, more, share) {
  const made = h("div", { class: "figure" }, h("p", { class: "name" }, name),
    h("p", { class: "big" }, value));
  if (share !== undefined) {
    const fill = h("span", { class: "fill" });
    fill.style.width = `${100 * Math.min(1, share)}%`;
    made.append(h("span", { class: "scale", "aria-hidden": "true" }, fill));
  }
  made.append(h("p", { class: "hint" }, more));
  return made;
}

function shares(it) {
  return table(`Sites in ${it.run_id}`,
    ["Site", "Rounds asked", "Updates used", "Not used", "ε at most", "ε left", "Last answer"],
    it.sites.map((site) => [h("strong", {}, site.site), String(site.asked), String(site.accepted),
      unused(site),
      spent(site.spent), left(site.left),
      site.refused ? h("span", { class: "said refused" }, site.refused) : site.accepted ? "used" : "–"]));
}

function unused({ rejections }) {
  const counts = Object.entries(rejections).sort(([, one], [, other]) => other - one);
  return counts.length
    ? h("span", { class: "said" }, counts.map(([why, count]) => `${count}\u00a0${why}`).join(", ")) : "–";
}

function fetched(it, what, words, name, result) {
  const button = h("button", { type: "button", class: "quiet" }, words);
  button.addEventListener("click", async () => {
    button.disabled = true;
    result.replaceChildren();
    try {
      save(await download(`/v1/runs/${encodeURIComponent(it.run_id)}/${what}`), name);
    } catch (error) {
      result.replaceChildren(failed(error));
    }
    button.disabled = false;
  });
  return button;
}

async function download(path) {
  let response;
  try {
    response = await fetch(path, { headers: { Authorization: `Bearer ${token.get() ?? ""}` } });
  } catch {
    throw new ServiceError(0, "The server does not answer.", "Is it running?");
  }
  if (response.ok) return response.blob();
  throw new ServiceError(response.status, `The server answered ${response.status}.`, "");
}

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
