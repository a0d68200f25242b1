// The connection: server-sent events of one replica, and of the next when that one dies.
//
// A replica that is gone refuses at once; one that hangs says nothing for SILENT_MS. Either way the
// next one is tried. Whatever is shown meanwhile is said to be old. After a move the page stays
// where it is: a replica that comes back is no reason to move again. Only who wants to act goes back
// to the page's own replica, when that one answers after all.

const SILENT_MS = 3000;
const RETRY_MS = [100, 400, 1000, 2000];
const HOME_MS = 1500;
export const OLD_MS = 2500;

export class Feed extends EventTarget {
  constructor() {
    super();
    this.peers = [{ id: "", region: "", base: "", self: true }];
    this.at = 0;
    this.failures = 0;
    this.heard = null;
    this.tried = "";
  }

  /** Learn where the other replicas are; the page's own stays first. */
  know(peers) {
    const own = peers.find((peer) => peer.self);
    const rest = peers.filter((peer) => !peer.self);
    this.peers = [
      { id: own?.id ?? "", region: own?.region ?? "", base: "", self: true },
      ...rest.map((peer) => ({ ...peer, base: `http://${peer.http}`, self: false })),
    ];
  }

  get peer() {
    return this.peers[this.at % this.peers.length];
  }

  /** Milliseconds since this page heard from any replica; null before the first answer. */
  get age() {
    return this.heard === null ? null : performance.now() - this.heard;
  }

  /** Where GET /api/... goes now. */
  url(path) {
    return `${this.peer.base}/api/${path}`;
  }

  start() {
    const source = new EventSource(this.url("events"));
    this.source = source;
    this.opened = performance.now();
    this.dispatchEvent(new Event("trying"));
    for (const kind of ["status", "regions", "decision"]) {
      source.addEventListener(kind, (event) => {
        if (this.source !== source) return;
        if (kind === "status") this.alive();
        this.dispatchEvent(new CustomEvent(kind, { detail: JSON.parse(event.data) }));
      });
    }
    source.onerror = () => this.source === source && this.move();
    clearInterval(this.watchdog);
    this.watchdog = setInterval(() => {
      const since = Math.max(this.opened, this.heard ?? 0);
      if (this.source === source && performance.now() - since > SILENT_MS) this.move();
    }, 500);
  }

  alive() {
    this.heard = performance.now();
    this.failures = 0;
  }

  /** Leave this replica for the next, a little later with every failure in a row. */
  move() {
    this.source.close();
    this.source = null;
    clearInterval(this.watchdog);
    this.tried = this.peer.id;
    this.at = (this.at + 1) % this.peers.length;
    const round = Math.floor(this.failures / this.peers.length);
    this.failures += 1;
    this.dispatchEvent(new Event("moving"));
    this.retry = setTimeout(() => this.start(), RETRY_MS[Math.min(round, RETRY_MS.length - 1)]);
  }

  /** Go back to the page's own replica if it answers; return whether the page is there. */
  async home() {
    if (this.peer.self) return true;
    try {
      const answer = await fetch("api/console", { signal: AbortSignal.timeout(HOME_MS) });
      if (!answer.ok) return false;
    } catch {
      return false;
    }
    clearTimeout(this.retry);
    clearInterval(this.watchdog);
    this.source?.close();
    this.at = 0;
    this.start();
    return true;
  }
}

/** GET JSON from the replica the feed is at; null when it does not answer well. */
export async function read(feed, path) {
  try {
    const answer = await fetch(feed.url(path), { signal: AbortSignal.timeout(3000) });
    return answer.ok ? await answer.json() : null;
  } catch {
    return null;
  }
}
