"""The report in a real browser: it draws, it can be clicked through, and nothing a model wrote is executed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect, sync_playwright

from megatron_opid.report.compare import parse_arm, write_comparison
from megatron_opid.report.html import write_report
from megatron_opid.report.records import read_run
from tests.report.synthetic_run import HOSTILE, write_synthetic_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on PATH: apt-get install chromium")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    run_dir = write_synthetic_run(tmp_path_factory.mktemp("runs") / "opid-seed0", num_steps=40, num_episodes=125)
    write_report(run_dir)
    return run_dir


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[BrowserContext]:
    with sync_playwright() as playwright:
        profile = tmp_path_factory.mktemp("profile")
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, headless=True, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        yield context
        context.close()


@pytest.fixture
def page(browser) -> Iterator[Page]:
    """A page that fails its test on any message of the console and on any request but for the report itself."""
    page = browser.new_page()
    page.set_default_timeout(120_000)  # milliseconds; a loaded machine is slow, not wrong
    troubles: list[str] = []
    page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    yield page
    assert page.evaluate("window.hacked") is None
    assert troubles == []
    assert [url for url in requests if not url.startswith("blob:")] == [page.url]
    page.close()


def _open(page: Page, path: Path) -> None:
    page.goto(path.as_uri())
    page.wait_for_selector("body[data-ready]")


def _backgrounds(page: Page) -> list[str]:
    return (
        page.locator(".tokens")
        .first.locator(".token")
        .evaluate_all("tokens => tokens.map((token) => getComputedStyle(token).backgroundColor)")
    )


def test_curves_are_drawn_in_the_colours_of_the_theme(page, run_dir):
    page.emulate_media(color_scheme="light")
    _open(page, run_dir / "report.html")
    charts = page.locator(".chart[data-panel]").all()
    assert len(charts) > 15
    for chart in charts:
        chart.scroll_into_view_if_needed()
        chart.locator(".scatterlayer .trace").first.wait_for(state="attached")
    line = page.locator(".chart .scatterlayer .js-line").first
    light = line.evaluate("line => getComputedStyle(line).stroke")
    page.emulate_media(color_scheme="dark")
    expect(line).not_to_have_css("stroke", light)


def test_many_names_stand_below_a_plot_that_keeps_its_height(page, run_dir):
    _open(page, run_dir / "report.html")
    figures = page.locator("figure")
    for figure, is_below in ((figures.nth(0), False), (figures.filter(has_text="by task type").first, True)):
        figure.scroll_into_view_if_needed()
        legend, plot = figure.locator(".legend").bounding_box(), figure.locator(".nsewdrag").bounding_box()
        assert (legend["y"] >= plot["y"] + plot["height"]) == is_below
        assert plot["height"] >= 190
        assert figure.locator(".xtitle").text_content() == "training steps"


def test_any_metric_can_be_chosen(page, run_dir):
    _open(page, run_dir / "report.html")
    page.locator("#every-metric summary").click()
    page.select_option("#metric-name", "actor/clip_fraction")
    page.wait_for_selector("#metric-chart .scatterlayer .js-line")
    assert page.locator("#metric-chart .ytitle").text_content() == "actor/clip_fraction"


def test_a_step_shows_its_tokens_coloured_by_skill_advantage(page, run_dir):
    _open(page, run_dir / "report.html")
    page.select_option("#filter-step", "19")
    page.locator("#episode-list .row").nth(2).click()
    page.locator("#episode h3", has_text=HOSTILE[2][:12]).wait_for()
    page.get_by_role("group", name="Agent steps").get_by_role("button", name="2", exact=True).click()

    saved = read_run(run_dir).saved_steps[1]
    (score,) = saved.scores[("19-2", 2)]
    assert page.locator("#episode h4", has_text="Skill of this step").count() == 1
    deltas = [teacher - old for old, teacher in zip(score.old_logprobs, score.teacher_logprobs, strict=True)]
    backgrounds = _backgrounds(page)
    assert len(backgrounds) == len(deltas)
    for delta, background in zip(deltas, backgrounds, strict=True):
        red, _, blue, alpha = (float(part) for part in background.partition("(")[2].strip(")").split(","))
        if abs(delta) > 0.02:
            assert (blue > red) == (delta > 0), (delta, background)
            assert alpha > 0
    strongest, weakest = max(deltas, key=abs), min(deltas, key=abs)
    alphas = [float(b.strip(")").split(",")[3]) if b.startswith("rgba") else 1.0 for b in backgrounds]
    assert alphas[deltas.index(strongest)] > alphas[deltas.index(weakest)]

    page.locator(".token").first.hover()
    tip = page.locator("#token-tip").inner_text()
    assert f"{abs(deltas[0]):.2g}"[:3] in tip and "advantage trained on" in tip


def test_filters_narrow_the_list(page, run_dir):
    _open(page, run_dir / "report.html")
    rows = page.locator("#episode-list .row")
    assert rows.count() == 500
    page.select_option("#filter-step", "9")
    page.select_option("#filter-outcome", "success")
    page.select_option("#filter-category", "heat_then_place")
    expected = [
        t
        for t in read_run(run_dir).saved_steps[0].trajectories
        if t.success and not t.failure and t.category == "heat_then_place"
    ]
    assert rows.count() == len(expected) > 0
    assert page.locator("#episode-count").inner_text() == f"{len(expected)} shown"
    page.select_option("#filter-outcome", "fault")
    assert page.locator("#episode").inner_text() == "No episode matches."


def test_the_keyboard_reaches_everything(page, run_dir):
    _open(page, run_dir / "report.html")
    page.locator("#episode-list .row").first.focus()
    page.keyboard.press("ArrowDown")
    page.locator("#episode dd", has_text="9-1").last.wait_for()
    assert page.locator("#episode-list .row[aria-current=true]").get_attribute("data-position") == "1"
    page.locator(".agent-steps button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator(".agent-steps button[aria-current=true]").inner_text() == "1"
    page.keyboard.press("ArrowLeft")
    page.locator(".tokens").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.locator("#token-tip").is_visible()
    assert page.locator(".token").nth(1).get_attribute("class") == "token current"


def test_an_unscored_step_shows_its_plain_response(page, run_dir):
    _open(page, run_dir / "report.html")
    page.locator(".agent-steps button").nth(1).click()
    assert page.locator(".token").count() == 0
    assert page.locator("#episode h4", has_text="Response").count() == 1


def test_a_comparison_is_drawn(page, tmp_path):
    runs = [write_synthetic_run(tmp_path / f"seed{i}", num_steps=10, num_episodes=1) for i in range(2)]
    out = write_comparison([parse_arm(f"opid={runs[0]},{runs[1]}")], tmp_path / "compare.html")
    _open(page, out)
    for chart in page.locator(".chart").all():
        chart.locator(".scatterlayer .trace").first.wait_for(state="attached")
    assert "opid" in page.locator("table").inner_text()
