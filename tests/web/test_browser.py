"""A real Chromium over the viewer and the static site. scripts/install_chromium.sh installs Debian's."""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading

import pytest
from playwright.sync_api import expect, sync_playwright

CHROMIUM = os.environ.get("NEUROEXPLAIN_CHROMIUM") or shutil.which("chromium")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium: scripts/install_chromium.sh installs it"),
    pytest.mark.xdist_group("browser"),
]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def live(hostile):
    """The address of `neuroexplain serve` with the subject loaded."""
    words = ["serve", "--db", "x.db", "--port", "0", "--model", "model"]
    command = [sys.executable, "-m", "neuroexplain.cli.main", *words]
    with subprocess.Popen(command, cwd=hostile, stderr=subprocess.PIPE, text=True) as server:
        address = None
        for line in server.stderr:
            if url := re.search(r"http://127\.0\.0\.1:\d+", line):
                address = url[0]
                break
        yield address
        server.send_signal(2)
        assert server.wait(30) == 0


@pytest.fixture(scope="module")
def site(hostile):
    """The static site behind a plain file server."""
    command = [sys.executable, "-m", "neuroexplain.cli.main", "export", "site", "site", "--db", "x.db"]
    subprocess.run(command, cwd=hostile, check=True, capture_output=True)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(hostile / "site"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def page(browser):
    """A page that fails the test on any script error, violated policy or hostile script that ran."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    opened, errors = context.new_page(), []
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    yield opened
    assert opened.evaluate("window.pwned") is None
    assert errors == []
    context.close()


def test_search_open_and_go_on_by_keyboard(page, live):
    page.goto(live)
    assert page.locator("canvas").count() == 2
    page.keyboard.press("/")
    page.keyboard.type("quotes")
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile(r"/search\?q=quotes"))
    link = page.url
    page.get_by_role("link", name="0:1", exact=True).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:2")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    page.keyboard.press("g")
    page.keyboard.type("1:3")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 1:3")
    page.goto(link)  # a link shows what I saw
    expect(page.locator("table.results tbody tr")).to_have_count(1)


def test_hostile_text_is_shown_and_does_not_run(page, live):
    page.goto(live + "/0/1")
    expect(page.locator(".explanations")).to_contain_text("<script>window.pwned=1</script>")
    assert page.locator("main script, main img").count() == 0
    for summary in page.query_selector_all("details:not([open]) > summary"):
        summary.click()
    expect(page.locator("#random .record").first).to_be_visible()
    expect(page.locator("#sampled .record").first).to_be_visible()
    assert page.locator("main script, main img, main svg").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_tooltip_tells_the_value(page, live):
    page.goto(live + "/0/1")
    peak = page.locator(".record .t.peak").first
    peak.hover()
    tooltip = peak.evaluate("e => getComputedStyle(e, '::after').content")
    assert re.match(r'"-?\d', tooltip)
    colour = peak.evaluate("e => getComputedStyle(e).backgroundColor")
    assert colour not in ("rgba(0, 0, 0, 0)", "transparent")


def test_true_over_simulated_is_fetched_on_demand_and_stands_in_the_address(page, live):
    page.goto(live + "/0/1")
    assert page.locator(".t.crop").count() == 0
    page.keyboard.press("s")
    first = page.locator("details.simulated .record").first
    expect(first).to_be_visible()
    assert first.locator(".t.crop").count() == first.locator(".t.crop > i").count() == 32
    assert first.locator(".t").count() == 64
    expect(page).to_have_url(re.compile(r"/0/1\?simulation=\d+$"))
    page.locator("#random > summary").click()
    expect(page.locator("#random .record").first).to_be_visible()
    expect(page).to_have_url(re.compile(r"simulation=\d+&show=random$"))
    page.reload()  # a link shows what I saw
    expect(first).to_be_visible()
    expect(page.locator("#random .record").first).to_be_visible()
    page.keyboard.press("s")
    expect(first).to_be_hidden()
    expect(page).to_have_url(re.compile(r"/0/1\?show=random$"))


def test_everything_is_reached_without_javascript(browser, live):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(live + "/0/1")
    for section in ("details.simulated", "#random"):
        page.locator(f"{section} > summary").first.click()
        page.locator(f"{section} a", has_text="Show them").first.click()
        expect(page.locator(f"{section} .record").first).to_be_visible()
    page.fill("#q", "quotes")
    page.press("#q", "Enter")
    expect(page.locator("table.results tbody tr")).to_have_count(1)
    context.close()


@pytest.mark.parametrize("path", ["/", "/0/1", "/search?q=river", "/compare", "/try", "/docs"])
def test_a_page_can_be_heard_and_walked_through(page, live, path):
    page.goto(live + path)
    assert page.evaluate("document.documentElement.lang") == "en"
    for role in ("banner", "main", "contentinfo", "search"):
        expect(page.get_by_role(role)).to_have_count(1)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    for field in page.locator("input:not([type=hidden]), select, button, canvas").all():
        assert field.evaluate(
            "e => e.ariaLabel || (e.labels && e.labels.length && e.labels[0].textContent) || e.textContent"
        ), field
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('main') !== null")
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"


@pytest.mark.parametrize("path", ["/", "/0/1", "/search?q=river", "/docs"])
def test_a_phone_in_the_dark_needs_no_scrolling_sideways(browser, live, path):
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page = context.new_page()
    page.goto(live + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", back))) < 60
    context.close()


@pytest.mark.parametrize("path", ["", "0/1", "search?q=river", "compare"])
@pytest.mark.parametrize("with_javascript", [True, False])
def test_what_a_score_means_is_a_click_away(browser, live, path, with_javascript):
    context = browser.new_context(java_script_enabled=with_javascript)
    page = context.new_page()
    page.goto(f"{live}/{path}")
    if path == "compare" and not page.locator(".compared").count():
        path = ""
        page.goto(live)
    meaning = page.locator("#score-help")
    expect(meaning).to_be_hidden()
    page.locator("button.help").first.click()
    expect(meaning).to_be_visible()
    for words in ("0.4", "correlation", "Another unit's explanation", "95%"):
        expect(meaning).to_contain_text(words)
    meaning.get_by_role("button", name="Close").click()
    expect(meaning).to_be_hidden()
    context.close()


@pytest.mark.parametrize("path", ["", "search.html?q=river", "neuron.html?at=0:1"])
def test_on_the_static_site_too(page, site, path):
    page.goto(site + path)
    page.locator("button.help").first.click()
    expect(page.locator("#score-help")).to_contain_text("0.4")


def test_the_static_site_has_the_weakest_what_failed_and_two_side_by_side(page, site):
    page.goto(site)
    page.get_by_role("link", name="The weakest").click()
    expect(page).to_have_url(re.compile(r"search\.html\?sort=weakest$"))
    expect(page.locator("table.results td").first).to_be_visible()
    page.goto(site + "failed.html")
    expect(page.get_by_role("heading", level=1)).to_have_text("Failed or undefined")
    page.get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Two side by side")


def test_a_text_of_ones_own(page, live):
    page.goto(live + "/0/1")
    page.fill(".try input[name=text]", "the river ran past")
    page.click(".try button")
    expect(page.get_by_role("heading", name="Activations of 0:1")).to_be_visible()
    page.locator("a.t").nth(2).click()
    expect(page.locator("table.results tbody tr").first).to_be_visible()


def test_the_api_documents_itself_without_the_internet(page, live):
    page.goto(live + "/docs")
    expect(page.get_by_text("/api/neurons/{layer}/{neuron}")).to_be_visible()
    route = page.get_by_role("region", name="/api/neurons/{layer}/{neuron}")
    route.get_by_role("link", name="NeuronAnswer").click()
    expect(page.locator("#NeuronAnswer dt", has_text="promoted_tokens")).to_be_visible()
    route.get_by_text("Try it").click()
    route.get_by_label("layer").fill("0")
    route.get_by_label("neuron").fill("1")
    route.get_by_role("button").click()
    expect(route.locator(".answer")).to_contain_text("GET /api/neurons/0/1: 200")
    expect(route.locator(".answer pre")).to_contain_text("HYPERLINK")
    route = page.get_by_role("region", name="/api/activations")
    route.get_by_text("Try it").click()
    route.get_by_role("button").click()
    expect(route.locator(".answer pre")).to_contain_text('"activations"')


def test_the_static_site_needs_only_a_file_server(page, site):
    page.goto(site)
    assert page.locator("canvas").count() == 2
    page.keyboard.press("/")
    page.keyboard.type("Quotes")
    page.keyboard.press("Enter")
    expect(page.locator("table.results a").first).to_have_text("0:1")
    assert page.locator("table.results tr").count() == 2
    page.locator("table.results a").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    expect(page.locator(".explanations")).to_contain_text("<script>window.pwned=1</script>")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:2")
    page.keyboard.press("r")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Neuron")
    page.goto(site + "neuron.html?at=0:1")
    expect(page.get_by_role("heading", level=1)).to_have_text("Neuron 0:1")
    page.keyboard.press("s")
    first = page.locator("details.simulated .record").first
    expect(first).to_be_visible()
    assert first.locator(".t.crop > i").count() == 32
    expect(page).to_have_url(re.compile(r"at=0:1&simulation=\d+$"))
    page.reload()
    expect(first).to_be_visible()
    page.goto(site + "neuron.html?at=9:9")
    expect(page.get_by_role("heading", level=1)).to_have_text("not found")
    page.goto(site + "search.html?layer=1&sort=neuron")
    expect(page.locator("table.results a").first).to_have_text("1:0")


@pytest.mark.parametrize(
    "query",
    [
        "token=river",
        "token=river&layer=1",
        "q=river",
        "q=river&token=the&sort=neuron",
        "min_score=0",
        "sort=lower",
        "sort=lower&layer=0",
        "sort=weakest",
    ],
)
def test_the_static_site_finds_what_the_live_one_finds(page, live, site, query):
    page.goto(f"{live}/search?{query}")
    live_units = page.locator("table.results tbody tr td:first-child").all_inner_texts()
    page.goto(f"{site}search.html?{query}")
    if not live_units:
        expect(page.get_by_text("No explanation fits.")).to_be_visible()
        return
    rows = page.locator("table.results tr td:first-child")
    expect(rows.first).to_be_visible()
    assert sorted(rows.all_inner_texts()) == sorted(live_units)
    if "sort=weakest" in query:
        scores = page.locator("table.results tr td:nth-child(2)").all_inner_texts()
        values = [float(text) for text in scores if text != "-"]
        assert values == sorted(values)
        assert len(set(values)) > 3
    if "sort=lower" in query:
        page.goto(f"{live}/search?{query}")
        figures = page.locator("table.results tbody tr td:nth-child(4)").all_inner_texts()
        page.goto(f"{site}search.html?{query}")
        expect(rows.first).to_be_visible()
        assert page.locator("table.results tr td:nth-child(4)").all_inner_texts() == figures
        lows = [float(text.split(" ")[0]) if text else -2.0 for text in figures]
        assert lows == sorted(lows, reverse=True)
        assert len(set(lows)) > 3
