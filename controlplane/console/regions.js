// The three cards: load now and where it is going, utilisation, verdict with evidence, epoch.

import { duration, h, hue, icon, number, percent, say, show } from "./dom.js";

const TONE = { healthy: "ok", suspect: "warn", failed: "bad", recovering: "info" };
const ICON = { healthy: "ok", suspect: "warn", failed: "bad", recovering: "back" };
const AT_REST_BP = 25;
const LATE_MS = 3000;
const ROLE = { dr: "disaster recovery" };

/** Phase as shown: a drain is an operator's and comes first. */
export function standing(region) {
  if (region.drained) return { tone: "info", icon: "drain", word: "drained" };
  return {
    tone: TONE[region.phase] ?? "wait",
    icon: ICON[region.phase] ?? "info",
    word: region.phase || "unknown",
  };
}

export class Regions {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.cards = new Map();
  }

  /** `known`: when what the vantages say was read, in ms, if that is old; else null. */
  render(regions, status, now, known) {
    const names = regions.map((region) => region.name).join();
    if (this.names !== names) {
      this.names = names;
      this.cards = new Map(regions.map((region, i) => [region.name, this.card(region, i)]));
      this.root.replaceChildren(...[...this.cards.values()].map((card) => card.root));
    }
    for (const region of regions) this.fill(this.cards.get(region.name), region, status, now, known);
  }

  card(region, index) {
    const parts = {};
    const part = (name, tag, attributes = {}, ...rest) =>
      (parts[name] = h(tag, attributes, ...rest));
    const id = `region-${region.name}`;
    parts.root = h(
      "article",
      { class: "card", "aria-labelledby": id, "data-region": region.name },
      h("header", { class: "card-head" },
        h("span", { class: "swatch", style: { background: hue(index) }, "aria-hidden": "true" }),
        h("h3", { id }, region.name),
        h("span", { class: "role" }, ROLE[region.role] ?? region.role),
        part("chip", "span", { class: "chip" })),
      h("div", { class: "load" },
        part("now", "span", { class: "load-now" }),
        part("target", "span", { class: "load-target" })),
      h("div", { class: "bar", "aria-hidden": "true" },
        part("bar", "span", { class: "bar-fill", style: { background: hue(index) } }),
        part("mark", "span", { class: "bar-mark" })),
      part("cause", "p", { class: "cause" }),
      h("dl", { class: "rows" },
        h("dt", {}, "Utilisation"), part("used", "dd"),
        part("votesName", "dt"), part("votes", "dd", { class: "votes" }),
        h("dt", {}, "Reports"), part("reports", "dd"),
        h("dt", {}, "Applied"), part("epoch", "dd"),
        part("offsetName", "dt", { hidden: true }, "Clock offset"), part("offset", "dd", { hidden: true })),
      h("div", { class: "card-actions", role: "group", "aria-label": `Actions on ${region.name}` },
        part("drain", "button", { type: "button", class: "button" }, "Drain…"),
        part("over", "button", { type: "button", class: "button" }, "Fail over…"),
        part("back", "button", { type: "button", class: "button" }, "Fail back…")),
    );
    parts.drain.addEventListener("click", () =>
      this.actions.region(parts.drained ? "UndrainRegion" : "DrainRegion", region.name));
    parts.over.addEventListener("click", () => this.actions.region("StartFailover", region.name));
    parts.back.addEventListener("click", () => this.actions.region("StartFailback", region.name));
    return parts;
  }

  fill(card, region, status, now, known) {
    const state = standing(region);
    card.root.dataset.tone = state.tone;
    card.drained = region.drained;
    show(card.chip, state, () => [icon(state.icon), h("span", {}, state.word)]);
    card.chip.className = `chip tone-${state.tone}`;
    say(card.now, percent(region.load_bp));
    const target = region.target_load_bp;
    const moving = target !== undefined && Math.abs(target - region.load_bp) > AT_REST_BP;
    say(card.target, target === undefined ? "target unknown"
      : moving ? `→ ${percent(target)}` : "at its target");
    card.target.classList.toggle("moving", moving);
    card.bar.style.width = `${region.load_bp / 100}%`;
    card.mark.style.left = `${(target ?? region.load_bp) / 100}%`;
    say(card.cause, region.cause || this.calm(region, now));
    say(card.used, `${percent(region.utilisation_bp, 0)} of ${number(region.capacity_tps)}/s`);
    card.used.classList.toggle("alarm", region.utilisation_bp > 10000);
    say(card.votesName, known ? `Seen ${duration(now - known)} ago by` : "Seen by");
    card.votesName.classList.toggle("alarm", known !== null);
    show(card.votes, region.votes.map((v) => [v.vantage, v.opinion, this.age(v), v.failures]), () =>
      region.votes.length ? region.votes.map((vote) => this.vote(vote)) : ["nobody"]);
    const late = region.report_age_ms < 0 || region.report_age_ms > LATE_MS;
    const live = `${region.agents_live}/${region.agents_expected} agents`;
    say(card.reports, late ? this.silent(region.report_age_ms) : `${live}, fresh`);
    card.reports.classList.toggle("alarm", late || region.agents_live < region.agents_expected);
    const behind = region.applied_epoch >= 0 && region.applied_epoch < status.plan_epoch;
    say(card.epoch, region.applied_epoch < 0 ? "nobody listens"
      : `epoch ${region.applied_epoch}${behind ? ` of ${status.plan_epoch}` : ", in force"}`);
    card.epoch.classList.toggle("alarm", behind || region.applied_epoch < 0);
    const measured = region.clock_offset_ms !== undefined;
    card.offset.hidden = card.offsetName.hidden = !measured;
    if (measured) say(card.offset, `${region.clock_offset_ms.toFixed(1)} ms`);
    say(card.drain, region.drained ? "Undrain…" : "Drain…");
    const out = region.drained || region.phase === "failed";
    card.over.disabled = region.phase === "failed";
    card.back.disabled = !out;
  }

  calm(region, now) {
    const since = region.since ? duration(now - Date.parse(region.since)) : "";
    if (region.drained) return "An operator asked for it.";
    return since ? `${region.phase || "unknown"} for ${since}` : "\u00a0";
  }

  vote(vote) {
    const tone = { up: "ok", down: "bad" }[vote.opinion] ?? "wait";
    const sign = { up: "ok", down: "bad" }[vote.opinion] ?? "none";
    return h("span", { class: `vote tone-${tone}` }, icon(sign),
      h("span", {}, `${vote.vantage} says ${vote.opinion}`),
      h("span", { class: "vote-age" }, this.age(vote)));
  }

  age(vote) {
    if (vote.last_success_age_ms < 0) return "never reached";
    return vote.last_success_age_ms < 2000 ? "now" : `${duration(vote.last_success_age_ms)} ago`;
  }

  silent(ms) {
    return ms < 0 ? "never a report" : `silent for ${duration(ms)}`;
  }
}
