// Beside the conversation: what is asked of models, and the runs with their reports.

import { fetchFile, fetchJson, hasKey } from "./api.js";
import { foreign, make, percent } from "./elements.js";
import { showFailure } from "./failures.js";
import { say } from "./words.js";

const NUMBERS = ["temperature", "top_p", "max_completion_tokens", "seed"];

/** Return what the form asks for; what is left empty is as the model says. Null where a field is wrong. */
export function readSettings(form, open) {
  if (!form.checkValidity()) {
    open();
    form.reportValidity();
    return null;
  }
  const given = NUMBERS.filter((name) => form.elements[name].value !== "");
  const body = Object.fromEntries(given.map((name) => [name, Number(form.elements[name].value)]));
  return { body, system: form.elements.system.value.trim(), earlier: form.elements.earlier.value };
}

/** Show the runs, or why they cannot be shown. */
export async function showRuns(root) {
  const error = root.querySelector(".error");
  try {
    const runs = await fetchJson("/api/runs");
    error.hidden = true;
    root.querySelector(".note").hidden = runs.length > 0;
    root.querySelector("ul").replaceChildren(...runs.map(entryOf));
  } catch (failure) {
    showFailure(error, failure);
  }
}

function entryOf({ name, task, base, accuracy, has_report: hasReport }) {
  const about = make("span", "about");
  about.append(...[task, base].filter(Boolean).flatMap((text, place) => [place ? " · " : "", foreign(text)]));
  const entry = make("li", "", make("b", "", foreign(name)), about);
  if (typeof accuracy === "number") {
    const bar = make("span", "bar");
    bar.style.setProperty("--share", String(accuracy));
    entry.append(make("span", "accuracy", percent(accuracy, 1)), bar);
  } else entry.append(say(make("span", "about"), "not-measured"));
  if (hasReport) entry.append(linkTo(name));
  return entry;
}

/** A link to a report. A page that is opened sends no key, so that with one the report is saved as a file. */
function linkTo(name) {
  const link = say(say(make("a"), "report"), "report-of", { name }, "label");
  const path = `/api/runs/${encodeURIComponent(name)}/report`;
  Object.assign(link, { href: path, target: "_blank", rel: "noopener" });
  link.addEventListener("click", (event) => {
    if (!hasKey()) return;
    event.preventDefault();
    const error = link.closest("section").querySelector(".error");
    save(path, `${name}.html`).catch((failure) => showFailure(error, failure));
  });
  return link;
}

async function save(path, name) {
  const address = URL.createObjectURL(await fetchFile(path));
  const link = Object.assign(document.createElement("a"), { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
