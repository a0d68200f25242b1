// Channels and regions as a matrix: share and breaker of each cell, and why. Rows that need a
// person come first; with many channels there is a filter.

import { byId, duration, h, hue, icon, percent, say, show } from "./dom.js";

const WORD = { closed: "closed", open: "open", half_open: "half-open" };
const TONE = { closed: "ok", open: "bad", half_open: "warn" };
const ICON = { closed: "ok", open: "bad", half_open: "half" };
const MANY = 12;

export class Channels {
  constructor(root, actions, explain) {
    this.root = root;
    this.actions = actions;
    this.explain = explain;
    this.filter = byId("channels-filter");
    this.filter.addEventListener("input", () => this.last && this.render(...this.last));
  }

  render(plan, regions, now) {
    this.last = [plan, regions, now];
    const wanted = this.filter.value.trim().toLowerCase();
    const key = [plan.routes, plan.breakers.map((b) => [b.state, b.cause]), regions, wanted, this.second(plan, now)];
    this.filter.hidden = plan.routes.length <= MANY;
    this.note(plan);
    show(this.root, key, () => this.table(plan, regions, wanted, now));
  }

  // breakers that are not closed show their age in seconds; a calm table is not built again
  second(plan, now) {
    return plan.breakers.some((b) => b.state !== "closed") ? Math.floor(now / 1000) : 0;
  }

  note(plan) {
    const open = plan.breakers.filter((b) => b.state !== "closed").length;
    const many = plan.routes.length > MANY ? `${plan.routes.length} channels, ` : "";
    say(byId("channels-note"), open ? `${many}${open} of ${plan.breakers.length} breakers not closed`
      : `${many}share of payments, and breaker`);
  }

  table(plan, regions, wanted, now) {
    const breakers = new Map(plan.breakers.map((b) => [`${b.region}/${b.channel}`, b]));
    const ill = new Set(plan.breakers.filter((b) => b.state !== "closed").map((b) => b.channel));
    const rank = (route) => ill.has(route.channel) || route.shed_bp ? 0 : overridden(route) ? 1 : 2;
    const rows = plan.routes.filter((route) => route.channel.toLowerCase().includes(wanted))
      .sort((a, b) => rank(a) - rank(b));
    if (!rows.length) return h("p", { class: "empty muted" }, wanted ? `No channel has “${wanted}” in its name.` : "No channel is configured.");
    return h("table", { class: "matrix" },
      h("caption", { class: "sr" }, "Share of each channel's payments by region, with the breaker"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Channel"),
        regions.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, rows.map((route) => this.row(route, regions, breakers, now))));
  }

  row(route, regions, breakers, now) {
    const weights = new Map(route.weights.map((w) => [w.region, w.weight_bp]));
    const name = route.channel;
    return h("tr", {},
      h("th", { scope: "row" },
        h("span", { class: "channel-name" }, breakable(name)),
        overridden(route) ? h("span", { class: "tag" }, icon("lock"), "override") : null,
        route.shed_bp ? h("span", { class: "tag tone-bad" }, `sheds ${percent(route.shed_bp)}`) : null,
        h("span", { class: "row-actions" },
          h("button", { type: "button", class: "link", "data-key": `why-${name}`,
            "aria-label": `Why are the weights of ${name} so?`, onclick: () => this.explain(name) }, "why"),
          h("button", { type: "button", class: "link", "data-key": `set-${name}`,
            "aria-label": `Override the weights of ${name}`,
            onclick: () => this.actions.override(route, regions, overridden(route)) }, "override"))),
      regions.map((region, i) => this.cell(region, i, weights.get(region), breakers.get(`${region}/${name}`), now)));
  }

  cell(region, index, weight, breaker, now) {
    if (weight === undefined) {
      return h("td", { class: "cell none", "data-region": region }, h("span", { class: "sr" }, "not served"),
        h("span", { "aria-hidden": "true" }, "–"));
    }
    const state = breaker?.state ?? "closed";
    const since = breaker && state !== "closed" ? ` ${duration(now - Date.parse(breaker.since))}` : "";
    return h("td", { class: `cell state-${state}${weight ? "" : " idle"}`, "data-region": region, title: breaker?.cause || null },
      h("span", { class: "weight" }, percent(weight)),
      h("span", { class: `breaker tone-${TONE[state] ?? "wait"}` }, icon(ICON[state] ?? "info"),
        h("span", {}, `${WORD[state] ?? state}${since}`)),
      h("span", { class: "cell-bar", style: { width: `calc((100% - 18px) * ${weight / 10000})`, background: hue(index) }, "aria-hidden": "true" }));
  }
}

const overridden = (route) => route.reasons.some((reason) => reason.startsWith("override:"));

/** A long name may break after an underscore, not in the middle of a word. */
const breakable = (name) => name.split("_").flatMap((part, i) => (i ? ["_", h("wbr"), part] : [part]));
