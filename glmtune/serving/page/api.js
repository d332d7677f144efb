// The server: what is asked of it, how answers are streamed, and what went wrong.

const STORED = "glmtune.key"; // in this tab alone

/** Why something was not answered. `kind` is a status of HTTP, `lost` or `malformed`. */
export class Failure extends Error {
  constructor(kind, message = "", field = null, retryAfter = null) {
    super(message);
    Object.assign(this, { kind, field, retryAfter });
  }
}

/** Keep a key for this tab; none: forget it. */
export function keepKey(key) {
  if (key) sessionStorage.setItem(STORED, key);
  else sessionStorage.removeItem(STORED);
}

/** Whether there is a key. */
export const hasKey = () => sessionStorage.getItem(STORED) !== null;

/** Return what a path of the server answers, as JSON. */
export async function fetchJson(path, body) {
  const response = await send(path, body);
  return response.json().catch(() => {
    throw new Failure("malformed");
  });
}

/** Return what a path of the server answers, as a file. */
export async function fetchFile(path) {
  return (await send(path)).blob();
}

/** Yield the events of a streamed answer. A stream that ends before it says so is a lost connection. */
export async function* streamEvents(path, body, signal) {
  const response = await send(path, body, signal);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for await (const data of dataOf(reader)) {
      if (data === "[DONE]") return;
      yield read(data);
    }
  } catch (error) {
    throw error instanceof Failure || signal.aborted ? error : new Failure("lost");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new Failure("lost");
}

async function send(path, body, signal) {
  const headers = {};
  if (hasKey()) headers.Authorization = `Bearer ${sessionStorage.getItem(STORED)}`;
  const request = { headers, signal, cache: "no-store" };
  if (body !== undefined) {
    headers["Content-Type"] = "application/json";
    Object.assign(request, { method: "POST", body: JSON.stringify(body) });
  }
  let response;
  try {
    response = await fetch(path, request);
  } catch (error) {
    throw signal?.aborted ? error : new Failure("lost");
  }
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  throw new Failure(response.status, error?.message, error?.param, response.headers.get("Retry-After"));
}

/** The `data` of server-sent events, each as soon as its blank line has come. */
async function* dataOf(reader) {
  let rest = "";
  let data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split(/\r?\n/);
    rest = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
      else if (line === "" && data.length) {
        yield data.join("\n");
        data = [];
      }
    }
  }
}

function read(data) {
  let event;
  try {
    event = JSON.parse(data);
  } catch {
    throw new Failure("malformed");
  }
  if (event.error) throw new Failure(event.error.code ?? "other", event.error.message, event.error.param);
  return event;
}
