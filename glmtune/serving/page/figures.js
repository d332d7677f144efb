// Two numbers one below the other, by their decimal points, with the digits marked in which they differ.

const NUMBER = /^-?\d+(\.\d+)?$/;
const LONGEST = 28; // characters that fit side by side

/** Return both numbers as rows of spans; as they are where one of them is no plain number. */
export function alignNumbers(given, right) {
  const isPlain = [given, right].every((text) => NUMBER.test(text) && text.length <= LONGEST);
  if (!isPlain) return [[plain(given)], [plain(right)]];
  const [one, other] = pad(given, right);
  return [spansOf(one, other), spansOf(other, one)];
}

function pad(...numbers) {
  const parts = numbers.map((text) => text.split("."));
  const width = Math.max(...parts.map(([whole]) => whole.length));
  const places = Math.max(...parts.map(([, decimals = ""]) => decimals.length));
  return parts.map(([whole, decimals]) => {
    const end = decimals === undefined ? "" : `.${decimals}`;
    return whole.padStart(width) + end.padEnd(places ? places + 1 : 0);
  });
}

function spansOf(text, other) {
  const spans = [];
  for (const [place, sign] of [...text].entries()) {
    const differs = sign !== other[place] && sign !== " ";
    const last = spans.at(-1);
    if (last && (last.tagName === "MARK") === differs) last.textContent += sign;
    else spans.push(differs ? Object.assign(document.createElement("mark"), { textContent: sign }) : plain(sign));
  }
  return spans;
}

function plain(text) {
  return Object.assign(document.createElement("span"), { textContent: text });
}
