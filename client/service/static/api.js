// The service, as functions.

import { call } from "./service.js";

function form(fields) {
  const body = new FormData();
  for (const [name, value] of fields) {
    if (value instanceof Blob) body.append(name, value, "picture");
    else body.append(name, value);
  }
  return { method: "POST", body };
}

export const enrol = (subject, images) =>
  call("/v1/subjects", form([["subject", subject], ...images.map((image) => ["images", image])]));
export const verify = (subject, image) =>
  call("/v1/verify", form([["subject", subject], ["image", image]]));
export const identify = (image, top) => call("/v1/identify", form([["image", image], ["top", top]]));
export const people = () => call("/v1/subjects");
export const erase = (subject) => call("/v1/subjects/erase", {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ subject }),
});
export const thresholds = () => call("/v1/thresholds");
export const log = () => call("/v1/log");
