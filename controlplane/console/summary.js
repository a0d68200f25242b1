// The worst thing there is, in one sentence; below it why; and since when.

import { percent, sentence } from "./dom.js";
import { standing } from "./regions.js";

const say = (tone, sign, text, more = "", since = null) => ({ tone, sign, text, more, since });

/** What the headline says: {tone, sign, text, more, since}; `since` is a time in ms or null. */
export function summary({ status, regions, last }) {
  if (!status) return say("wait", "none", "Waiting for the first answer…");
  if (!status.plan) {
    return say("warn", "warn", "No plan yet.", sentence(status.alarms[0] ?? "no leader has committed one"));
  }
  const load = `Load: ${shares(regions)}.`;
  if (!status.coordinated) {
    return say("bad", "warn", "Cut off from etcd: the last known good plan stays in force.", sentence(status.alarms[0] ?? load), Date.parse(status.last_known?.read_at) || null);
  }
  if (status.panic) return say("bad", "bad", "Panic: too little is healthy, health is disregarded.", load);
  return ill(status, regions, last, load) ?? small(status, load)
    ?? say("ok", "ok", `All ${regions.length} regions are healthy.`, load);
}

/** Regions that are not in full service, the worst first. */
function ill(status, regions, last, load) {
  const failed = regions.filter((region) => region.phase === "failed");
  if (failed.length) {
    const [first] = failed;
    const text = `${together(failed.map((region) => region.name))} failed. Payments go to ${takers(regions)}.`;
    return say("bad", "bad", text, `${sentence(first.cause)} ${timing(status.failover ?? last, first.name)}`, Date.parse(first.since));
  }
  const others = regions.filter((region) => region.phase !== "healthy" || region.drained);
  if (!others.length) return null;
  const [first] = others;
  const moved = others.some((region) => region.load_bp) ? "" : ` Payments go to ${takers(regions)}.`;
  const text = `${others.map((region) => `${region.name} is ${standing(region).word}`).join(", ")}.${moved}`;
  return say(first.drained ? "info" : "warn", first.drained ? "drain" : "warn", text,
    `${load} ${first.cause ? sentence(first.cause) : ""}`, Date.parse(first.since));
}

/** What wants attention while every region is well. */
function small(status, load) {
  if (status.alarms.length) return say("warn", "warn", sentence(status.alarms[0]), load);
  const open = status.plan.breakers.filter((breaker) => breaker.state === "open");
  if (open.length) {
    const where = open.slice(0, 3).map((b) => `${b.channel} in ${b.region}`).join(", ");
    const more = open.length > 3 ? ` and ${open.length - 3} more` : "";
    return say("warn", "warn", `${open.length} breaker${open.length > 1 ? "s" : ""} open: ${where}${more}.`,
      sentence(open[0].cause), Date.parse(open[0].since));
  }
  if (status.frozen) return say("info", "lock", "Frozen by an operator: nothing changes by itself.", load);
  return null;
}

/** How the failover of a region stands, or stood. */
function timing(failover, region) {
  if (!failover || failover.from_region !== region || failover.converge_ms < 0) return "";
  return `Its payments had left everywhere ${(failover.converge_ms / 1000).toFixed(1)} s after the first symptom.`;
}

const shares = (regions) => regions.map((region) => `${region.name} ${percent(region.load_bp, 0)}`).join(", ");

const takers = (regions) => together(regions.filter((region) => region.load_bp).map((region) => region.name));

// names only: the sentence is read aloud, and must not be whenever a share moves by a little
const together = (words) => words.join(", ").replace(/, ([^,]*)$/, " and $1") || "nobody";
