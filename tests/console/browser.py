"""A real Chromium on a page of the console, and what is asked of the page as it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = "/usr/bin/chromium"
ARGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000
"""Generous: the machine may be busy with other tests. Nothing is asserted about speed."""
AA = 4.5
"""Least contrast of text by WCAG 2, level AA."""
DESKTOP = {"width": 1280, "height": 900}
PHONE = {"width": 360, "height": 740}


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Run one browser."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=list(ARGS), timeout=PATIENCE_MS
        )
        yield browser
        browser.close()


@contextlib.contextmanager
def console(
    browser: Browser, url: str, *, size: Any = None, scheme: Any = "dark"
) -> Iterator[tuple[Page, list[str]]]:
    """Open the console and wait until it shows the regions; give the page and its complaints.

    Complaints are errors of scripts and of the console, among them every violation of the policy.
    """
    context = browser.new_context(viewport=size or DESKTOP, color_scheme=scheme)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in {"error", "warning"} else None,
    )
    page.goto(url)
    page.wait_for_selector("[data-region] .load-now")
    page.wait_for_selector("#connection[data-state=live]")
    yield page, complaints
    context.close()


CONTRASTS = """() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const over = (top, below) => top.slice(0, 3).map((c, i) => c * top[3] + below[i] * (1 - top[3]));
  const ground = (element) => {
    const layers = [];
    for (let at = element; at; at = at.parentElement) layers.push(parse(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const light = (rgb) => rgb.map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || element.closest(".sr, .skip, noscript, [hidden], :disabled")) continue;
    if (!element.getClientRects().length) continue;
    const below = ground(element);
    const colour = over(parse(getComputedStyle(element).color), below);
    const [a, b] = [light(colour), light(below)].sort((x, y) => y - x);
    found.push([texts.currentNode.textContent.trim().slice(0, 40), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
"""Text of the page with its contrast against what lies behind it, by the formula of WCAG 2."""

NAMELESS = """() => [...document.querySelectorAll("button, a[href], input, select, dialog[open], [role=img], ol[tabindex]")]
  .filter((element) => !element.closest("[hidden]"))
  .filter((element) => !(element.getAttribute("aria-label") || element.textContent.trim()
    || element.labels?.[0]?.textContent.trim() || element.getAttribute("aria-labelledby")))
  .map((element) => element.outerHTML)"""
"""Controls without a name."""
