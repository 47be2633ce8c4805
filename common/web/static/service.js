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

export async function call(path, options = {}) {
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

export const me = () => call("/v1/token");
export const description = () => call("/openapi.json");
