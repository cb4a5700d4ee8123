// The API as a signed-in browser uses it. Errors become ApiError with what to do about them.

export class ApiError extends Error {
  constructor(status, message, { retryAfter = null, code = null } = {}) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter;
    this.code = code;
  }

  /** What a person can do now. */
  get advice() {
    if (this.status === 0) return "The service cannot be reached. Check your connection, then try again.";
    if (this.status === 401) return "You are signed out. Sign in again; nothing you wrote is lost.";
    if (this.status === 413) return "It is too long. Shorten it, or clear the conversation.";
    if (this.status === 429) return `There is a limit. Try again in ${this.retryAfter ?? "a few"} seconds.`;
    if (this.status === 503) return `Not possible right now. Try again in ${this.retryAfter ?? "a few"} seconds.`;
    if (this.status >= 500) return "The fault is on our side. Try again.";
    return "";
  }
}

/** What an error says to a person, in one or two sentences. */
export function told(error) {
  const said = `${error.message.replace(/\.$/, "")}.`;
  if (!error.advice) return said;
  return [0, 401].includes(error.status) ? error.advice : `${said} ${error.advice}`;
}

let signedOut = () => {};

/** What to do when the session has ended. */
export function onSignedOut(callback) {
  signedOut = callback;
}

/** Call the API; resolves with the Response when it is a success. */
export async function call(method, path, body = undefined, { headers = {}, signal = undefined } = {}) {
  const options = { method, headers: { ...headers }, signal, credentials: "same-origin", cache: "no-store" };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "no connection");
  }
  if (response.ok) return response;
  throw await failure(response, path);
}

async function failure(response, path) {
  let said = {};
  try {
    said = (await response.json()).error ?? {};
  } catch { /* not ours: a proxy's page */ }
  const retryAfter = response.headers.get("retry-after");
  if (response.status === 401 && path !== "/v1/session") signedOut();
  return new ApiError(response.status, said.message ?? `the service answered ${response.status}`, { retryAfter, code: said.code });
}

/** Call the API and read JSON; null for an empty reply. */
export async function json(method, path, body = undefined, options = {}) {
  const response = await call(method, path, body, options);
  return response.status === 204 ? null : response.json();
}

/** Random text for an Idempotency-Key. */
export function randomKey() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Storage that may be absent or full: then things are forgotten at a reload, and nothing breaks. */
export function stored(storage, name) {
  return {
    read: () => {
      try { return JSON.parse(storage().getItem(name)); } catch { return null; }
    },
    write: (value) => {
      try { storage().setItem(name, JSON.stringify(value)); return true; } catch { return false; }
    },
    remove: () => {
      try { storage().removeItem(name); } catch { /* nothing was kept */ }
    },
  };
}

/** Forget everything of ours that this browser keeps, but not the theme. */
export function forgetAll() {
  for (const storage of [() => localStorage, () => sessionStorage]) {
    try {
      for (const name of Object.keys(storage())) if (name.startsWith("il-") && name !== "il-theme") storage().removeItem(name);
    } catch { /* nothing was kept */ }
  }
}
