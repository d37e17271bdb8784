"""The race as a class sees it, in headless Chromium: `pytest -m browser`, with -s for the figures that were measured.

Needs `pip install -e ".[browser]"` and a Chromium or Chrome on PATH (Debian: apt-get install chromium), or in $CHROMIUM.
"""

import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from minidl.live import PRESETS, SETTINGS
from minidl.live import page as pages

pytestmark = pytest.mark.browser
PROJECT = Path(__file__).parent.parent
FLAGS = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]
# Notes each text that a canvas draws, with its box, until the canvas is cleared.
TEXTS = """
window.texts = {};
const {fillText, clearRect} = CanvasRenderingContext2D.prototype;
CanvasRenderingContext2D.prototype.clearRect = function (...box) {
  window.texts[this.canvas.id] = [];
  return clearRect.apply(this, box);
};
CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
  const wide = this.measureText(text).width, left = {right: x - wide, center: x - wide / 2}[this.textAlign] ?? x;
  const up = {middle: y - 8, top: y}[this.textBaseline];
  const by = this.getTransform().a / devicePixelRatio;
  window.texts[this.canvas.id].push({text, left: by * left, right: by * (left + wide), top: by * up, bottom: by * (up + 16),
                                     size: by * parseInt(this.font)});
  return fillText.call(this, text, x, y);
};
"""
# Each text of the page outside the canvases, with its box and what it needs.
BOXES = """() => [...document.querySelectorAll("h1, h2, strong, b, p, button, select, output, label, .rule")].map(e => {
  const box = e.getBoundingClientRect(), style = getComputedStyle(e), pen = document.createElement("canvas").getContext("2d");
  pen.font = style.font;
  const option = e.selectedOptions && pen.measureText(e.selectedOptions[0].text).width + 30;
  const inner = [...e.childNodes].filter(n => n.nodeType === 3 && n.data.trim()).map(n => {
    const range = document.createRange(); range.selectNodeContents(n); return range.getBoundingClientRect(); });
  const text = inner[0] || box;
  return {text: e.textContent.slice(0, 40), size: parseFloat(style.fontSize), needs: option || e.scrollWidth, has: e.clientWidth,
          high: e.scrollHeight - e.clientHeight, leaf: e.tagName !== "LABEL" || inner.length > 0,
          left: text.left, right: text.right, top: text.top, bottom: text.bottom};
}).filter(e => e.right > e.left && e.text.trim())"""


def until(page, condition, timeout=30_000):
    """Wait until a JavaScript expression is true. Playwright's own wait_for_function uses eval, which the page forbids."""
    end = time.monotonic() + timeout / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"not within {timeout / 1000:g} s: {condition}"
        page.wait_for_timeout(20)


def report(text):
    """A figure that was measured: shown with -s, and kept with a failure."""
    print(f"\nmeasured: {text}", end="")


def needs_a_quiet_machine(load=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0):
    """Before rates and delays are asserted: skip where other programs had taken all cores before these tests began."""
    if load > os.cpu_count():
        pytest.skip(f"measured, but not judged: the load was {load:.0f} on {os.cpu_count()} cores")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason='pip install -e ".[browser]"')
    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, (
        "chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on PATH: install it (Debian: apt-get install chromium), or set CHROMIUM to its file")
    # Chromium's own sandbox does not work for root
    flags = FLAGS + ["--no-sandbox"] * (getattr(os, "geteuid", lambda: 1)() == 0)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=flags)
        yield browser
        browser.close()


class Running:
    """`python -m minidl race` in a process of its own."""

    def __init__(self, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}/"
        environment = os.environ | {"SSH_CONNECTION": "1 2 3 4", "OPENBLAS_NUM_THREADS": "1"} | environment
        self.process = subprocess.Popen([sys.executable, "-m", "minidl", "race", "--port", str(self.port)], cwd=PROJECT,
                                        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while "the race runs" not in (line := self.process.stdout.readline()):
            assert line, self.process.stderr.read()

    def cpu(self):
        """Seconds of processor time so far; Linux only."""
        try:
            fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            pytest.skip("the processor time of a process is read from /proc")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self):
        """Megabytes in use."""
        return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1024

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def running():
    race = Running()
    yield race
    race.end()


@pytest.fixture
def visit(browser):
    """A function that opens an address in a page of a size; other hosts fail the test, and errors on the console but for
    settings that the server refuses, status 400.
    """
    opened, errors, asked = [], [], []

    def open_page(address, size=(1920, 1080), **options):
        page = browser.new_page(viewport={"width": size[0], "height": size[1]}, **options)
        page.on("console", lambda message: errors.append(message.text)
                if message.type in ("error", "warning") and "status of 400" not in message.text else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.add_init_script(TEXTS)
        page.goto(address)
        until(page, "state !== null")
        opened.append(page)
        return page

    yield open_page
    for page in opened:
        page.close()
    assert errors == []
    assert {re.match(r"\w+://[\w.]*|data:", url)[0] for url in asked} <= {"http://127.0.0.1", "file://", "data:"}


def show(page, running, words="", steps=None, timeout=60_000):
    """Start anew with the settings of an address, and go on for some steps."""
    page.goto("about:blank")
    page.goto(f"{running.address}#{'' if 'speed' in words else 'speed=60&'}{words}")
    until(page, "state !== null")
    run = page.evaluate("async () => { await source.act('reset'); await source.act('go'); return state.run; }")
    until(page, f"state.run > {run} || state.nets[0].step < 5")
    if steps:
        until(page, f"Math.max(...state.nets.map(net => net.step)) >= {steps}", timeout=timeout)
        return page.evaluate("state")


def test_no_other_host_no_error_and_the_favicon_is_there(visit, running):
    page = visit(running.address)
    show(page, running, steps=30)
    until(page, "drawn > 10")


@pytest.mark.parametrize("size", [(1280, 720), (1920, 1080)], ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_no_text_is_cut_off_or_small_or_covers_another(visit, running, preset, size, tmp_path):
    page = visit(running.address, size)
    show(page, running, f"preset={preset}", steps=20)
    page.evaluate("source.set({lr: 0.2})")
    until(page, "state.settings.lr === 0.2")
    page.screenshot(path=tmp_path / "race.png")
    boxes, texts = page.evaluate(BOXES), page.evaluate("texts")
    canvases = page.evaluate("Object.fromEntries([...document.querySelectorAll('canvas')].map(c => "
                             "[c.id, [c.clientWidth, c.clientHeight]]))")
    for box in boxes:
        assert box["size"] >= 16, box
        assert box["needs"] <= box["has"] + 1 or box["has"] == 0, box
        assert box["left"] >= 0 and box["right"] <= size[0] and box["top"] >= 0 and box["bottom"] <= size[1], box
    leaves = [box for box in boxes if box["leaf"]]
    groups = [(leaves, size)] + [(texts[name], canvases[name]) for name in canvases]
    for group, (width, height) in groups:
        for box in group:
            assert box["size"] >= 16 and box["left"] >= -1 and box["right"] <= width + 1, box
            assert box["top"] >= -1 and box["bottom"] <= height + 1, box
    assert len(canvases) == 6
    for group, _ in [(leaves, 0)] + [(texts[name], 0) for name in canvases]:
        for i, a in enumerate(group):
            for b in group[:i]:
                apart = a["left"] >= b["right"] - 1 or b["left"] >= a["right"] - 1 \
                    or a["top"] >= b["bottom"] - 3 or b["top"] >= a["bottom"] - 3
                assert apart, (a, b)


def test_sixty_steps_a_second_at_a_part_of_a_core_and_nothing_when_paused(visit, running):
    page = visit(running.address)
    show(page, running, steps=30)
    now = "[state.nets[0].step, drawn, performance.now() / 1000]"
    before, cpu = page.evaluate(now), running.cpu()
    time.sleep(4)
    after, cpu = page.evaluate(now), running.cpu() - cpu
    seconds = after[2] - before[2]
    rate, frames, share = (after[0] - before[0]) / seconds, (after[1] - before[1]) / seconds, cpu / seconds
    page.keyboard.press(" ")
    until(page, "!state.playing")
    still, idle = page.evaluate("state.nets[0].step"), running.cpu()
    time.sleep(4)
    idle = (running.cpu() - idle) / 4
    report(f"{rate:.1f} steps and {frames:.1f} frames a second, {share:.0%} of a core; paused {idle:.1%}")
    assert page.evaluate("state.nets[0].step") == still
    needs_a_quiet_machine()
    assert 57 <= rate <= 63 and frames >= 10 and share < 0.4 and idle < 0.03


def test_each_slider_answers_keyboard_and_mouse(visit, running):
    page, sliders = visit(running.address), [name for name, s in SETTINGS.items() if not isinstance(s.start, str | bool)]
    slowest = {}
    for way in ("keyboard", "mouse"):
        for name in sliders:
            show(page, running, "width=20&depth=3", steps=3)
            times = []
            for i in range(5):
                box = page.locator(f"#{name}").bounding_box()
                old = page.evaluate(f"state.settings.{name}")
                page.evaluate(f"""() => {{ window.took = null;
                    const began = () => {{ const t = performance.now(), tick = () => state.settings.{name} !== {json.dumps(old)}
                        ? window.took = performance.now() - t : requestAnimationFrame(tick); tick(); }};
                    document.getElementById("{name}").addEventListener("input", began, {{once: true}}); }}""")
                if way == "keyboard":
                    page.focus(f"#{name}")
                    page.keyboard.press("ArrowRight" if i % 2 == 0 else "ArrowLeft")
                else:
                    share = 0.3 if page.evaluate(f"document.getElementById('{name}').value / "
                                                 f"document.getElementById('{name}').max") > 0.5 else 0.7
                    page.mouse.click(box["x"] + box["width"] * share, box["y"] + box["height"] / 2)
                until(page, "took !== null", timeout=5000)
                times.append(page.evaluate("took"))
            slowest[way, name] = statistics.median(times)
    report("ms until a moved slider is drawn: " + ", ".join(f"{name} by {way} {t:.0f}" for (way, name), t in slowest.items()))
    needs_a_quiet_machine()
    assert max(slowest.values()) < 300


def test_keys_buttons_lists_and_switches(visit, running):
    page = visit(running.address)
    show(page, running, steps=5)
    page.keyboard.press(" ")
    until(page, "!state.playing")
    step = page.evaluate("state.nets[0].step")
    page.keyboard.press("ArrowRight")
    until(page, f"state.nets[0].step === {step + 1}")
    run = page.evaluate("state.run")
    page.keyboard.press("r")
    until(page, f"state.run === {run + 1} && state.nets[0].step === 0")
    page.click("#play")
    until(page, "state.playing")
    page.select_option("#preset", "12")
    until(page, "state.settings.batch_size === 2 && location.hash === '#preset=12'")
    page.select_option("#activation", "tanh")
    until(page, "state.settings.activation === 'tanh' && location.hash.includes('activation=tanh')")
    for name in ("standardise", "same_time"):
        page.check(f"#{name}")
        until(page, f"state.settings.{name} === true")
    until(page, "state.nets[0].step > 20")
    with_bn, without = page.evaluate("state.nets.map(net => net.step)")
    report(f"in the same time {with_bn} steps with BatchNorm, {without} without")
    assert without > with_bn


def test_settings_come_from_the_address_and_a_wrong_one_is_explained(visit, running):
    page = visit(running.address + "#lr=3&depth=6&activation=relu&standardise=true")
    until(page, "state.settings.depth === 6")
    assert page.evaluate("[state.settings.lr, state.settings.activation, state.settings.standardise, state.settings.width]") == [
        3, "relu", True, 100]
    page.evaluate("location.hash = '#preset=10'")  # a bookmark, in the open page
    until(page, "state.settings.depth === 8 && state.settings.weights === 'xavier' && !state.settings.standardise")
    until(page, "document.getElementById('preset').value === '10'")
    page.close()
    for words, message in (("lr=abc", "lr is a number from 0.001 to 100"), ("colour=red", "no setting 'colour'")):
        page = visit(running.address)
        page.evaluate(f"source.set(settingsOf(new URLSearchParams({words!r})))")
        until(page, "document.getElementById('message').textContent !== ''")
        assert message in page.inner_text("#message")
        page.close()


def test_reload_and_a_second_tab_follow_the_race(visit, running):
    first = visit(running.address)
    show(first, running, "depth=4&width=20", steps=20)
    run = first.evaluate("state.run")
    first.reload()
    until(first, "state !== null")
    second = visit(running.address)
    until(second, "location.hash.includes('depth=4')")
    assert first.evaluate("state.run") == second.evaluate("state.run") == run
    second.evaluate("source.set({lr: 2})")
    until(first, "state.settings.lr === 2 && state.marks.length === 1")
    until(first, "document.getElementById('lr').nextSibling.value === '2'")


def test_twelve_layers_of_sigmoids(visit, running):
    page = visit(running.address)
    state = show(page, running, "depth=12&weights=xavier&scale=1&width=50&lr=0.1", steps=20)
    with_bn, without = (net["gradients"] for net in state["nets"])
    report(f"first gradient / last: {with_bn[0] / with_bn[-1]:.2g} with BatchNorm, {without[0] / without[-1]:.2g} without")
    for net in state["nets"]:
        assert len(net["activations"]) == 12 and len(net["gradients"]) == 13
    assert without[0] < without[-1] / 1000 and 0.01 < with_bn[0] / with_bn[-1] < 100


@pytest.mark.parametrize("words, told", [("activation=relu&weights=he&scale=5&lr=11", "[Dd]ied"),
                                         ("preset=8", r"Died at step \d+: its loss is infinite from dense")])
def test_a_death_is_told_in_words_and_the_other_goes_on(visit, running, words, told):
    page = visit(running.address)
    state = show(page, running, words, steps=60)
    text = page.inner_text(".plain p")
    report(text)
    assert re.search(told, text) and state["nets"][0]["dead"] is None and state["nets"][0]["step"] >= 60


def test_batchnorm_leads_and_its_negative_control_does_not(visit, running):
    page = visit(running.address)
    show(page, running, steps=200)
    page.keyboard.press(" ")
    accuracies = "state.nets.map(net => net.points.find(point => point[0] === 200)[2])"
    with_bn, without = page.evaluate(accuracies)
    control = Running(MINIDL_BN="identity")
    try:
        page = visit(control.address)
        until(page, "state.nets[0].step >= 205", timeout=60_000)
        same = page.evaluate(accuracies)
        page.close()
    finally:
        control.end()
    report(f"accuracy after 200 steps {with_bn:.3f} and {without:.3f}; with MINIDL_BN=identity {same[0]:.3f} and {same[1]:.3f}")
    assert with_bn - without > 0.3 and abs(same[0] - same[1]) < 0.05


def test_a_page_from_elsewhere_that_knows_the_token_can_do_nothing(browser, running, visit):
    page = visit(running.address)
    show(page, running, steps=5)
    page.keyboard.press(" ")
    until(page, "!state.playing")
    token, before = page.evaluate("config.token"), page.evaluate("JSON.stringify(state)")

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(f"<iframe src='{running.address}'></iframe>".encode())

        def log_message(self, *arguments):
            pass

    foreign = HTTPServer(("127.0.0.1", 0), Foreign)
    threading.Thread(target=foreign.serve_forever, daemon=True).start()
    other = browser.new_page()
    other.goto(f"http://localhost:{foreign.server_port}/")
    tried = other.evaluate("""async ([address, token]) => {
        const attempts = [
            [address, {}], [address + "state?version=0", {headers: {"X-Token": token}}],
            [address + "do", {method: "POST", body: '{"action": "reset"}',
                              headers: {"X-Token": token, "Content-Type": "application/json"}}],
            [address + "do", {method: "POST", body: '{"action": "reset"}', mode: "no-cors"}]];
        const read = [];
        for (const [url, options] of attempts)
            read.push(await fetch(url, options).then(answer => answer.text(), () => ""));
        return read; }""", [running.address, token])
    framed = [frame.evaluate("document.body ? document.body.innerText : ''") for frame in other.frames[1:]]
    other.close()
    foreign.shutdown()
    foreign.server_close()
    assert tried == [""] * 4
    assert not any("BatchNorm" in text for text in framed)
    assert page.evaluate("JSON.stringify(state)") == before


def test_ctrl_c_within_a_second_with_a_tab_open(browser):
    race = Running()
    page = browser.new_page()
    try:
        page.goto(race.address)
        until(page, "state !== null && state.nets[0].step > 5")
        page.keyboard.press(" ")
        until(page, "!state.playing")
        began = time.perf_counter()
        race.process.send_signal(signal.SIGINT)
        out, error = race.process.communicate(timeout=20)
        took = time.perf_counter() - began
        until(page, "document.getElementById('message').textContent.startsWith('No answer')")
    finally:
        page.close()
        race.end()
    report(f"Ctrl-C: over after {took:.2f} s")
    assert race.process.returncode == 0 and "the race is over" in out and error == ""
    needs_a_quiet_machine()
    assert took < 1


def test_memory_stays_flat(visit, running):
    """Seconds, not minutes, but at full speed and with many new starts; $RACE_MINUTES makes it longer."""
    page = visit(running.address)
    show(page, running, "speed=1000&width=20", steps=1500, timeout=120_000)
    found, end = [], time.time() + 60 * float(os.environ.get("RACE_MINUTES", "0.3"))
    while time.time() < end or len(found) < 4:
        page.evaluate("source.act('reset')")
        time.sleep(4)
        page.evaluate("window.gc && gc()")
        found.append((page.evaluate("performance.memory.usedJSHeapSize") / 2 ** 20, running.memory()))
    heap, memory = zip(*found)
    report(f"MB in Python {memory[0]:.0f}, then {max(memory):.0f} at most; in the page {heap[0]:.1f}, at most {max(heap):.1f}")
    assert max(memory) < memory[0] + 20 and max(heap) < 60


def test_the_file_opens_from_a_disk_and_its_sliders_select(visit, monkeypatch, tmp_path):
    monkeypatch.setattr(pages, "GRID", {**pages.GRID, "lr": (0.1, 3.0), "depth": (2, 8), "scale": (1.0,), "batch_size": (60,)})
    monkeypatch.setattr(pages, "processes", lambda n: nullcontext())
    pages.write(tmp_path / "race.html")
    page = visit((tmp_path / "race.html").as_uri(), (1280, 720))
    assert page.evaluate("[...document.querySelectorAll('aside label')].filter(e => !e.hidden).length") == 6
    assert "Computed beforehand" in page.inner_text("#about")
    page.evaluate("source.set({speed: 1000})")
    until(page, "state.nets[0].step === 200")
    page.screenshot(path=tmp_path / "file.png")
    page.select_option("#activation", "sigmoid")
    until(page, "state.settings.activation === 'sigmoid' && location.hash.includes('activation=sigmoid')")
    page.focus("#lr")
    page.keyboard.press("ArrowLeft")
    until(page, "state.settings.lr === 0.1 && state.nets[0].step === 200")
    with_bn, without = page.evaluate("state.nets.map(net => net.points.at(-1)[2])")
    report(f"in the file, 8 layers of sigmoids at rate 0.1: {with_bn:.2f} with BatchNorm, {without:.2f} without")
    assert with_bn > 0.6 and without < 0.3
    until(page, "location.hash.includes('lr=0.1')")
    page.reload()
    until(page, "state !== null && state.settings.activation === 'sigmoid' && state.settings.lr === 0.1")
