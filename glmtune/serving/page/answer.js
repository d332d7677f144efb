// One answer of one model: its text as it comes, the tools that it called, its mark, and what went wrong.

import { foreign, make } from "./elements.js";
import { showFailure } from "./failures.js";
import { alignNumbers } from "./figures.js";
import { say } from "./words.js";
import { Writer } from "./writer.js";

const SIGNS = { right: "✓", wrong: "✗" };
const SHOWN = ["correct", "answer", "right"]; // of a mark, as figures

export class Answer {
  said = []; // the turns of tools between question and answer
  mark = null; // right or wrong, once it is known
  failure = null;
  isStopped = false;
  #calls = []; // for whoever asked to run
  #started = performance.now();
  #usage = null;
  #thought = "";
  #reason = null;

  constructor(model) {
    this.model = model;
    this.status = say(make("span", "status"), "writing");
    this.status.role = "status";
    this.folded = make("div", "folded");
    this.body = make("div", "text");
    this.body.ariaLive = "polite";
    this.body.ariaBusy = "true";
    this.error = make("p", "error");
    this.error.role = "alert";
    this.error.hidden = true;
    this.foot = make("div", "foot");
    this.meta = make("p", "meta");
    this.element = make("section", "answer");
    say(this.element, "answer-of", { name: model }, "label");
    const head = make("h3", "", foreign(model), this.status);
    this.element.append(head, this.folded, this.body, this.error, this.foot, this.meta);
    this.writer = new Writer(this.body);
  }

  /** What the model answered, without the turns before. */
  get text() {
    return this.writer.text;
  }

  /** All calls of tools on the way, and at the end. */
  get calls() {
    return [...this.said.flatMap((turn) => turn.tool_calls ?? []), ...this.#calls];
  }

  /** Whether it may be part of what is said later. */
  get isKept() {
    return this.failure === null && (this.text !== "" || this.#calls.length === 0);
  }

  /** Take an event of the stream. */
  take(event) {
    this.#usage = event.usage ?? this.#usage;
    const choice = event.choices?.[0];
    if (!choice) return;
    const { content, refusal, reasoning_content: thought = "", tool_calls: calls = [] } = choice.delta ?? {};
    this.#thought += thought ?? "";
    if (content) this.writer.write(content);
    for (const call of calls) this.#addCall(call);
    this.#reason = choice.finish_reason ?? this.#reason;
    if (choice.messages?.length) this.#fold(choice.messages, Boolean(choice.finish_reason));
    if (refusal ?? choice.refusal) this.#note("refused", refusal ?? choice.refusal);
  }

  /** The stream has ended, by itself, by a failure, or because it was stopped. */
  end(failure = null) {
    this.failure = failure;
    this.writer.end();
    this.body.ariaBusy = "false";
    this.status.replaceChildren();
    delete this.status.dataset.word;
    if (this.#thought) this.folded.prepend(foldedThought(this.#thought));
    if (this.#calls.length) this.#showCalls(this.#calls);
    if (failure) {
      this.element.classList.add("failed");
      showFailure(this.error, failure);
    } else if (!this.text && !this.#calls.length && !this.isStopped) {
      this.body.append(say(make("p", "note"), "nothing"));
    }
    this.#showMeta();
  }

  /** Show what the task says of it. */
  showMark(told) {
    const others = Object.entries(told).filter(([name, value]) => !SHOWN.includes(name) && value !== null);
    if (typeof told.correct === "number") {
      this.mark = told.correct === 1 ? "right" : "wrong";
      this.element.classList.add(this.mark);
      const sign = make("span", "", SIGNS[this.mark]);
      sign.ariaHidden = "true";
      this.status.replaceChildren(sign, " ", say(make("b"), this.mark));
      this.foot.append(this.#figures(told));
    }
    if (others.length) {
      this.foot.append(make("dl", "told", ...others.flatMap(remarkOf)));
    }
  }

  /** Say why there is no mark. */
  showUnmarked(failure) {
    this.foot.append(say(make("p", "note"), "unmarked", { reason: failure.message || failure.kind }));
  }

  #figures({ answer, right }) {
    const given = answer ?? "";
    const isCorrected = this.mark === "wrong" && Boolean(right);
    const [one, other] = isCorrected ? alignNumbers(given, right) : [[given]];
    const answered = given ? make("dd", "given", ...one) : make("dd", "", say(make("span", "note"), "no-answer"));
    const list = make("dl", "figures", say(make("dt"), "answered"), answered);
    if (isCorrected) list.append(say(make("dt"), "right-answer"), make("dd", "", ...other));
    return list;
  }

  /** Fold out the turns of tools: those that just ended, or at the end all. What they said is no part of the answer. */
  #fold(messages, isLast) {
    const found = messages.filter((turn) => turn.role === "tool" || turn.tool_calls?.length);
    const turns = isLast ? found.slice(this.said.length) : found;
    this.said.push(...turns);
    const before = turns.map((turn) => (turn.role === "tool" ? "" : (turn.content ?? ""))).join("");
    if (!isLast) this.writer.reset("");
    else if (before && this.text.startsWith(before)) this.writer.reset(this.text.slice(before.length));
    const results = this.said.filter((turn) => turn.role === "tool");
    this.folded.replaceChildren();
    this.#showCalls(this.said.flatMap((turn) => turn.tool_calls ?? []), results);
  }

  #showCalls(calls, results = []) {
    for (const [place, call] of calls.entries()) {
      const result = results.find((turn) => turn.tool_call_id && turn.tool_call_id === call.id) ?? results[place];
      this.folded.append(foldedCall(call.function, result));
    }
  }

  #addCall({ index = 0, id, function: part = {} }) {
    const call = (this.#calls[index] ??= { id, type: "function", function: { name: "", arguments: "" } });
    call.function.name += part.name ?? "";
    call.function.arguments += part.arguments ?? "";
  }

  #note(word, text) {
    this.foot.append(make("p", "refusal", say(make("b"), word), " ", foreign(text)));
  }

  #showMeta() {
    const seconds = (performance.now() - this.#started) / 1000;
    const parts = [say(make("span"), "seconds", { n: seconds.toFixed(1) })];
    const tokens = this.#usage?.completion_tokens;
    if (tokens !== undefined) parts.unshift(say(make("span"), "tokens", { n: tokens }));
    if (this.isStopped) parts.push(say(make("span"), "stopped"));
    else if (this.#reason === "length") parts.push(say(make("span", "cut"), "length"));
    this.meta.replaceChildren(...parts);
  }
}

/** What a task says beside the mark: `first_fault` and the like. */
function remarkOf([name, value]) {
  return [make("dt", "", name.replaceAll("_", " ")), make("dd", "", foreign(String(value)))];
}

/** What was thought before the answer, folded out on demand. */
function foldedThought(thought) {
  return make("details", "tool", say(make("summary"), "thought"), make("pre", "", foreign(thought)));
}

/** A call of a tool and what it said, folded out on demand. */
function foldedCall({ name, arguments: given }, result) {
  const asked = typeof given === "string" ? given : JSON.stringify(given);
  const said = result === undefined ? "" : textIn(result.content);
  const folded = make("details", "tool", make("summary", "", foreign(name), " ", foreign(brief(given))));
  folded.append(make("pre", "", foreign(asked)));
  if (said) {
    folded.firstChild.append(" → ", foreign(shorten(said)));
    folded.append(make("pre", "", foreign(said)));
  }
  return folded;
}

/** The arguments of a call in a few words: its values. */
function brief(given) {
  try {
    const values = Object.values(typeof given === "string" ? JSON.parse(given) : given);
    return shorten(values.map((value) => (typeof value === "string" ? value : JSON.stringify(value))).join(", "));
  } catch {
    return shorten(String(given));
  }
}

const shorten = (text) => (text.length > 60 ? `${text.slice(0, 60)}…` : text);

function textIn(content) {
  return Array.isArray(content) ? content.map((part) => part.text ?? "").join("") : (content ?? "");
}
