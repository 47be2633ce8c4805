// Pictures from files, by dropping them, or from the camera, with previews. Nothing is uploaded
// before the form is sent.

import { find, h } from "./dom.js";

let count = 0;

export class Pictures {
  constructor(box) {
    this.most = Number(box.dataset.most);
    this.images = [];
    this.urls = [];
    const id = `pictures-${++count}`;
    const many = this.most > 1;
    this.input = h("input", {
      id, type: "file", accept: "image/jpeg,image/png,image/webp", multiple: many,
      onchange: () => { this.add([...this.input.files]); this.input.value = ""; },
    });
    this.previews = h("ul", { class: "previews", "aria-label": "Chosen pictures" });
    this.status = h("p", { class: "hint", "aria-live": "polite" });
    const camera = h("button", { type: "button", class: "quiet", onclick: () => this.shoot() },
      "Use camera");
    camera.hidden = !navigator.mediaDevices?.getUserMedia;
    const drop = h("div", {
      class: "drop",
      ondragover: (event) => { event.preventDefault(); drop.classList.add("over"); },
      ondragleave: () => drop.classList.remove("over"),
      ondrop: (event) => {
        event.preventDefault();
        drop.classList.remove("over");
        this.add([...event.dataTransfer.files]);
      },
    }, h("div", { class: "buttons" }, this.input, camera), this.previews, this.status);
    box.append(h("label", { for: id }, many ? "Pictures" : "Picture"), drop);
    this.say();
  }

  add(files) {
    const images = files.filter((file) => file.type.startsWith("image/"));
    const kept = this.most === 1 ? images.slice(-1) : [...this.images, ...images];
    this.set(kept.length ? kept.slice(0, this.most) : this.images);
    if (images.length < files.length) this.status.textContent = "Only pictures can be added.";
    else if (kept.length > this.most) this.status.textContent = `At most ${this.most} pictures.`;
  }

  set(images) {
    this.urls.forEach((url) => URL.revokeObjectURL(url));
    this.images = images;
    this.urls = images.map((image) => URL.createObjectURL(image));
    this.previews.replaceChildren(...this.urls.map((url, row) => h("li", {},
      h("img", { src: url, alt: `Picture ${row + 1}` }),
      h("button", {
        type: "button", class: "remove", "aria-label": `Remove picture ${row + 1}`,
        onclick: () => { this.set(this.images.filter((_, other) => other !== row)); this.input.focus(); },
      }, "×"))));
    this.say();
  }

  say() {
    const chosen = this.images.length;
    const none = this.most > 1 ? "Choose files, drop them here, or use the camera."
      : "Choose a file, drop it here, or use the camera.";
    this.status.textContent = !chosen ? none : chosen === 1 ? "1 picture." : `${chosen} pictures.`;
  }

  need() {
    if (!this.images.length) {
      this.input.focus();
      throw Object.assign(new Error("There is no picture yet."), { hint: "Choose at least one." });
    }
    return this.images;
  }

  async shoot() {
    const dialog = find("#camera"), view = find("#camera-view");
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({
        video: { width: { ideal: 1280 }, facingMode: "user" }, audio: false,
      });
    } catch {
      this.status.textContent = "The camera cannot be used: the browser did not allow it, or there is none.";
      return;
    }
    const taken = new AbortController(), { signal } = taken;
    const stop = () => {
      taken.abort();
      stream.getTracks().forEach((track) => track.stop());
      view.srcObject = null;
    };
    dialog.addEventListener("close", stop, { signal });
    find("#camera-close").addEventListener("click", () => dialog.close(), { signal });
    find("#camera-shot").addEventListener("click", async () => {
      const image = await frame(view);
      dialog.close();
      if (image) this.add([image]);
    }, { signal });
    view.srcObject = stream;
    dialog.showModal();
    find("#camera-shot").focus();
    await view.play();
  }
}

async function frame(view) {
  if (!view.videoWidth) return null;
  const canvas = h("canvas");
  [canvas.width, canvas.height] = [view.videoWidth, view.videoHeight];
  canvas.getContext("2d").drawImage(view, 0, 0);
  return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.95));
}
