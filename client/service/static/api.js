// The service, as functions. The token lives in this tab's session storage and nowhere else.

const KEY = "veilface-token";

export const token = {
  get: () => sessionStorage.getItem(KEY),
  set: (text) => sessionStorage.setItem(KEY, text),
  forget: () => sessionStorage.removeItem(KEY),
};

export class ServiceError extends Error {
  constructor(status, message, hint) {
    super(message);
    this.status = status;
    this.hint = hint;
  }
}

const WORDS = { 401: ["This token does not work.", "It may be mistyped, expired or revoked."] };

async function call(path, options = {}) {
  const headers = { Authorization: `Bearer ${token.get() ?? ""}`, ...options.headers };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch {
    throw new ServiceError(0, "The service does not answer.", "Is it running?");
  }
  const body = await response.json().catch(() => null);
  if (response.ok) return body;
  const [error, hint] = WORDS[response.status] ??
    [body?.error ?? `The service answered ${response.status}.`, body?.hint];
  throw new ServiceError(response.status, sentence(error), sentence(hint ?? ""));
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function form(fields) {
  const body = new FormData();
  for (const [name, value] of fields) {
    if (value instanceof Blob) body.append(name, value, "picture");
    else body.append(name, value);
  }
  return { method: "POST", body };
}

export const me = () => call("/v1/token");
export const description = () => call("/openapi.json");
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
