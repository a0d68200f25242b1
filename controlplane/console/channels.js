// Channels and regions as a matrix: share and breaker of each cell, and why.

import { duration, h, icon, percent, show } from "./dom.js";

const WORD = { closed: "closed", open: "open", half_open: "half-open" };
const TONE = { closed: "ok", open: "bad", half_open: "warn" };
const ICON = { closed: "ok", open: "bad", half_open: "half" };

export class Channels {
  constructor(root, actions, explain) {
    this.root = root;
    this.actions = actions;
    this.explain = explain;
  }

  render(plan, regions, now) {
    const key = [plan.routes, plan.breakers.map((b) => [b.state, b.cause]), regions, this.minute(plan, now)];
    show(this.root, key, () => this.table(plan, regions, now));
  }

  // breakers that are not closed show their age in seconds; a calm table is not built again
  minute(plan, now) {
    return plan.breakers.some((b) => b.state !== "closed") ? Math.floor(now / 1000) : 0;
  }

  table(plan, regions, now) {
    const breakers = new Map(plan.breakers.map((b) => [`${b.region}/${b.channel}`, b]));
    return h("table", { class: "matrix" },
      h("caption", { class: "sr" }, "Share of each channel's payments by region, with the breaker"),
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Channel"),
        regions.map((name) => h("th", { scope: "col" }, name)))),
      h("tbody", {}, plan.routes.map((route) => this.row(route, regions, breakers, now))));
  }

  row(route, regions, breakers, now) {
    const weights = new Map(route.weights.map((w) => [w.region, w.weight_bp]));
    const name = route.channel;
    const overridden = route.reasons.some((reason) => reason.startsWith("override:"));
    return h("tr", {},
      h("th", { scope: "row" },
        h("span", { class: "channel-name" }, name),
        overridden ? h("span", { class: "tag" }, icon("lock"), "override") : null,
        route.shed_bp ? h("span", { class: "tag tone-bad" }, `sheds ${percent(route.shed_bp)}`) : null,
        h("span", { class: "row-actions" },
          h("button", { type: "button", class: "link", "data-key": `why-${name}`,
            "aria-label": `Why are the weights of ${name} so?`, onclick: () => this.explain(name) }, "why"),
          h("button", { type: "button", class: "link", "data-key": `set-${name}`,
            "aria-label": `Override the weights of ${name}`,
            onclick: () => this.actions.override(route, regions, overridden) }, "override"))),
      regions.map((region) => this.cell(region, weights.get(region), breakers.get(`${region}/${name}`), now)));
  }

  cell(region, weight, breaker, now) {
    if (weight === undefined) {
      return h("td", { class: "cell none", "data-region": region }, h("span", { class: "sr" }, "not served"),
        h("span", { "aria-hidden": "true" }, "–"));
    }
    const state = breaker?.state ?? "closed";
    const since = breaker && state !== "closed" ? ` ${duration(now - Date.parse(breaker.since))}` : "";
    return h("td", { class: `cell state-${state}`, "data-region": region, title: breaker?.cause || null },
      h("span", { class: "cell-bar", style: { height: `${weight / 100}%` }, "aria-hidden": "true" }),
      h("span", { class: "weight" }, percent(weight)),
      h("span", { class: `breaker tone-${TONE[state] ?? "wait"}` }, icon(ICON[state] ?? "info"),
        h("span", {}, `${WORD[state] ?? state}${since}`)));
  }
}
