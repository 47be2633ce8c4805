// Elements, messages and tabs. Text is always set as text: nothing here can become markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export const find = (selector, within = document) => within.querySelector(selector);

export function note(kind, title, ...more) {
  return h("div", { class: `note ${kind}`, role: kind === "bad" ? "alert" : null },
    h("p", { class: "title" }, title), ...more);
}

export function failed(error) {
  return note("bad", error.message, error.hint ? h("p", {}, error.hint) : null);
}

// Runs `work` with the form's button disabled, and shows what it returns, or the error.
export function onSubmit(form, result, work) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = find("button:not([type])", form);
    button.disabled = true;
    result.setAttribute("aria-busy", "true");
    result.replaceChildren(h("p", { class: "wait" }, "Working…"));
    try {
      result.replaceChildren(...[await work()].flat().filter((child) => child != null));
    } catch (error) {
      result.replaceChildren(failed(error));
    }
    result.removeAttribute("aria-busy");
    button.disabled = false;
  });
}

export function table(caption, columns, rows) {
  const head = h("tr", {}, ...columns.map((name) => h("th", { scope: "col" }, name)));
  const body = rows.map((row) => h("tr", {}, ...row.map((cell) => h("td", {}, cell))));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    h("table", {}, h("caption", {}, caption), h("thead", {}, head), h("tbody", {}, ...body)));
}

// A score on the scale of cosines from 0 to 1, with the threshold drawn as a line.
export function scale(score, threshold) {
  const place = (value) => `${100 * Math.min(1, Math.max(0, value))}%`;
  const fill = h("span", { class: score >= threshold ? "fill reached" : "fill" });
  const line = h("span", { class: "line" });
  fill.style.width = place(score);
  line.style.left = place(threshold);
  return h("span", { class: "scale", "aria-hidden": "true" }, fill, line);
}

// Tabs by the WAI-ARIA pattern: arrow keys move, only the chosen tab is in the focus order.
export function tabs(list, names, onShow) {
  const buttons = names.map(([name, label]) => h("button", {
    type: "button", role: "tab", id: `tab-${name}`, "aria-controls": name,
    onclick: () => show(name),
  }, label));
  list.replaceChildren(...buttons);
  list.onkeydown = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const ends = { Home: 0, End: names.length - 1 };
    if (step === undefined && !(event.key in ends)) return;
    event.preventDefault();
    const at = buttons.indexOf(document.activeElement);
    const to = step === undefined ? ends[event.key] : (at + step + names.length) % names.length;
    show(names[to][0]);
    buttons[to].focus();
  };
  function show(chosen) {
    names.forEach(([name], row) => {
      const is = name === chosen;
      find(`#${name}`).hidden = !is;
      buttons[row].setAttribute("aria-selected", String(is));
      buttons[row].tabIndex = is ? 0 : -1;
      if (is) buttons[row].scrollIntoView?.({ block: "nearest", inline: "nearest" });
    });
    onShow(chosen);
  }
  show(names[0][0]);
}
