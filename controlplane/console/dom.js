// Building blocks: elements without markup strings, numbers and times as people read them.

const SVG = "http://www.w3.org/2000/svg";

/** Make an element. Attributes that are null or false are left out; children are nodes or text. */
export function h(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** One of the symbols of index.html; words always stand beside it. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(SVG, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

export const byId = (id) => document.getElementById(id);

/** Write text only where it differs: a screen reader is not told the same thing twice. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Replace children only where what they show differs. */
export function show(element, key, make) {
  const text = JSON.stringify(key);
  if (element.dataset.shown === text) return;
  const held = element.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  element.dataset.shown = text;
  element.replaceChildren(...[make()].flat());
  if (held) element.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
}

export function percent(bp, digits = 1) {
  const value = bp / 100;
  return `${value.toFixed(value === Math.round(value) ? 0 : digits)} %`;
}

export function duration(ms) {
  if (ms === null || ms === undefined || ms < 0) return "never";
  if (ms < 9950) return `${(ms / 1000).toFixed(1)} s`;
  if (ms < 90000) return `${Math.round(ms / 1000)} s`;
  if (ms < 5400000) return `${Math.round(ms / 60000)} min`;
  if (ms < 172800000) return `${Math.round(ms / 3600000)} h`;
  return `${Math.round(ms / 86400000)} d`;
}

/** Begin with a capital and end with a full stop, whatever the replica's words do. */
export function sentence(text) {
  if (!text) return "\u00a0";
  return `${text[0].toUpperCase()}${text.slice(1)}${/[.!?…]$/.test(text) ? "" : "."}`;
}

export function clock(date) {
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

/** A colour of its own for each region, by its place in the sorted list. */
export const hue = (index) => `var(--r${index % 6})`;

export function number(text) {
  return Number(text).toLocaleString("en");
}
