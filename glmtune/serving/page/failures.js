// What went wrong, in the reader's language, with the server's own words.

import { foreign, make } from "./elements.js";
import { say } from "./words.js";

const KNOWN = [401, 429, "lost", "malformed"];

/** Show a failure in an element. */
export function showFailure(element, failure) {
  const { kind, message, field, retryAfter } = failure;
  const word = KNOWN.includes(kind) ? `failed-${kind}` : "failed-other";
  const parts = [say(make("b"), word, { status: kind ?? failure.name })];
  if (message) parts.push(foreign(message));
  if (field && !message.startsWith(field)) parts.push(say(make("span"), "field", { field }));
  if (retryAfter) parts.push(say(make("span"), "retry-after", { n: retryAfter }));
  element.replaceChildren(...parts.flatMap((part) => [part, " "]));
  element.hidden = false;
}
