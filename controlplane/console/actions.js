// What an operator may ask for: look first, then confirm by typing, with a reason.
//
// The replica works out what would happen (validate_only) by the code that would do it. The etag of
// that answer goes with the change, so what was shown is what is done, or nothing is.

import { byId, duration, h, icon, percent, say, sentence } from "./dom.js";

const TEXT = {
  DrainRegion: ["Drain", "Takes the region out of service: no new payment goes there, those under way finish.", "region"],
  UndrainRegion: ["Undrain", "Ends the drain; the region returns by ramp.", "region"],
  StartFailover: ["Fail over from", "Moves all traffic off the region and fences it, timed as a failover.", "from_region"],
  StartFailback: ["Fail back to", "Lets the region return now, by ramp. Drain aborts it.", "region"],
  Freeze: ["Freeze", "Forbids every automatic change of the plan. A dead region still loses its payments.", ""],
  Unfreeze: ["Unfreeze", "Allows automatic change again.", ""],
  SetOverride: ["Override", "Fixes this channel's weights until the override expires.", "channel"],
  ClearOverride: ["End the override of", "Gives this channel back to the rules.", "channel"],
};
const HOLDS = [["30 min", 1800], ["4 h", 14400], ["24 h", 86400]];
const HELD = new Set(["DrainRegion", "StartFailover", "Freeze", "SetOverride"]);
const DEFAULT_HOLD_S = { DrainRegion: 86400, StartFailover: 86400, Freeze: 14400, SetOverride: 1800 };
const LOOK_MS = 300;
const FOLLOW_MS = 700;
const FOLLOWS_MAX = 170;

export class Actions {
  constructor(feed, facts) {
    this.feed = feed;
    this.facts = facts;
    this.dialog = byId("dialog");
    this.dialog.addEventListener("close", () => this.stop());
  }

  region(method, name) {
    this.ask(method, name, {});
  }

  freeze(frozen) {
    this.ask(frozen ? "Unfreeze" : "Freeze", "", {});
  }

  override(route, regions, overridden) {
    this.ask("SetOverride", route.channel, { route, overridden });
  }

  /** Open the dialog, at the page's own replica when it answers: only there may this page act. */
  async ask(method, target, extra) {
    await this.feed.home();
    this.open(method, target, extra);
  }

  stop() {
    clearTimeout(this.timer);
    this.turn = (this.turn ?? 0) + 1;
    this.opener?.isConnected && this.opener.focus();
  }

  /** Why nothing can be done from here; empty when it can. */
  barrier() {
    if (this.facts.actions_refused) return [this.facts.actions_refused];
    if (!this.feed.peer.self) {
      const { id, base } = this.feed.peer;
      return [
        `This page came from ${this.facts.replica}, which does not answer. To act, open the console of `,
        h("a", { href: `${base}/` }, id), "."];
    }
    return null;
  }

  open(method, target, extra) {
    this.stop();
    this.opener = document.activeElement;
    const [verb, meaning] = TEXT[method];
    const word = target || this.facts.cluster;
    const part = (this.part = {});
    const keep = (name, element) => (part[name] = element);
    this.state = { method, target, word, extra, etag: "", allowed: false };
    const close = h("button", { type: "button", class: "button", onclick: () => this.dialog.close() }, "Cancel");
    const barrier = this.barrier();
    const body = barrier
      ? [h("p", { class: "refusal", role: "alert" }, icon("lock"), h("span", {}, ...barrier)),
        h("div", { class: "dialog-foot" }, close)]
      : [
        method === "SetOverride" ? this.weights(extra.route) : null,
        HELD.has(method) ? this.hold(method) : null,
        keep("effect", h("div", { class: "effect", "aria-live": "polite" }, h("p", { class: "muted" }, "Asking the replica what would happen…"))),
        h("label", { class: "field" }, "Reason, kept in the audit",
          keep("reason", h("input", { name: "reason", maxlength: 500, autocomplete: "off", required: true }))),
        h("label", { class: "field" }, h("span", {}, "Type ", h("b", {}, word), " to confirm"),
          keep("confirm", h("input", { name: "confirm", autocomplete: "off", autocapitalize: "off", spellcheck: "false", required: true }))),
        keep("outcome", h("p", { class: "outcome", role: "status" }, "\u00a0")),
        h("div", { class: "dialog-foot" }, close,
          keep("go", h("button", { class: "button primary", disabled: true }, `${verb} ${word}`))),
      ];
    const form = h("form", { method: "dialog", onsubmit: (event) => this.submit(event) },
      h("h2", { id: "dialog-title" }, `${verb} ${word}`), h("p", { class: "muted" }, meaning), ...body.filter(Boolean));
    if (method === "SetOverride" && extra.overridden && !barrier) {
      form.querySelector(".dialog-foot").prepend(h("button", { type: "button", class: "button",
        onclick: () => this.open("ClearOverride", target, {}) }, "End the present override…"));
    }
    form.addEventListener("input", () => this.check());
    this.dialog.replaceChildren(form);
    if (!this.dialog.open) this.dialog.showModal();
    if (barrier) return;
    part.reason.focus();
    this.look();
  }

  hold(method) {
    const chosen = DEFAULT_HOLD_S[method];
    const select = h("select", { name: "hold", onchange: () => this.later() }, HOLDS.map(([text, seconds]) =>
      h("option", { value: seconds, selected: seconds === chosen }, text)));
    this.part.hold = select;
    return h("label", { class: "field short" }, "Holds for", select);
  }

  weights(route) {
    this.part.weights = new Map();
    return h("fieldset", { class: "weights" }, h("legend", {}, "Weights in percent, together 100"),
      route.weights.map((weight) => {
        const input = h("input", { type: "number", min: 0, max: 100, step: 0.01, value: weight.weight_bp / 100,
          inputmode: "decimal", oninput: () => this.later() });
        this.part.weights.set(weight.region, input);
        return h("label", { class: "field short" }, weight.region, input);
      }));
  }

  later() {
    clearTimeout(this.timer);
    this.state.allowed = false;
    this.check();
    this.timer = setTimeout(() => this.look(), LOOK_MS);
  }

  request(mutation) {
    const { method, target } = this.state;
    const field = TEXT[method][2];
    const request = { mutation };
    if (field) request[field] = target;
    if (this.part.hold) mutation.ttl_s = String(this.part.hold.value);
    if (this.part.weights) {
      request.weights = [...this.part.weights].map(([region, input]) => (
        { region, weight_bp: Math.round(Number(input.value) * 100) }));
    }
    return request;
  }

  async post(request, confirm = "") {
    try {
      const answer = await fetch(`api/actions/${this.state.method}`, {
        method: "POST",
        headers: { "Content-Type": "application/json", "X-Weir-Console": "1" },
        body: JSON.stringify({ request, confirm }),
        signal: AbortSignal.timeout(8000),
      });
      return await answer.json();
    } catch {
      return { error: { code: "UNAVAILABLE", rule: "", message: "The replica did not answer. Nothing is known to have changed; ask again: a repeat changes nothing twice." } };
    }
  }

  async look() {
    const turn = (this.turn = (this.turn ?? 0) + 1);
    const answer = await this.post(this.request({ validate_only: true }));
    if (turn !== this.turn) return;
    this.state.allowed = !answer.error && !answer.effect.refusals.length && (!answer.effect.unchanged || !!answer.expires_at);
    this.state.etag = answer.etag ?? "";
    this.state.id = crypto.randomUUID();
    this.part.effect.replaceChildren(...this.effect(answer));
    this.check();
  }

  effect(answer) {
    if (answer.error) return [this.refusal(answer.error.rule || answer.error.code, answer.error.message, "")];
    const { effect } = answer;
    // with an end it is a renewal: the answer says which end it had and which it gets
    if (effect.unchanged && answer.expires_at) return [h("p", {}, `It is ${answer.message}.`)];
    if (effect.unchanged) return [h("p", {}, "It is already so: nothing would change.")];
    const rows = effect.regions.map((region) => {
      const change = region.load_after_bp - region.load_before_bp;
      const sign = change > 0 ? "▲" : change < 0 ? "▼" : "";
      return h("tr", {}, h("th", { scope: "row" }, region.region), h("td", {}, percent(region.load_before_bp)),
        h("td", {}, h("b", {}, percent(region.load_after_bp)), ` ${sign}`),
        h("td", { class: region.utilisation_after_bp > 10000 ? "alarm" : null }, percent(region.utilisation_after_bp, 0)));
    });
    return [
      h("table", { class: "effect-table" }, h("caption", {}, "What would happen"),
        h("thead", {}, h("tr", {}, ["Region", "Load now", "Load then", "Utilisation then"].map((text) => h("th", { scope: "col" }, text)))),
        h("tbody", {}, rows)),
      ...this.refusals(effect.refusals),
    ];
  }

  /** One box per rule, however many channels or regions it speaks for. */
  refusals(all) {
    const rules = [...new Set(all.map((refusal) => refusal.rule))];
    return rules.map((rule) => {
      const same = all.filter((refusal) => refusal.rule === rule);
      const remedies = [...new Set(same.map((refusal) => refusal.remedy).filter(Boolean))].map(sentence).join(" ");
      return this.refusal(rule, same.map((refusal) => refusal.message), remedies);
    });
  }

  refusal(rule, messages, remedy) {
    const said = [messages].flat().map(sentence);
    return h("div", { class: "refusal", role: "alert", "data-rule": rule }, icon("bad"),
      h("div", {}, h("b", {}, `Blocked by ${rule}. `), said.length === 1 ? `${said[0]} `
        : h("ul", {}, said.map((text) => h("li", {}, text))), remedy));
  }

  check() {
    if (!this.part.go) return;
    const typed = this.part.confirm.value.trim() === this.state.word && this.part.reason.value.trim() !== "";
    this.part.go.disabled = !typed || !this.state.allowed || this.state.sent;
  }

  async submit(event) {
    event.preventDefault();
    this.check();
    if (this.part.go?.disabled !== false) return;
    this.state.sent = true;
    this.check();
    say(this.part.outcome, "Sent…");
    const mutation = { request_id: this.state.id, reason: this.part.reason.value.trim(), etag: this.state.etag };
    const answer = await this.post(this.request(mutation), this.part.confirm.value.trim());
    if (answer.error) {
      this.state.sent = answer.error.code === "UNAVAILABLE" ? false : this.state.sent;
      const again = answer.error.rule === "etag";
      say(this.part.outcome, again ? "Something changed since you looked. Here is what would happen now." : "Nothing was changed.");
      if (again) { this.state.sent = false; this.look(); }
      else this.part.effect.replaceChildren(this.refusal(answer.error.rule || answer.error.code, answer.error.message, ""));
      this.check();
      return;
    }
    this.part.go.hidden = true;
    const cancel = this.dialog.querySelector(".dialog-foot .button:not(.primary)");
    say(cancel, "Close");
    cancel.focus();
    this.follow(answer, performance.now(), 0);
  }

  /** Tell each stage of the operation until it is done or the dialog closes. */
  async follow(operation, began, count) {
    const turn = this.turn;
    const took = duration(performance.now() - began);
    say(this.part.outcome, operation.done
      ? `Done: ${operation.stage}, ${took}. ${operation.message}`
      : `${operation.stage}: ${operation.message || "on its way to the leader"}`);
    this.part.outcome.dataset.stage = operation.stage;
    if (operation.done || count > FOLLOWS_MAX) return;
    await new Promise((resolve) => { this.timer = setTimeout(resolve, FOLLOW_MS); });
    if (turn !== this.turn || !this.dialog.open) return;
    const answer = await fetch(this.feed.url(`operations/${operation.id}`)).then((r) => r.ok ? r.json() : null, () => null);
    if (turn === this.turn) this.follow(answer ?? operation, began, count + 1);
  }
}
