// The conversation: questions, the answers of one or two models, and what is sent along of what was said before.

import { Answer } from "./answer.js";
import { fetchJson, streamEvents } from "./api.js";
import { make, makeButton } from "./elements.js";
import { say } from "./words.js";

export class Chat {
  turns = [];
  #stopper = null;

  /**
   * heads: which models answer. settings: a function that returns what is asked of them, or null where it is wrong.
   * changed: called when answering begins and ends. edit: called with a question that is to be written anew.
   */
  constructor(root, heads, settings, { changed, edit, needsKey }) {
    Object.assign(this, { root, heads, settings, changed, edit, needsKey });
  }

  get isAnswering() {
    return this.#stopper !== null;
  }

  /** Ask a question of all models that are picked; return whether it was asked. */
  async ask(question) {
    const wanted = this.settings();
    if (this.isAnswering || !question.trim() || !this.heads.picked.length || !wanted) return false;
    const models = this.heads.picked;
    const asked = models.map((model) => this.#messagesFor(model, question, wanted));
    const turn = { question, answers: models.map((model) => new Answer(model)) };
    turn.element = this.#show(turn);
    this.turns.push(turn);
    this.#stopper = new AbortController();
    this.changed();
    const { signal } = this.#stopper;
    await Promise.all(turn.answers.map((answer, place) => this.#answer(answer, asked[place], wanted.body, signal)));
    this.#stopper = null;
    this.changed();
    if (turn.answers.some((answer) => answer.failure?.kind === 401)) this.needsKey();
    return true;
  }

  /** Stop all answers that are being written. */
  stop() {
    this.#stopper?.abort();
  }

  /** Ask the last question again, in place of its answers. */
  again() {
    const turn = this.#takeBack();
    if (turn) this.ask(turn.question);
  }

  /** Forget everything. */
  clear() {
    this.stop();
    this.turns = [];
    this.root.replaceChildren();
    this.showTallies();
  }

  async #answer(answer, messages, body, signal) {
    const request = { model: answer.model, messages, ...body, stream: true, stream_options: { include_usage: true } };
    let failure = null;
    try {
      for await (const event of streamEvents("/v1/chat/completions", request, signal)) answer.take(event);
    } catch (error) {
      answer.isStopped = signal.aborted;
      failure = signal.aborted ? null : error;
    }
    answer.end(failure);
    if (!failure && !answer.isStopped) await this.#mark(answer, messages);
  }

  async #mark(answer, messages) {
    const model = this.heads.markerOf(answer.model);
    if (!model) return;
    const { text: completion, calls: tool_calls } = answer;
    try {
      answer.showMark(await fetchJson("/api/score", { model, messages, completion, tool_calls }));
    } catch (failure) {
      answer.showUnmarked(failure);
    }
    this.showTallies();
  }

  #messagesFor(model, question, { system, earlier }) {
    const isSent = earlier === "all" || (earlier === "auto" && !this.heads.modelOf(model)?.task);
    const before = isSent ? this.turns.flatMap((turn) => saidTo(model, turn)) : [];
    const start = system ? [{ role: "system", content: system }] : [];
    return [...start, ...before, { role: "user", content: question }];
  }

  #show(turn) {
    const question = make("h2", "asked", turn.question);
    question.dir = "auto";
    const again = say(makeButton(() => this.again()), "again");
    const edit = say(makeButton(() => this.isAnswering || this.edit(this.#takeBack().question)), "edit");
    const top = make("div", "top", question, make("div", "actions", edit, again));
    const answers = make("div", "answers", ...turn.answers.map((answer) => answer.element));
    answers.classList.toggle("two", turn.answers.length > 1);
    const element = make("article", "turn", top, answers);
    this.root.append(element);
    return element;
  }

  #takeBack() {
    if (this.isAnswering) return null;
    const turn = this.turns.pop();
    if (turn?.element.contains(document.activeElement)) this.root.closest("main").focus();
    turn?.element.remove();
    this.showTallies();
    return turn;
  }

  /** Show how many answers of each model are right. */
  showTallies() {
    const marks = new Map();
    for (const { model, mark } of this.turns.flatMap((turn) => turn.answers)) {
      if (mark) marks.set(model, [...(marks.get(model) ?? []), mark]);
    }
    this.heads.showTallies(marks);
  }
}

/** What was said to a model in a turn; nothing where it did not answer. */
function saidTo(model, { question, answers }) {
  const answer = answers.find((one) => one.model === model && one.isKept);
  if (!answer) return [];
  return [{ role: "user", content: question }, ...answer.said, { role: "assistant", content: answer.text }];
}
