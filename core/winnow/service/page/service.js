// Requests to the service that this page comes from. Addresses are relative, so that it may lie behind a path.

const STORED_KEY = "winnow.key"; // in sessionStorage: the tab's, gone when it is closed

/** A request that was not answered as asked. */
export class Fault extends Error {
  constructor(message, status = 0, param = null) {
    super(message);
    this.status = status;
    this.param = param;
  }
}

export function key() {
  return sessionStorage.getItem(STORED_KEY) ?? "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem(STORED_KEY, value);
  else sessionStorage.removeItem(STORED_KEY);
}

/**
 * Ask the service.
 * @param {string} path Such as "v1/rerank".
 * @param {object | null} body What is sent as JSON; null for a GET.
 * @param {AbortSignal} [signal] Ends the request; the service then withdraws its prompts.
 * @throws {Fault} The service answers with an error, or not at all.
 */
export async function ask(path, body = null, signal = undefined) {
  const headers = {};
  if (key()) headers.Authorization = `Bearer ${key()}`;
  if (body !== null) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method: body === null ? "GET" : "POST",
      headers,
      body: body === null ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Fault("The server does not answer. Does it run?");
  }
  const found = await answer.json().catch(() => null);
  if (answer.ok && found !== null) return found;
  const message = found?.error?.message ?? `The server answered with status ${answer.status}.`;
  const wait = answer.headers.get("Retry-After");
  throw new Fault(wait ? `${message} (Try again in ${wait} s.)` : message, answer.status, found?.error?.param ?? null);
}

/** The same request for a shell. The key is not in it, but the name of a variable for it. */
export function asCurl(path, body) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const authorization = key() ? ` \\\n  -H "Authorization: Bearer $WINNOW_KEY"` : "";
  const address = new URL(path, document.baseURI).href;
  return `curl ${quoted(address)} -H "Content-Type: application/json"${authorization} \\\n  -d ${quoted(JSON.stringify(body))}`;
}
