// Who is enrolled, and erasure with a receipt to keep.

import * as api from "./api.js";
import { failed, find, h, note, onSubmit, table } from "./dom.js";
import { code } from "./recognise.js";

const list = () => find("#people .list");

export function start() {
  const subject = find("#erase-subject");
  onSubmit(find("#people form"), find("#people .result"), async () => {
    if (!(await confirmed(subject.value))) return null;
    const receipt = await api.erase(subject.value);
    subject.value = "";
    if (!list().hidden) await show();
    return note("good", "Erased", h("p", {}, "Keep the signed receipt: it proves the erasure."),
      download(receipt));
  });
}

export async function show() {
  try {
    const { total, subjects } = await api.people();
    list().replaceChildren(subjects.length
      ? table(total === 1 ? "1 person" : `${total.toLocaleString()} persons`,
        ["Pseudonym", "Templates", "Enrolled", "Model"],
        subjects.map((one) => [code(one.pseudonym), String(one.templates), h("span", { class: "date" }, one.created),
          one.stale ? h("strong", {}, "enrol again") : one.model_id.slice(0, 12)]))
      : h("p", { class: "empty" }, "Nobody is enrolled yet."));
  } catch (error) {
    list().replaceChildren(failed(error));
  }
}

function confirmed(subject) {
  const dialog = find("#confirm");
  find("#confirm-subject").textContent = subject;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}

function download(receipt) {
  const blob = new Blob([JSON.stringify(receipt)], { type: "application/json" });
  return h("button", {
    type: "button",
    onclick: () => {
      const url = URL.createObjectURL(blob);
      h("a", { href: url, download: "veilface-erasure-receipt.json" }).click();
      setTimeout(() => URL.revokeObjectURL(url), 10_000);
    },
  }, "Download receipt");
}
