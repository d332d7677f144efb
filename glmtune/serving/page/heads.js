// Which models answer, one or two side by side, and how many of their answers are right.

import { make } from "./elements.js";
import { say } from "./words.js";

export class Heads {
  models = [];

  constructor(root, changed) {
    this.root = root;
    this.selects = [...root.querySelectorAll("select")];
    this.outputs = [...root.querySelectorAll("output")];
    for (const select of this.selects) {
      select.addEventListener("change", () => {
        this.#settle();
        changed();
      });
    }
  }

  /** Names of the models that answer, from left to right. */
  get picked() {
    return this.selects.map((select) => select.value).filter(Boolean);
  }

  /** Return what is known of a model. */
  modelOf(name) {
    return this.models.find((model) => model.name === name);
  }

  /** Offer models. What was picked stays while it is served; at first a tuned model stands beside its base. */
  fill(models) {
    const before = this.picked.filter((name) => models.some((model) => model.name === name));
    const wanted = before.length ? before : firstPick(models);
    this.models = models;
    this.root.hidden = !models.length;
    for (const [place, select] of this.selects.entries()) {
      const options = models.map(({ name }) => new Option(name, name));
      if (place) options.unshift(say(new Option("", ""), "alone"));
      select.replaceChildren(...options);
      select.value = wanted[place] ?? "";
    }
    this.selects[1].parentElement.hidden = models.length < 2;
    this.#settle();
  }

  /** Return the name of the model whose task marks an answer: its own, else that beside it; none: undefined. */
  markerOf(name) {
    return [name, ...this.picked].find((one) => this.modelOf(one)?.task);
  }

  /** Show how many answers of each model are right; `marks` are lists of `right` and `wrong` by name. */
  showTallies(marks) {
    for (const [place, output] of this.outputs.entries()) {
      const given = marks.get(this.selects[place].value) ?? [];
      const right = given.filter((mark) => mark === "right").length;
      output.replaceChildren();
      if (!given.length) continue;
      const bar = make("span", "bar");
      bar.style.setProperty("--share", String(right / given.length));
      output.append(bar, say(make("span"), "tally", { right, marked: given.length }));
    }
  }

  #settle() {
    const [first, second] = this.selects;
    for (const [select, other] of [[first, second], [second, first]]) {
      for (const option of select.options) option.disabled = option.value !== "" && option.value === other.value;
    }
    this.root.classList.toggle("two", second.value !== "");
  }
}

function firstPick(models) {
  const [first] = models;
  if (!first) return [];
  const base = models.find((model) => model.name === first.parent);
  const tuned = models.find((model) => model.parent === first.name);
  return [base, first, base ? undefined : tuned].flatMap((model) => model?.name ?? []);
}
