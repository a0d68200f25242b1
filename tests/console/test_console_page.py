"""The console in a real Chromium on a real `weir dev`: what a person sees, and what acting does."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.console.browser import (
    AA,
    CONTRASTS,
    DESKTOP,
    NAMELESS,
    PATIENCE_MS,
    PHONE,
    chromium,
    console,
)
from tests.support import dev_run
from tests.support.dev_run import QUICK_RETURN, DevRun, eventually, running, weir
from tests.support.kept import Kept, kept

expect.set_options(timeout=PATIENCE_MS)

# two regions have to stay, so that a rule refuses the second drain
POLICY = (*QUICK_RETURN, "min_regions=2")


@contextlib.contextmanager
def topology(folder: Path) -> Iterator[DevRun]:
    """Run the local topology, whose regions come back quickly."""
    policy = [word for pair in POLICY for word in ("--policy", pair)]
    with running(folder / "state", "--load", "10", *policy) as run:
        yield run.until_ready()


@pytest.fixture(scope="module")
def devs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept[DevRun]]:
    """Keep one topology for all tests."""
    with kept(lambda: topology(tmp_path_factory.mktemp("console"))) as found:
        yield found


@pytest.fixture
def dev(devs: Kept[DevRun], request: pytest.FixtureRequest) -> DevRun:
    """Give the topology, to look at."""
    return devs.get(request.node)


@pytest.fixture
def whole(devs: Kept[DevRun], request: pytest.FixtureRequest) -> Iterator[DevRun]:
    """Give the topology with everything running, before and after the test."""
    with dev_run.whole(devs, request.node) as found:
        yield found


@pytest.fixture(scope="module")
def browsers() -> Iterator[Kept[Browser]]:
    """Keep one Chromium for all tests."""
    with kept(chromium) as found:
        yield found


@pytest.fixture
def browser(browsers: Kept[Browser], request: pytest.FixtureRequest) -> Browser:
    """Give Chromium."""
    return browsers.get(request.node)


def home(dev: DevRun, region: str) -> str:
    """The console's address at a region's replica."""
    return next(f"http://{r['http']}/" for r in dev.topology["replicas"] if r["region"] == region)


def card(page: Page, region: str) -> Any:
    """A region's card."""
    return page.get_by_role("article", name=region, exact=True)


def carry_out(page: Page, region: str, button: str, verb: str) -> None:
    """Do something to a region through the dialog, as a person must."""
    card(page, region).get_by_role("button", name=button).click()
    dialog = page.get_by_role("dialog")
    expect(dialog.get_by_role("table", name="What would happen")).to_be_visible()
    go = dialog.get_by_role("button", name=f"{verb} {region}")
    expect(go).to_be_disabled()
    dialog.get_by_label("Reason").fill("a test of the console")
    expect(go).to_be_disabled()
    dialog.get_by_label("to confirm").fill(region)
    expect(go).to_be_enabled()
    dialog.get_by_label("to confirm").press("Enter")
    expect(dialog.get_by_role("status")).to_contain_text("Done")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def drained(dev: DevRun, region: str) -> bool:
    """Every replica's plan drains the region."""
    plans = dev.plans().values()
    return bool(plans) and all(
        r["drained"] for plan in plans for r in plan["regions"] if r["name"] == region
    )


def drained_anywhere(dev: DevRun, region: str) -> bool:
    """Some replica's plan drains the region."""
    plans = dev.plans().values()
    return any(r["drained"] for plan in plans for r in plan["regions"] if r["name"] == region)


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_a_calm_page_shows_every_fact_and_is_readable(
    whole: DevRun, browser: Browser, scheme: str
) -> None:
    """Regions, breakers, leader and term are there with names and landmarks; every text has AA
    contrast in both themes; scripts and policy have nothing to complain about."""
    with console(browser, home(whole, "north"), scheme=scheme) as (page, complaints):
        expect(page.get_by_role("banner")).to_contain_text("weir-dev")
        expect(page.get_by_role("banner")).to_contain_text("Leader")
        expect(page.get_by_role("main")).to_be_visible()
        for region in whole.topology["regions"]:
            shown = card(page, region)
            expect(shown).to_contain_text("healthy")
            expect(shown).to_contain_text("says up")
            expect(shown).to_contain_text("in force")
            expect(shown.get_by_role("group", name=f"Actions on {region}")).to_be_visible()
        matrix = page.get_by_role("table", name="Share of each channel's payments")
        expect(matrix.get_by_role("row")).to_have_count(5)
        expect(matrix).to_contain_text("closed")
        expect(page.get_by_role("img", name="Load of the regions")).to_be_visible()
        expect(page.locator("canvas")).to_have_count(1)
        assert page.evaluate(NAMELESS) == []
        faint = [(text, round(ratio, 2)) for text, ratio in page.evaluate(CONTRASTS) if ratio < AA]
        assert faint == []
        assert complaints == []


def test_a_phone_needs_no_sideways_scrolling(whole: DevRun, browser: Browser) -> None:
    """At 360 pixels the page is as wide as the screen, with the dialog open too."""
    with console(browser, home(whole, "north"), size=PHONE) as (page, complaints):
        wide = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        assert page.evaluate(wide) == 0
        card(page, "south").get_by_role("button", name="Drain").click()
        expect(page.get_by_role("table", name="What would happen")).to_be_visible()
        assert page.evaluate(wide) == 0
        box = page.get_by_role("dialog").bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PHONE["width"]
        assert complaints == []


def test_the_keyboard_alone_reaches_and_leaves_an_action(whole: DevRun, browser: Browser) -> None:
    """Tab reaches a region's button through the skip link, Enter opens the dialog with the focus in
    it, Escape closes it and gives the focus back."""
    with console(browser, home(whole, "north")) as (page, _):
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the regions")).to_be_focused()
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        first = min(whole.topology["regions"])
        button = card(page, first).get_by_role("button", name="Drain")
        expect(button).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.get_by_role("dialog").get_by_label("Reason")).to_be_focused()
        page.keyboard.press("Escape")
        expect(button).to_be_focused()


def test_a_failover_is_seen_as_it_happens(whole: DevRun, browser: Browser) -> None:
    """A region dies: without a reload the page shows it failed with the evidence, its load at 0,
    the stages of the failover within the budget, and the events; and its return."""
    with console(browser, home(whole, "north")) as (page, complaints):
        tall = page.locator("#regions").bounding_box()
        whole.chaos("kill-region", region="south")
        south = card(page, "south")
        expect(south.locator(".chip")).to_have_text("failed")
        expect(south.locator(".load-now")).to_have_text("0 %")
        expect(south).to_contain_text("say DOWN")
        expect(page.locator("#headline-text")).to_contain_text("south failed")
        expect(page.locator("#headline-text")).to_have_attribute("aria-live", "polite")
        timeline = page.get_by_role("list", name="Events, newest first")
        expect(timeline.locator("[data-kind=region_failed]")).to_contain_text("south failed")
        panel = page.get_by_role("region", name="Failover")
        expect(panel).to_contain_text("last: south")
        expect(panel.locator(".stage.done")).to_have_count(5)
        expect(panel).to_contain_text("30 s budget")
        expect(page).to_have_title("south failed · weir-dev · Weir")
        grown = page.locator("#regions").bounding_box()
        assert tall
        assert grown
        assert tall["y"] == grown["y"], "the layout jumped"
        whole.chaos("restore-region")
        expect(south.locator(".chip")).to_have_text("healthy")
        expect(page.locator("#headline-text")).to_contain_text("healthy")
        assert complaints == []


def test_an_action_is_shown_confirmed_and_carried_out(whole: DevRun, browser: Browser) -> None:
    """A drain through the page needs the region's name and a reason, reaches every replica's plan,
    is told to its end, and is taken back the same way."""
    with console(browser, home(whole, "north")) as (page, complaints):
        carry_out(page, "south", "Drain…", "Drain")
        assert drained(whole, "south")
        expect(card(page, "south").locator(".chip")).to_have_text("drained")
        expect(card(page, "south").locator(".load-now")).to_have_text("0 %")
        carry_out(page, "south", "Undrain…", "Undrain")
        expect(card(page, "south").locator(".chip")).to_have_text("healthy")
        assert complaints == []


def test_an_override_in_force_is_held_longer(whole: DevRun, browser: Browser) -> None:
    """Asked for with the weights it has, the dialog tells both ends and whose it is, and takes the new one."""
    server = next(r["grpc"] for r in whole.topology["replicas"] if r["region"] == "north")
    to = ("--server", server)
    options = ("--reason", "INC-42", "--yes", "--wait")
    fixed = ("--weights", "east=5000,north=5000", "--for", "5m")
    assert weir(*to, "override", "unionpay", *fixed, *options).returncode == 0
    try:
        with console(browser, home(whole, "north")) as (page, complaints):
            expect(page.locator("#facts")).to_contain_text("override unionpay")
            page.get_by_role("button", name="Override the weights of unionpay").click()
            dialog = page.get_by_role("dialog")
            expect(dialog).to_contain_text(
                re.compile(r"already so by \S+ \(INC-42\); holds until .* instead of")
            )
            dialog.get_by_label("Reason").fill("INC-43")
            dialog.get_by_label("to confirm").fill("unionpay")
            dialog.get_by_label("to confirm").press("Enter")
            expect(dialog.get_by_role("status")).to_contain_text("Done")
            page.keyboard.press("Escape")
            expect(page.locator("#facts")).to_contain_text("INC-43")
            assert complaints == []
    finally:
        assert weir(*to, "override", "unionpay", "--clear", *options).returncode == 0


def test_a_rule_that_refuses_is_named_and_nothing_happens(whole: DevRun, browser: Browser) -> None:
    """With one region drained and two required, the page names the rule, its numbers and the
    remedy, and the button stays shut whatever is typed."""
    server = next(r["grpc"] for r in whole.topology["replicas"] if r["region"] == "north")
    options = ("--reason", "a test of the console", "--yes")
    assert weir("--server", server, "drain", "south", *options).returncode == 0
    try:
        eventually(lambda: drained(whole, "south"), "south is drained")
        with console(browser, home(whole, "north")) as (page, _):
            card(page, "north").get_by_role("button", name="Drain").click()
            dialog = page.get_by_role("dialog")
            expect(dialog.get_by_role("alert")).to_contain_text("Blocked by min_regions")
            expect(dialog.get_by_role("alert")).to_contain_text("Bring another region back first")
            dialog.get_by_label("Reason").fill("a test of the console")
            dialog.get_by_label("to confirm").fill("north")
            expect(dialog.get_by_role("button", name="Drain north")).to_be_disabled()
        assert not drained_anywhere(whole, "north")
    finally:
        assert weir("--server", server, "undrain", "south", *options).returncode == 0
        eventually(lambda: not drained_anywhere(whole, "south"), "south is back")


def test_the_page_moves_on_when_its_replica_dies(whole: DevRun, browser: Browser) -> None:
    """The replica is killed: the page goes on live from another one, says so, shows what happens
    there, and offers that replica's own console for actions."""
    with console(browser, home(whole, "south"), size=DESKTOP) as (page, _):
        expect(page.locator("#connection-text")).to_have_text("Live from south-0")
        victim = next(r for r in whole.topology["replicas"] if r["region"] == "south")
        os.kill(victim["pid"], signal.SIGKILL)
        expect(page.locator("#connection-text")).to_contain_text("south-0 did not answer")
        expect(page.locator("#connection")).to_have_attribute("data-state", "live")
        link = page.locator("#connection-link")
        expect(link).to_be_visible()
        assert link.get_attribute("href") in {home(whole, "east"), home(whole, "north")}
        card(page, "north").get_by_role("button", name="Drain").click()
        expect(page.get_by_role("alert")).to_contain_text("To act, open the console of")


def test_the_page_returns_to_its_own_replica_to_act(whole: DevRun, browser: Browser) -> None:
    """Its replica is back: the page stays live where it is until somebody wants to act, then goes
    home by itself, without a reload, and the action is worked out there."""
    with console(browser, home(whole, "south"), size=DESKTOP) as (page, _):
        page.evaluate("window.notReloaded = true")
        victim = next(r for r in whole.topology["replicas"] if r["region"] == "south")
        os.kill(victim["pid"], signal.SIGKILL)
        expect(page.locator("#connection-text")).to_contain_text("south-0 did not answer")
        whole.chaos("restore-region")
        eventually(whole.settled, "the replica is back")
        expect(page.locator("#connection-text")).to_contain_text("so this page moved on")

        card(page, "north").get_by_role("button", name="Drain").click()
        dialog = page.get_by_role("dialog")
        expect(dialog.get_by_role("table", name="What would happen")).to_be_visible()
        expect(page.locator("#connection-text")).to_have_text("Live from south-0")
        expect(page.locator("#connection-link")).to_be_hidden()
        assert page.evaluate("window.notReloaded")
    assert not drained_anywhere(whole, "north")


def test_a_page_that_hears_nobody_says_how_old_it_is(whole: DevRun, browser: Browser) -> None:
    """When no replica can be reached, what is shown stays, marked as old with its age."""
    with console(browser, home(whole, "south")) as (page, _):
        page.context.set_offline(True)
        os.kill(next(r["pid"] for r in whole.topology["replicas"] if r["region"] == "south"), 9)
        expect(page.locator("#connection")).to_have_attribute("data-state", "gone")
        expect(page.locator("#connection-text")).to_contain_text("OLD: what you see is")
        expect(page.locator("body")).to_have_class("old")
        expect(card(page, "north").locator(".load-now")).to_contain_text("%")
        page.context.set_offline(False)
        expect(page.locator("#connection")).to_have_attribute("data-state", "live")


def ask(
    address: str, path: str, headers: dict[str, str], body: Any = None
) -> tuple[int, Any, dict[str, str]]:
    """Send a request as a page would, or as one would that means harm."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{address}{path}", data, headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error), dict(error.headers)


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": ""}, 403),
        ({"Host": "rebound.example:80", "Origin": "http://rebound.example:80"}, 403),
        ({"X-Weir-Console": None}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
def test_only_the_replicas_own_page_may_act(
    dev: DevRun, change: dict[str, str | None], status: int
) -> None:
    """Each protection alone stops a request that is right in everything else: a foreign origin, a
    name rebound to loopback, a form, a request without the header."""
    address = dev.topology["replicas"][0]["http"]
    right = {
        "Origin": f"http://{address}", "X-Weir-Console": "1", "Content-Type": "application/json",
    }  # fmt: skip
    headers = {key: value for key, value in {**right, **change}.items() if value is not None}
    body = {"request": {"region": "south", "mutation": {"validate_only": True}}}
    eventually(lambda: ask(address, "/api/actions/DrainRegion", headers, body)[0] != 503, "served")
    assert ask(address, "/api/actions/DrainRegion", headers, body)[0] == status


@pytest.mark.parametrize(
    ("method", "body", "status", "words"),
    [
        ("DrainRegion", {"request": {"region": "south", "mutation": {"reason": "x"}}}, 400, "type south"),
        ("Freeze", {"request": {"mutation": {"reason": "x"}}, "confirm": "south"}, 400, "type weir-dev"),
        ("DrainRegion", {"request": {"region": "mars", "mutation": {"validate_only": True}}}, 400, "unknown region"),
        ("DrainRegion", {"request": {"region": "south", "mutation": {"override_rules": ["capacity"]}}}, 403, "--override-rule"),
        ("DrainRegion", {"request": {"planet": "mars"}}, 400, "the body must be"),
        ("DrainRegion", [], 400, "the body must be"),
        ("StartDrill", {"request": {"region": "south"}}, 404, "no action"),
        ("GetOperation", {"request": {"id": "op-1"}}, 404, "no action"),
    ],
)  # fmt: skip
def test_an_action_that_is_not_right_changes_nothing(
    dev: DevRun, method: str, body: Any, status: int, words: str
) -> None:
    """The server itself asks for the typed name, knows its methods only, and lets nobody override a
    rule from a browser."""
    address = dev.topology["replicas"][0]["http"]
    headers = {
        "Origin": f"http://{address}", "X-Weir-Console": "1", "Content-Type": "application/json",
    }  # fmt: skip
    code, answer, _ = ask(address, f"/api/actions/{method}", headers, body)
    assert code == status
    assert words in answer["error"]["message"]
    assert not drained_anywhere(dev, "south")


def test_only_the_other_replicas_pages_may_read(dev: DevRun) -> None:
    """CORS names a configured replica's origin and no other, and never allows a request that
    changes something."""
    ours, other = (replica["http"] for replica in dev.topology["replicas"][:2])
    allowed = "Access-Control-Allow-Origin"
    _, _, headers = ask(ours, "/api/status", {"Origin": f"http://{other}"})
    assert headers[allowed] == f"http://{other}"
    assert allowed not in ask(ours, "/api/status", {"Origin": "http://evil.example"})[2]
    assert allowed not in ask(ours, "/api/status", {"Origin": "null"})[2]
    _, _, headers = ask(ours, "/api/actions/DrainRegion", {"Origin": f"http://{other}"}, {})
    assert allowed not in headers
    policy = headers["Content-Security-Policy"]
    assert "unsafe" not in policy
    assert "default-src 'none'" in policy
    assert f"http://{other}" in policy
    assert "*" not in policy
