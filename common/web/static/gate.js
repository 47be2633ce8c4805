// The gate before a page: takes a token, opens the page with it, and locks the page again.

import { me, token } from "./service.js";
import { failed, find, h } from "./dom.js";

const gate = find("#gate"), result = find("#gate .result"), field = find("#token");

// `open` shows what a token with these scopes is good for, and returns what then has the focus, or
// throws; `shut` hides it again. Returns what locks the page, saying why.
export function start(open, shut) {
  async function unlock() {
    const { id, scopes } = await me();
    const first = await open(scopes);
    find("#who").textContent = `Token ${id.slice(0, 6)}`;
    gate.hidden = true;
    find("#session").hidden = false;
    result.replaceChildren();
    return first;
  }

  function lock(...why) {
    token.forget();
    shut();
    gate.hidden = false;
    find("#session").hidden = true;
    result.replaceChildren(...why);
    field.focus();
  }

  find("#unlock").addEventListener("submit", (event) => {
    event.preventDefault();
    token.set(field.value.trim());
    field.value = "";
    result.replaceChildren(h("p", { class: "wait" }, "Working…"));
    unlock().then((first) => first.focus(), (error) => lock(failed(error)));
  });
  // A fresh page holds nothing of what whoever looked before has seen.
  find("#leave").addEventListener("click", () => { token.forget(); location.reload(); });

  if (token.get()) unlock().catch((error) => lock(failed(error)));
  else lock();
  return lock;
}
