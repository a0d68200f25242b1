// Load over time, stacked to the whole: uPlot draws, the legend and the note say it in words.

import { byId, clock, h, hue, percent, say, show } from "./dom.js";

const SPAN_S = 600;
const SPAN_MIN_S = 60;
const KEPT = 2000;

export class Chart {
  constructor(root) {
    this.root = root;
    this.points = [];
    this.regions = [];
    new ResizeObserver(() => this.resize()).observe(root);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.rebuild());
  }

  /** Points the replica remembers: [{at_ms, load_bp: {region: bp}}]. */
  past(points) {
    const first = this.points[0]?.at ?? Infinity;
    const older = points.map((p) => ({ at: p.at_ms / 1000, load: p.load_bp })).filter((p) => p.at < first);
    this.points = [...older, ...this.points];
  }

  render(regions, now) {
    const load = Object.fromEntries(regions.map((region) => [region.name, region.load_bp]));
    const last = this.points.at(-1);
    if (last && now / 1000 - last.at < 0.2) return;
    this.points.push({ at: now / 1000, load });
    if (this.points.length > KEPT) this.points.splice(0, this.points.length - KEPT);
    const names = regions.map((region) => region.name);
    if (names.join() !== this.regions.join()) {
      this.regions = names;
      this.rebuild();
    }
    this.draw(now / 1000);
    const words = regions.map((region) => `${region.name} ${percent(region.load_bp)}`).join(", ");
    this.root.setAttribute("aria-label", `Load of the regions over time. Now: ${words}.`);
    show(byId("legend"), regions.map((r) => [r.name, r.load_bp]), () => regions.map((region, i) =>
      h("span", { class: "legend-item" },
        h("span", { class: `swatch pattern-${i % 3}`, style: { background: hue(i) }, "aria-hidden": "true" }),
        region.name, h("b", {}, percent(region.load_bp)))));
    const moved = this.moved();
    say(byId("chart-note"), moved ? `last change at ${clock(new Date(moved * 1000))}` : "no change in this window");
  }

  /** Seconds shown: all there is, at least a minute, at most ten. */
  get span() {
    const known = (this.now ?? 0) - (this.points[0]?.at ?? 0);
    return Math.min(SPAN_S, Math.max(SPAN_MIN_S, known));
  }

  moved() {
    for (let i = this.points.length - 1; i > 0; i -= 1) {
      const [a, b] = [this.points[i - 1].load, this.points[i].load];
      if (this.regions.some((name) => a[name] !== b[name])) return this.points[i].at;
    }
    return null;
  }

  /** Columns for uPlot: x, then from the last region up the sum of the shares below. */
  columns(now) {
    const from = now - SPAN_S;
    let shown = this.points.filter((p) => p.at >= from);
    const before = this.points.filter((p) => p.at < from).at(-1);
    if (before) shown = [{ at: from, load: before.load }, ...shown];
    const xs = shown.map((p) => p.at);
    const sums = shown.map(() => 0);
    const stacked = this.regions.map((name) => shown.map((p, i) => (sums[i] += (p.load[name] ?? 0) / 100)));
    return [xs, ...stacked.reverse()];
  }

  colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  rebuild() {
    this.plot?.destroy();
    this.plot = null;
    if (!this.regions.length || typeof uPlot === "undefined") return;
    const stepped = uPlot.paths.stepped({ align: 1 });
    const axis = { stroke: this.colour("--muted"), grid: { stroke: this.colour("--grid"), width: 1 },
      ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const order = this.regions.map((_, i) => i).reverse();
    this.plot = new uPlot({
      width: this.root.clientWidth, height: this.root.clientHeight, legend: { show: false },
      cursor: { show: false }, select: { show: false }, padding: [8, 26, 0, 0],
      scales: { x: { time: true, range: () => [this.now - this.span, this.now] }, y: { range: [0, 100] } },
      axes: [
        { ...axis, space: 104, size: 32, values: (_, splits) => splits.map((s) =>
          new Date(s * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", ...(this.span < 300 ? { second: "2-digit" } : {}), hour12: false })) },
        { ...axis, size: 46, splits: () => [0, 25, 50, 75, 100], values: (_, v) => v.map((n) => `${n} %`) },
      ],
      series: [{}, ...order.map((i) => ({
        label: this.regions[i], paths: stepped, points: { show: false }, width: 1.5,
        stroke: this.colour(`--r${i % 6}`), fill: this.colour(`--r${i % 6}-fill`),
      }))],
    }, this.columns(this.now ?? Date.now() / 1000), this.root);
  }

  draw(now) {
    this.now = now;
    if (!this.plot) this.rebuild();
    this.plot?.setData(this.columns(now));
  }

  resize() {
    if (this.plot) this.plot.setSize({ width: this.root.clientWidth, height: this.root.clientHeight });
  }
}
