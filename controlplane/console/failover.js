// The stage line of a failover against its budget: the running one, else the last.

import { byId, clock, duration, h, icon, say, sentence, show } from "./dom.js";

const STAGES = [
  ["suspect_ms", "Suspected", "a vantage missed it"],
  ["decide_ms", "Decided", "the quorum agreed"],
  ["commit_ms", "Committed", "the plan is in etcd"],
  ["converge_ms", "Applied", "every live data plane"],
];

const IDLE = "Every stage is counted from the first symptom. A failover is closed, and timed, when the last live data plane has applied it.";

export class Failover {
  constructor(root, title) {
    this.root = root;
    this.title = title;
  }

  /** `failover` may be null; `now` is the replica's time in ms. */
  render(failover, budget, now) {
    const panel = byId("failover-panel");
    if (!failover) {
      panel.dataset.tone = "calm";
      say(this.title, "none since this cluster began");
      show(this.root, ["none", budget], () => this.line(null, budget, 0));
      return;
    }
    const running = failover.outcome === "running";
    const applied = failover.converge_ms >= 0;
    const elapsed = running && !applied ? Math.max(0, now - Date.parse(failover.started_at)) : this.total(failover);
    panel.dataset.tone = running ? "warn" : "calm";
    const kind = { dead: "dead", brown_out: "brown-out" }[failover.kind] ?? failover.kind;
    say(this.title, running
      ? `running: ${failover.from_region} (${kind}), ${applied ? `applied in ${duration(elapsed)}, to be confirmed` : `${duration(Math.max(0, budget - elapsed))} of ${duration(budget)} left`}`
      : `last: ${failover.from_region} (${kind}), ${failover.outcome} at ${clock(new Date(Date.parse(failover.started_at) + elapsed))}`);
    const key = [failover, budget, running ? Math.floor(elapsed / 100) : 0];
    show(this.root, key, () => this.line(failover, budget, elapsed));
  }

  total(failover) {
    return Math.max(...STAGES.map(([field]) => failover[field]), 0);
  }

  line(failover, budget, elapsed) {
    const share = (ms) => `${Math.min(100, (100 * ms) / budget)}%`;
    const over = elapsed > budget;
    const next = failover?.outcome === "running" ? STAGES.findIndex(([field]) => failover[field] < 0) : -1;
    return [
      h("ol", { class: "stages" },
        h("li", { class: `stage ${failover ? "done" : ""}` },
          h("span", { class: "stage-sign" }, icon(failover ? "ok" : "none")),
          h("span", { class: "stage-name" }, "First symptom"),
          h("span", { class: "stage-time" }, failover ? clock(new Date(failover.started_at)) : "–")),
        STAGES.map(([field, name, meaning], i) => {
          const reached = failover && failover[field] >= 0;
          const state = reached ? "done" : i === next ? "now" : "";
          const time = reached ? `+${duration(failover[field])}` : i === next ? `+${duration(elapsed)} …` : "–";
          return h("li", { class: `stage ${state}`, title: meaning },
            h("span", { class: "stage-sign" }, icon(reached ? "ok" : i === next ? "half" : "none")),
            h("span", { class: "stage-name" }, name), h("span", { class: "stage-time" }, time));
        })),
      h("div", { class: "budget", "data-over": over ? "yes" : null },
        h("div", { class: "budget-track", role: "img",
          "aria-label": failover ? `${duration(elapsed)} of the budget of ${duration(budget)} used` : `Budget of ${duration(budget)}, not in use` },
          h("span", { class: "budget-fill", style: { width: share(elapsed) } }),
          failover ? STAGES.filter(([field]) => failover[field] >= 0).map(([field]) =>
            h("span", { class: "budget-mark", style: { left: share(failover[field]) } })) : null),
        h("p", { class: "budget-scale muted small", "aria-hidden": "true" },
          h("span", {}, failover ? `${duration(elapsed)} used` : "0 s"), h("span", {}, `${duration(budget)} budget`))),
      h("p", { class: "cause" }, failover ? sentence(failover.cause) : IDLE),
    ];
  }
}
