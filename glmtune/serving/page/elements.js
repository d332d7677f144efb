// Elements with texts in them, and never markup.

/** Return a new element with a class, and children that are elements or texts. */
export function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/** Return a text of somebody else's, whose direction of writing stays its own. */
export const foreign = (text) => make("bdi", "", text);

/** Return a button that does something. */
export function makeButton(act, name = "") {
  const button = make("button", name);
  button.type = "button";
  button.addEventListener("click", act);
  return button;
}

/** Write a share of 0 to 1 as a percentage, never rounded to all or nothing. */
export function percent(share, decimals = 0) {
  const text = (100 * share).toFixed(decimals);
  const isWhole = [0, 100].includes(Number(text)) && ![0, 1].includes(share);
  return isWhole && decimals < 6 ? percent(share, decimals + 1) : `${text}%`;
}
