"""Take the pictures of docs/console.md and of the front page from a real `weir dev`, while a region
dies.

Usage: `python -m scripts.console_screenshots [FOLDER]` (default docs/images). Needs Chromium.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from unittest import mock

from playwright.sync_api import Browser, Page
from rich.console import Console

from controlplane.cli import output, read
from controlplane.cli.options import Options
from tests.console.browser import PATIENCE_MS, PHONE, chromium, console
from tests.support.dev_run import QUICK_RETURN, DevRun, eventually, running

CALM_MS = 9_000
"""How long the chart grows before the first picture."""
COLUMNS = 100
"""Of the terminal drawn for the front page."""
WIDE = {"width": 1280, "height": 1000}


def shoot(page: Page, folder: Path, name: str, *, full: bool = False) -> None:
    """Write one picture."""
    path = folder / f"console-{name}.png"
    page.screenshot(path=path, full_page=full, animations="disabled")
    print(f"{path}  {path.stat().st_size // 1024} KiB")


def take(dev: DevRun, browser: Browser, folder: Path) -> None:
    """Go through an incident and picture what an operator sees."""
    url = next(f"http://{r['http']}/" for r in dev.topology["replicas"] if r["region"] == "north")
    eventually(dev.settled, "everything runs")
    with (
        console(browser, url, size=WIDE) as (dark, _),
        console(browser, url, size=WIDE, scheme="light") as (light, _),
        console(browser, url, size=PHONE) as (phone, _),
    ):
        dark.wait_for_timeout(CALM_MS)
        shoot(light, folder, "light")
        dark.get_by_role("article", name="south").get_by_role("button", name="Drain").click()
        dark.get_by_role("table", name="What would happen").wait_for()
        dark.get_by_label("Reason").fill("maintenance of the south link, ticket 4711")
        dark.get_by_label("to confirm").fill("south")
        shoot(dark, folder, "action")
        dark.keyboard.press("Escape")
        dev.chaos("kill-region", region="east")
        dark.locator("[data-kind=region_failed]").wait_for(timeout=PATIENCE_MS)
        dark.locator("#failover-name", has_text="last: east").wait_for(timeout=PATIENCE_MS)
        dark.wait_for_timeout(CALM_MS)
        shoot(dark, folder, "failed", full=True)
        shoot(phone, folder, "phone")
    picture_of_status(url, dev, folder)


def picture_of_status(url: str, dev: DevRun, folder: Path) -> None:
    """Draw what `weir status` and `weir failovers` print on a terminal of 100 columns."""
    address = next(r["grpc"] for r in dev.topology["replicas"] if r["http"] in url)
    terminal = Console(
        record=True, width=COLUMNS, force_terminal=True, file=io.StringIO(), highlight=False
    )
    options = Options(server=address)
    with (
        mock.patch.object(output, "_terminal", return_value=terminal),
        mock.patch.object(sys.stdout, "isatty", return_value=True),
    ):
        for name, command in (("status", read.status), ("failovers", read.failovers)):
            terminal.print(f"[bold]$ weir {name}[/bold]")
            command(options)
            terminal.print()
    path = folder / "status-after-failover.svg"
    terminal.save_svg(str(path), title="a region has died")
    print(f"{path}  {path.stat().st_size // 1024} KiB")


def main() -> None:
    """Run the topology and the browser once."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/images")
    folder.mkdir(parents=True, exist_ok=True)
    policy = [word for pair in QUICK_RETURN[1:] for word in ("--policy", pair)]
    with (
        tempfile.TemporaryDirectory() as state,
        running(Path(state) / "state", "--load", "20", *policy) as dev,
        chromium() as browser,
    ):
        dev.until_ready()
        take(dev, browser, folder)


if __name__ == "__main__":
    main()
