// Small things that every part of the page needs.

// An element with attributes and children; text is always text, never markup.
export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

export async function ask(what, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one != null) query.append(name, one);
  }
  const answer = await fetch(`${what}?${query}`);
  const found = await answer.json();
  if (!answer.ok) throw new Error(found.error || `${what}: ${answer.status}`);
  return found;
}

// Numbers as people write them; in full for a hover.
export function short(value) {
  if (value == null) return "–";
  if (typeof value === "string") return value;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6))
    return value
      .toExponential(2)
      .replace(/\.?0+e/, "e")
      .replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

export const exact = (value) => (typeof value === "number" ? String(value) : (value ?? "–"));
export const whole = (value) => (value == null ? "–" : Math.round(value).toLocaleString("en"));
export const plural = (count, one) => `${whole(count)} ${one}${count === 1 ? "" : "s"}`;
