"""The page in states that `weir dev` seldom reaches, in a real Chromium: what the first line says."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from controlplane.v1 import admin_pb2
from tests.console.browser import AA, CONTRASTS, NAMELESS, PATIENCE_MS, PHONE, chromium, console
from tests.console.scene import Scene, ago, shown
from tests.support.kept import Kept, kept

expect.set_options(timeout=PATIENCE_MS)

WIDE = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
QUORUM = "etcd does not answer with a quorum: the last known good plan stays in force"
STATES = {
    "healthy": (Scene(), "All 3 regions are healthy.", "icon.svg"),
    "failed": (Scene(phases={"east": "failed"}), "east failed. Payments go to north and south.", "icon-bad.svg"),
    "suspect": (Scene(phases={"east": "suspect"}), "east is suspect. Payments go to north and south.", "icon-warn.svg"),
    "drained": (Scene(drained=frozenset({"south"})), "south is drained. Payments go to east and north.", "icon.svg"),
    "cut off": (Scene(status={"coordinated": False, "alarms": [QUORUM]}), "Cut off from etcd", "icon-bad.svg"),
    "panic": (Scene(status={"panic": True}), "Panic: too little is healthy", "icon-bad.svg"),
    "frozen": (Scene(status={"frozen": True}), "Frozen by an operator", "icon.svg"),
    "alarm": (Scene(status={"alarms": ["no leader is known"]}), "No leader is known.", "icon-warn.svg"),
    "breakers": (
        Scene(breakers={(r, f"channel_00{n}"): "open" for r in ("east", "north") for n in range(2)}),
        "4 breakers open: channel_000 in east, channel_001 in east, channel_000 in north and 1 more.",
        "icon-warn.svg",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def browsers() -> Iterator[Kept[Browser]]:
    """Keep one Chromium for all tests."""
    with kept(chromium) as found:
        yield found


@pytest.fixture
def browser(browsers: Kept[Browser], request: pytest.FixtureRequest) -> Browser:
    """Give Chromium."""
    return browsers.get(request.node)


def channel_names(page: Page) -> list[str]:
    """Return the channels in the order of the page."""
    names: list[str] = page.locator(".channel-name").all_inner_texts()
    return names


@pytest.mark.parametrize("state", STATES)
def test_the_first_line_says_the_worst_thing(browser: Browser, state: str) -> None:
    """Headline, tab icon and contrast of every state; nobody has to scroll to know."""
    scene, headline, icon = STATES[state]
    with shown(scene) as url, console(browser, url, scheme="light") as (page, complaints):
        expect(page.locator("#headline-text")).to_contain_text(headline)
        expect(page.locator("#icon")).to_have_attribute("href", f"console/{icon}")
        faint = [(text, round(ratio, 2)) for text, ratio in page.evaluate(CONTRASTS) if ratio < AA]
        assert faint == []
        assert page.evaluate(NAMELESS) == []
        assert complaints == []


def test_what_is_old_is_said_to_be_old(browser: Browser) -> None:
    """Cut off from etcd the page says since when, and that what the vantages say is that old."""
    scene = Scene(known_s=95, status={"coordinated": False, "alarms": [QUORUM]})
    with shown(scene) as url, console(browser, url) as (page, complaints):
        expect(page.locator("#headline-text")).to_contain_text("Cut off from etcd")
        expect(page.locator("#headline-for")).to_have_text("2 min")
        votes = page.locator("[data-region=east] dt", has_text="Seen")
        expect(votes).to_have_text("Seen 2 min ago by")
        assert complaints == []


def test_how_long_it_lasts_is_shown_and_not_read_aloud(browser: Browser) -> None:
    """The age changes every second, so it stands beside the sentence that is announced."""
    scene = Scene(phases={"east": "failed"})
    with shown(scene) as url, console(browser, url) as (page, _):
        expect(page.locator("#headline-for")).to_have_text("2 min")
        assert page.locator("[aria-live] #headline-for, [role=status] #headline-for").count() == 0


def test_a_replica_without_a_plan_says_why(browser: Browser) -> None:
    """Nothing is known: the page tells the reason and who answers, instead of staying empty."""
    scene = Scene(plan=False, status={"alarms": ["no leader is known"], "leader": ""})
    with shown(scene) as url:
        page = browser.new_page()
        page.goto(url)
        expect(page.locator("#headline-text")).to_have_text("No plan yet.")
        expect(page.locator("#headline-more")).to_have_text("No leader is known.")
        expect(page.get_by_role("banner")).to_contain_text("none known")
        page.close()


def test_a_hundred_channels_stay_usable(browser: Browser) -> None:
    """The ill ones come first, the table scrolls by itself and a name is found by typing."""
    scene = Scene(
        channels=100,
        breakers={("north", "channel_042"): "open"},
        shed_bp={"channel_077": 500},
    )
    with shown(scene) as url, console(browser, url) as (page, complaints):
        expect(page.locator("#channels-note")).to_have_text(
            "100 channels, 1 of 300 breakers not closed"
        )
        assert channel_names(page)[:3] == ["channel_042", "channel_077", "channel_000"]
        box = page.locator("#channels").bounding_box()
        assert box
        assert box["height"] < 600
        page.get_by_role("searchbox", name="Find a channel").fill("09")
        expect(page.locator(".channel-name")).to_have_count(11)
        page.get_by_role("searchbox", name="Find a channel").fill("zz")
        expect(page.locator("#channels")).to_contain_text("No channel has")
        assert complaints == []


def test_six_regions_fit_a_desk_and_a_phone(browser: Browser) -> None:
    """More regions than three wrap or scroll inside their panel; the page is never wider than the
    screen."""
    scene = Scene(regions=("east", "north", "south", "west", "central", "overseas"))
    for size in (None, PHONE):
        with shown(scene) as url, console(browser, url, size=size) as (page, complaints):
            expect(page.locator("[data-region].card")).to_have_count(6)
            assert page.evaluate(WIDE) <= 0
            assert complaints == []


def test_what_stands_by_somebodys_word_is_named_with_its_end(browser: Browser) -> None:
    """Who, why and until when, beside the leader; the longest reason does not widen the page."""
    long = "INC-43 " + "and so on " * 49
    orders = [
        admin_pb2.Order(
            kind="drain", target="south", by="ops/anna", reason="INC-42", expires_at=ago(-900)
        ),
        admin_pb2.Order(kind="freeze", by="ops/ben", reason=long, expires_at=ago(-90_000)),
        admin_pb2.Order(kind="gate", target="reconciliation", by="job", reason="82 payments"),
    ]
    for size in (None, PHONE):
        scene = Scene(drained=frozenset({"south"}), status={"orders": orders})
        with shown(scene) as url, console(browser, url, size=size) as (page, complaints):
            facts = page.locator("#facts")
            expect(facts).to_contain_text(
                re.compile(r"drain south ?until \d\d:\d\d:\d\d, ops/anna: INC-42")
            )
            expect(facts).to_contain_text(
                re.compile(r"freeze ?until \d\d.\d\d.? \d\d:\d\d:\d\d, ops/ben")
            )
            expect(facts).to_contain_text(re.compile(r"gate reconciliation ?job: 82 payments"))
            assert page.evaluate(WIDE) <= 0
            assert complaints == []


def test_the_page_ends_with_its_last_line(browser: Browser) -> None:
    """A long list of events scrolls inside its panel: below the last line there is no empty page to
    scroll through."""
    rest = "document.documentElement.scrollHeight - document.querySelector('footer').getBoundingClientRect().bottom - scrollY"
    for size in (None, PHONE):
        with shown(Scene(events=60)) as url, console(browser, url, size=size) as (page, _):
            expect(page.locator(".event")).to_have_count(60)
            assert page.evaluate(rest) < 60
