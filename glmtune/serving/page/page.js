// Puts the parts of the page together.

import { fetchJson, keepKey } from "./api.js";
import { Chat } from "./chat.js";
import { foreign, make } from "./elements.js";
import { showFailure } from "./failures.js";
import { Heads } from "./heads.js";
import { readSettings, showRuns } from "./side.js";
import { setTheme, switchTheme } from "./theme.js";
import { preferredLanguage, say, speak, switchLanguage } from "./words.js";

const at = (id) => document.getElementById(id);
const goToEnd = followEnd();
const isWide = matchMedia("(min-width: 1000px)");
const question = at("question");

const heads = new Heads(at("heads"), () => {
  showEmpty();
  chat.showTallies();
});
const chat = new Chat(at("turns"), heads, () => readSettings(at("settings"), () => openSide(true)), {
  changed: showState,
  needsKey: askForKey,
  edit(text) {
    question.value = text;
    showState();
    question.focus();
  },
});

/** Read what the server has. */
async function load() {
  const error = at("empty").querySelector(".error");
  try {
    heads.fill(await fetchJson("/api/models"));
    error.hidden = true;
    showEmpty();
  } catch (failure) {
    showFailure(error, failure);
    if (failure.kind === 401) return askForKey();
  }
  await showRuns(at("runs"));
}

/** What stands where nothing was asked yet: who answers. */
function showEmpty() {
  const picked = heads.picked.map((name) => heads.modelOf(name));
  const [hint, list] = at("empty").children;
  const draws = picked.some((model) => model.task === "arithmetic");
  hint.hidden = false;
  say(hint, picked.length ? (draws ? "empty-draw" : "empty") : "no-models");
  const entriesOf = (model) => [make("dt", "", foreign(model.name)), make("dd", "", ...factsOf(model))];
  list.replaceChildren(...picked.flatMap(entriesOf));
  at("draw").hidden = !draws;
}

function factsOf({ task, parent, max_model_len: limit, is_ready: isReady, remark }) {
  const facts = [task && foreign(task), parent && say(make("span"), "on-base", { name: parent })];
  facts.push(limit && say(make("span"), "context-of", { n: limit.toLocaleString("en") }));
  facts.push(!isReady && say(make("b", "unready"), "not-ready"), remark && foreign(remark));
  return facts.filter(Boolean).flatMap((fact, place) => [place ? " · " : "", fact]);
}

function showState() {
  at("empty").hidden = chat.turns.length > 0;
  swap(...(chat.isAnswering ? ["send", "stop"] : ["stop", "send"]).map(at));
  at("draw").disabled = chat.isAnswering;
  if (chat.isAnswering) goToEnd();
}

/** Put a button in the place of another, with the focus. */
function swap(before, after) {
  const isFocused = document.activeElement === before;
  before.hidden = true;
  after.hidden = false;
  if (isFocused) after.focus();
}

function openSide(isOpen) {
  at("side").hidden = !isOpen;
  at("menu").ariaExpanded = String(isOpen);
  at("stage").inert = isOpen && !isWide.matches; // where the side covers it
}

function askForKey() {
  at("key").hidden = false;
  at("key-field").focus();
}

async function send() {
  const text = question.value;
  if (chat.isAnswering) return;
  const asking = chat.ask(text);
  if (chat.isAnswering) question.value = "";
  await asking;
}

/** A problem of arithmetic with two numbers of up to four digits. */
function drawProblem() {
  const below = (most) => Math.floor(Math.random() * most);
  const number = () => String(below(10 ** (2 + below(3))) / 10 ** below(3));
  return `${number()}${"+-*"[below(3)]}${number()}=`;
}

/** Stay at the end of what is written, unless the reader has gone up; return what goes to the end. */
function followEnd() {
  const stage = at("stage");
  let isAtEnd = true;
  const goToEnd = () => {
    stage.scrollTop = stage.scrollHeight;
  };
  stage.addEventListener("scroll", () => {
    isAtEnd = stage.scrollHeight - stage.scrollTop - stage.clientHeight < 60;
  });
  new ResizeObserver(() => isAtEnd && goToEnd()).observe(at("turns"));
  return goToEnd;
}

function listen() {
  at("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    send();
  });
  question.addEventListener("keydown", (event) => {
    const isChoosing = event.isComposing || event.keyCode === 229; // a word of an input method
    if (event.key !== "Enter" || event.shiftKey || isChoosing) return;
    event.preventDefault();
    send();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || event.isComposing) return;
    if (chat.isAnswering) chat.stop();
    else if (!isWide.matches && !at("side").hidden) {
      openSide(false);
      at("menu").focus();
    }
  });
  at("key").addEventListener("submit", async (event) => {
    event.preventDefault();
    keepKey(at("key-field").value);
    at("key-field").value = "";
    at("key").hidden = true;
    await load();
    if (chat.turns.at(-1)?.answers.some((answer) => answer.failure?.kind === 401)) chat.again();
    question.focus();
  });
  at("settings").addEventListener("submit", (event) => event.preventDefault());
  at("stop").addEventListener("click", () => chat.stop());
  at("draw").addEventListener("click", () => chat.ask(drawProblem()));
  at("new").addEventListener("click", () => {
    chat.clear();
    showState();
    load();
    question.focus();
  });
  at("change-key").addEventListener("click", () => {
    openSide(isWide.matches);
    askForKey();
  });
  at("menu").addEventListener("click", () => openSide(at("side").hidden));
  at("language").addEventListener("click", switchLanguage);
  at("theme").addEventListener("click", switchTheme);
  isWide.addEventListener("change", () => openSide(isWide.matches));
}

setTheme(at("theme"));
speak(preferredLanguage());
openSide(isWide.matches);
listen();
load();
question.focus();
