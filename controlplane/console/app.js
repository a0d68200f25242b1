// The page: joins the feed with its views. Every view is drawn from the last status and regions,
// so a reconnection needs no repair; nothing is computed here that the replica could say.

import { Actions } from "./actions.js";
import { Channels } from "./channels.js";
import { Chart } from "./chart.js";
import { byId, clock, duration, h, icon, percent, say, show } from "./dom.js";
import { Failover } from "./failover.js";
import { Feed, OLD_MS, read } from "./feed.js";
import { Regions, standing } from "./regions.js";
import { summary } from "./summary.js";
import { Timeline } from "./timeline.js";

const facts = { cluster: "", replica: "", budget_ms: 30000, actions_refused: "", channels: {} };
const feed = new Feed();
const actions = new Actions(feed, facts);
const views = {
  regions: new Regions(byId("regions"), actions),
  channels: new Channels(byId("channels"), actions, explain),
  failover: new Failover(byId("failover"), byId("failover-name")),
  timeline: new Timeline(byId("timeline")),
  chart: new Chart(byId("chart")),
};
const seen = { status: null, regions: [], known: null, last: null, offset: 0 };
let finished = 0;
let due = 0;

/** The replica's time, as far as this page knows it, in ms. */
const now = () => Date.now() + seen.offset;

feed.addEventListener("status", ({ detail }) => {
  seen.status = detail;
  due ||= setTimeout(draw); // once with the regions, which may also come later
});
feed.addEventListener("regions", ({ detail }) => {
  seen.offset = Date.parse(detail.now) - Date.now();
  if (detail.regions.length) seen.regions = detail.regions;
  seen.known = detail.last_known ? Date.parse(detail.last_known.read_at) : null;
  due ||= setTimeout(draw);
});
feed.addEventListener("decision", ({ detail }) => {
  views.timeline.add(detail);
  if (/^failover_/.test(detail.kind) && detail.id > finished) {
    finished = detail.id;
    lastFailover();
  }
});
for (const kind of ["trying", "moving"]) feed.addEventListener(kind, connection);
byId("freeze").addEventListener("click", () => actions.freeze(seen.status?.frozen));

async function lastFailover() {
  const answer = await read(feed, "failovers");
  if (answer) seen.last = answer.failovers[0] ?? null;
  draw();
}

async function begin() {
  feed.start();
  const [known, history] = await Promise.all([read(feed, "console"), read(feed, "history"), lastFailover()]);
  if (known) {
    Object.assign(facts, known);
    feed.know(known.peers);
  }
  if (history) views.chart.past(history.points);
  draw();
}

function draw() {
  due = clearTimeout(due);
  const { status, regions } = seen;
  if (status) controlPlane(status);
  if (!status?.plan || !regions.length) return headline();
  views.regions.render(regions, status, now(), seen.known);
  views.channels.render(status.plan, regions.map((region) => region.name), now());
  failover();
  views.chart.render(regions, now());
  headline();
  connection();
  document.title = title(regions, status);
}

function failover() {
  views.failover.render(seen.status?.failover ?? seen.last, facts.budget_ms, now());
}

function title(regions, status) {
  const bad = regions.filter((region) => region.phase !== "healthy" || region.drained);
  const what = bad.map((region) => `${region.name} ${standing(region).word}`).join(", ");
  return `${what || (status.frozen ? "frozen" : "all healthy")} · ${status.cluster} · Weir`;
}

/** One sentence that an operator can act on, one that says why, and since when. */
function headline() {
  const box = byId("headline");
  const { tone, sign, text, more, since } = summary(seen, now());
  if (box.dataset.tone !== tone) box.dataset.tone = tone;
  show(byId("headline-icon"), sign, () => icon(sign));
  say(byId("headline-text"), text);
  say(byId("headline-more"), more || "\u00a0");
  const age = byId("headline-age");
  age.hidden = !since;
  if (since) {
    say(byId("headline-since"), `since ${clock(new Date(since))}`);
    say(byId("headline-for"), duration(now() - since));
  }
  const mark = byId("icon");
  const file = `console/icon${{ bad: "-bad", warn: "-warn" }[tone] ?? ""}.svg`;
  if (mark.getAttribute("href") !== file) mark.setAttribute("href", file);
}

function subscribers(status) {
  const behind = status.laggards.length ? `, ${status.laggards.length} behind` : "";
  const silent = status.silent.length ? `, ${status.silent.length} not heard of` : "";
  return `${status.subscribers}${behind}${silent}`;
}

/** What stands by somebody's word: a fact with its end, and whose word it is. */
function order({ kind, target, by, reason, expires_at: end }) {
  const at = new Date(end);
  const day = Math.abs(at - now()) > 43_200_000 ? `${at.toLocaleDateString([], { month: "2-digit", day: "2-digit" })} ` : "";
  const until = end ? `until ${day}${clock(at)}, ` : "";
  return [`${kind} ${target}`.trim(), `${until}${by}${reason ? `: ${reason}` : ""}`, ""];
}

function controlPlane(status) {
  say(byId("cluster"), status.cluster);
  const rows = [
    ["Leader", status.leader || "none known", status.leader ? "" : "alarm"],
    ["Term", status.term || "–", ""],
    ["Epoch", status.plan_epoch, ""],
    ["Subscribers", subscribers(status), status.laggards.length || status.silent.length ? "alarm" : ""],
    ["Answering", status.replica, ""],
    ...(status.orders ?? []).map(order),
  ];
  show(byId("facts"), rows, () => rows.map(([name, value, tone]) =>
    h("div", {}, h("dt", {}, name), h("dd", { class: tone || null }, String(value)))));
  const button = byId("freeze");
  button.disabled = false;
  say(button, status.frozen ? "Unfreeze…" : "Freeze…");
  const silent = status.replicas.filter((replica) => replica.digest_age_ms < 0 || replica.digest_age_ms > 5000);
  const peers = silent.length ? `Not heard of: ${silent.map((replica) => replica.id).join(", ")}. ` : "";
  say(byId("foot"), `${peers}Weir ${status.version}. This page shows what ${status.replica} knows; the same facts: weir status, weir events.`);
}

/** Say whether what is shown is live, and how old it is when not. */
function connection() {
  const bar = byId("connection");
  const { age, peer } = feed;
  const name = peer.id || seen.status?.replica || "this replica";
  let [state, text] = ["live", `Live from ${seen.status?.replica ?? name}`];
  if (age === null) [state, text] = feed.failures ? ["gone", `No answer yet, trying ${name}…`] : ["wait", "Connecting…"];
  else if (age > OLD_MS || !feed.source) {
    const round = feed.failures >= feed.peers.length;
    state = age > OLD_MS ? "gone" : "wait";
    text = `${age > OLD_MS ? "OLD: " : ""}what you see is ${duration(age)} old. ${round ? "No replica answers" : `${feed.tried || name} does not answer`}, trying ${name}…`;
  } else if (!peer.self) text = `Live from ${peer.id}. ${facts.replica} did not answer, so this page moved on.`;
  if (bar.dataset.state !== state) bar.dataset.state = state;
  document.body.classList.toggle("old", state === "gone");
  say(byId("connection-text"), text);
  const link = byId("connection-link");
  link.hidden = peer.self || state !== "live";
  if (!link.hidden) {
    link.href = `${peer.base}/`;
    say(link, `Open ${peer.id}'s own console to act`);
  }
}

async function explain(channel) {
  const dialog = byId("dialog");
  const opener = document.activeElement;
  const close = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close");
  const body = h("div", { "aria-live": "polite" }, h("p", { class: "muted" }, "Asking…"));
  dialog.replaceChildren(h("div", { class: "explain" }, h("h2", { id: "dialog-title" }, `Why ${channel} is routed so`), body, h("div", { class: "dialog-foot" }, close)));
  dialog.addEventListener("close", () => opener.isConnected ? opener.focus() : document.querySelector(`[data-key="why-${CSS.escape(channel)}"]`)?.focus(), { once: true });
  dialog.showModal();
  const answer = await read(feed, `explain/${encodeURIComponent(channel)}`);
  body.replaceChildren(...(answer ? steps(answer) : [h("p", {}, "The replica could not say. Try again.")]));
}

/** How old an answer is that etcd could not confirm. */
function lastKnown({ age_ms: ms }) {
  return `Last known good: etcd does not answer, ${ms < 0 ? "and was not read since the replica started" : `what this rests on was read ${duration(ms)} ago`}.`;
}

function steps(answer) {
  const old = answer.last_known ? ` ${lastKnown(answer.last_known)}` : "";
  return [h("p", { class: "muted" }, `Epoch ${answer.epoch}. The rules in the order in which they were applied.${old}`),
    h("ol", { class: "steps" }, answer.steps.map((step) => h("li", {},
      h("b", {}, step.rule.replaceAll("_", " ")),
      h("span", {}, h("span", {}, step.detail),
        step.weights.length ? h("span", { class: "step-weights" }, step.weights.map((w) => `${w.region} ${percent(w.weight_bp)}`).join(" · ")) : null))))];
}

setInterval(() => {
  connection();
  if (seen.status?.plan && seen.regions.length) headline();
  if (seen.status?.failover) failover();
}, 250);
document.addEventListener("visibilitychange", () => document.hidden || connection());
byId("foot").title = `opened at ${clock(new Date())}`;
begin();
