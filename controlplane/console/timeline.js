// Events, newest first. What was there when the page opened is not read aloud; what comes later is.

import { byId, clock, h, icon, say } from "./dom.js";

const KEPT = 200;
const QUIET_MS = 1500;
const TONE = { critical: "bad", warning: "warn", info: "info" };
const ICON = { critical: "bad", warning: "warn", info: "info" };

export class Timeline {
  constructor(root) {
    this.root = root;
    this.seen = new Set();
    this.items = [];
    this.quietUntil = null;
    root.append(h("li", { class: "empty muted" }, "Nothing has happened yet."));
  }

  add(event) {
    if (this.seen.has(event.id)) return;
    this.seen.add(event.id);
    if (this.items.length === 0) this.root.replaceChildren();
    const at = new Date(event.at);
    const tone = TONE[event.severity] ?? "info";
    const item = h("li", { class: `event tone-${tone}`, "data-id": event.id, "data-kind": event.kind },
      h("time", { datetime: event.at }, clock(at)),
      h("span", { class: "event-sign" }, icon(ICON[event.severity] ?? "info"),
        h("span", { class: "sr" }, event.severity)),
      h("span", { class: "event-text" },
        h("span", { class: "event-kind" }, event.kind.replaceAll("_", " ")), " ",
        h("span", {}, event.message)),
      h("span", { class: "event-plan muted" }, `epoch ${event.epoch} · term ${event.term}`));
    const place = this.items.findIndex((other) => other.id < event.id);
    if (place < 0) this.root.append(item);
    else this.root.insertBefore(item, this.items[place].item);
    this.items.splice(place < 0 ? this.items.length : place, 0, { id: event.id, item });
    for (const old of this.items.splice(KEPT)) old.item.remove();
    this.quietUntil ??= performance.now() + QUIET_MS;
    if (performance.now() > this.quietUntil) say(byId("said"), event.message);
  }
}
