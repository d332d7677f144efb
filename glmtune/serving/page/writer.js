// Text of a model as it comes, put into text nodes and nothing else. Fenced code gets a block of its own.

const BLOCK = 4000; // characters, after which the next line begins a new block: only the last one is laid out again
const FENCE = /^ {0,3}(`{3,})([^`]*)$/;
const MAY_BECOME_FENCE = /^ {0,3}(`{0,2}|`{3,}[^`]{0,80})$/;

/** Writes into an element, at most once a frame. */
export class Writer {
  text = "";
  #element;
  #pending = "";
  #frame = 0;
  #fence = ""; // that ends the code; empty outside of code
  #parent;
  #node = null;
  #startsLine = true;

  constructor(element) {
    this.#element = this.#parent = element;
  }

  /** Add a piece. */
  write(piece) {
    this.text += piece;
    this.#pending += piece;
    this.#frame ||= requestAnimationFrame(() => this.#flush(false));
  }

  /** Write what is held back: nothing follows. */
  end() {
    cancelAnimationFrame(this.#frame);
    this.#flush(true);
  }

  /** Begin anew. */
  reset(text) {
    this.#element.replaceChildren();
    this.#parent = this.#element;
    this.#node = null;
    this.#fence = this.#pending = this.text = "";
    this.#startsLine = true;
    if (text) this.write(text);
  }

  #flush(isLast) {
    const pending = this.#pending;
    this.#frame = 0;
    this.#pending = "";
    let start = 0; // of what is not written yet
    let place = 0;
    while (place < pending.length) {
      const end = pending.indexOf("\n", place);
      const line = pending.slice(place, end < 0 ? undefined : end);
      const isWhole = end >= 0 || isLast;
      if (this.#startsLine && !isWhole && MAY_BECOME_FENCE.test(line)) {
        this.#pending = pending.slice(place);
        break;
      }
      const next = end < 0 ? pending.length : end + 1;
      if (this.#startsLine && isWhole && this.#isFence(line)) {
        this.#append(pending.slice(start, place));
        this.#switch(line);
        start = next;
      }
      place = next;
      this.#startsLine = end >= 0;
    }
    this.#append(pending.slice(start, place));
  }

  #isFence(line) {
    const found = FENCE.exec(line);
    return found !== null && (!this.#fence || (found[1].length >= this.#fence.length && !found[2].trim()));
  }

  #switch(line) {
    this.#node = null;
    this.#parent = this.#element;
    this.#fence = this.#fence ? "" : FENCE.exec(line)[1];
    if (this.#fence) {
      this.#parent = document.createElement("pre");
      this.#parent.tabIndex = 0;
      this.#element.append(this.#parent);
    }
  }

  #append(text) {
    while (text) {
      const isFull = this.#node?.length > BLOCK;
      if (!this.#node || (isFull && this.#node.data.endsWith("\n"))) this.#addBlock();
      const line = text.indexOf("\n", Math.max(0, BLOCK - this.#node.length)) + 1;
      const end = line || text.length;
      this.#node.appendData(text.slice(0, end));
      text = text.slice(end);
    }
  }

  #addBlock() {
    const block = document.createElement(this.#fence ? "code" : "p");
    block.dir = "auto";
    this.#node = document.createTextNode("");
    block.append(this.#node);
    this.#parent.append(block);
  }
}
