"""The live race: the training is that of `experiments.run`, and its server answers its own page and nobody else."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from minidl import BatchNorm, data, experiments, optim, training
from minidl.batching import stream
from minidl.course.cli import main
from minidl.live import PORT, PRESETS, SETTINGS, Race, page
from minidl.live.race import NAMES, POINTS, Contestant, checked, histogram, network
from minidl.live.server import HEADERS, LONGEST, Server

PROJECT = Path(__file__).parent.parent
SMALL = {"width": 20, "depth": 2}


@pytest.fixture(scope="module")
def digits():
    """A part of the digits, small enough for each test to train on."""
    (x, y), (x_test, y_test) = data.load("digits")
    return (x[:600], y[:600]), (x_test[:200], y_test[:200])


# --- The training ---------------------------------------------------------------------------------

@pytest.mark.parametrize("settings", [{}, {"weights": "he", "scale": 2.0, "activation": "relu", "batch_size": 250},
                                      {"standardise": True, "seed": 3, "momentum": 0.01}], ids=["start", "relu", "standardised"])
def test_the_losses_are_those_of_experiments_run_watched_or_not(digits, settings):
    race = Race(digits, SMALL | settings)
    found = [race.step(look=i % 3 == 0) for i in range(25)]  # also beyond the first epoch
    (x, y), (x_test, y_test) = digits
    if settings.get("standardise"):
        scaling = data.standardization(x)
        x, x_test = scaling(x), scaling(x_test)
    for i, net in enumerate(race.nets):
        run = experiments.run(network(race.settings, batch_norm=i == 0), ((x, y), (x_test, y_test)),
                              optimizer=optim.SGD(lr=race.settings["lr"]), steps=25,
                              batch_size=race.settings["batch_size"], eval_steps=[0, 25])
        assert [losses[i][0] for losses in found] == run.losses.tolist()
        # running averages (the column after BatchNorm's own accuracy) are what evaluation mode uses
        assert [net.points[0][3], net.points[-1][3]] == run.accuracy.tolist()


def test_a_live_setting_changes_the_next_step_and_leaves_a_mark(digits):
    race = Race(digits, SMALL)
    model = network(race.settings, batch_norm=True).build(784).train()
    optimizer = optim.SGD(model.parameters(), lr=race.settings["lr"])
    batches = stream(*digits[0], race.settings["batch_size"], model.shuffle_rng)
    loss = training.LOSSES["cross_entropy"]
    for change in ({}, {"lr": 2}, {"batch_size": 16}):
        race.set(change)
        optimizer.lr = race.settings["lr"]
        if "batch_size" in change:
            batches = stream(*digits[0], 16, model.shuffle_rng)
        for _ in range(4):
            assert race.step()[0] == [training.step(model, loss, optimizer, *next(batches))]
    assert [(mark["name"], mark["old"], mark["new"], mark["step"]) for mark in race.marks] == [
        ("lr", 0.5, 2.0, 4), ("batch_size", 60, 16, 8)]
    race.set({"batch_size": 32})  # the slider went on: still one mark
    race.set({"batch_size": 32, "speed": 5})
    assert [mark["new"] for mark in race.marks] == [2.0, 32]
    assert race.runs == 1 and race.steps == 12
    race.set({"depth": 3})
    assert race.runs == 2 and race.steps == 0 and race.marks == []


def test_the_same_time_gives_the_plain_network_the_steps_that_fit_into_batchnorms_seconds(digits, monkeypatch):
    """By a clock of the test's own, on which BatchNorm's step takes 3 seconds and the other's 2."""
    now, take = [0.0], training.step

    def step(model, *arguments):
        now[0] += 3 if any(isinstance(part, BatchNorm) for part in model.layers) else 2
        return take(model, *arguments)

    monkeypatch.setattr(training, "step", step)
    monkeypatch.setattr("minidl.live.race.perf_counter", lambda: now[0])
    race = Race(digits, SMALL | {"same_time": True})
    for _ in range(30):
        race.step()
    with_bn, without = race.nets
    assert (with_bn.steps, with_bn.seconds, without.steps, without.seconds) == (30, 90, 45, 90)


def test_a_network_that_dies_says_where_and_the_other_goes_on(digits):
    race = Race(digits, {"activation": "relu", "weights": "he", "scale": 5.0, "lr": 11.0})
    for _ in range(30):
        race.step()
    with_bn, without = race.nets
    assert without.dead["step"] == without.steps < 30 and "dense" in without.dead["layer"]
    assert with_bn.dead is None and with_bn.steps == 30
    json.dumps(race.snapshot(), allow_nan=False)


def test_a_long_race_keeps_a_bounded_number_of_points_and_the_mean_of_all_losses(digits):
    race = Race(digits, {"width": 5, "depth": 1, "batch_size": 2})
    losses = [race.step(look=False)[1][0] for _ in range(1100)]
    points = race.nets[1].points
    assert len(points) <= POINTS + 1 and len(race.snapshot()["nets"][1]["points"]) == len(points)
    steps = [point[0] for point in points]
    assert set(np.diff(steps)) == {race.nets[1].interval} == {20}
    for start, (end, *_, loss) in zip(steps, points[1:]):
        assert loss == pytest.approx(np.mean(losses[start:end]))


def test_what_the_layers_do_is_that_of_the_step(digits):
    race = Race(digits, SMALL)
    twin = Contestant(race.settings, race.data[False], batch_norm=False, every=5)
    before = [kernel.data.copy() for kernel in twin.kernels]
    race.step()
    twin.step(look=False)
    inside = race.nets[1].inside
    for kernel, old, gradient, ratio in zip(twin.kernels, before, inside["gradients"], inside["ratios"]):
        assert gradient == pytest.approx(np.linalg.norm(kernel.grad), rel=1e-5)
        assert ratio == pytest.approx(np.linalg.norm(kernel.data - old) / np.linalg.norm(old), rel=1e-3)
    assert [len(race.nets[0].inside[key]) for key in ("activations", "gradients", "ratios")] == [2, 3, 3]
    for shares in inside["activations"]:
        assert sum(shares) == pytest.approx(100, abs=1)


@pytest.mark.parametrize("activation, values, places", [
    ("sigmoid", [0, 0.07, 0.5, 1], [0, 1, 8, 15]), ("tanh", [-1, 0, 1], [0, 8, 15]),
    ("relu", [0, 1e-20, 1.0, 1e4, np.inf], [0, 1, 9, 16, 16])])
def test_each_answer_falls_into_its_bin(activation, values, places):
    expected = np.bincount(places, minlength=17 if activation == "relu" else 16) * 100 / len(places)
    assert histogram(np.array(values, np.float32), activation) == expected.round(1).tolist()


@pytest.mark.parametrize("changes", [
    {"lr": 0}, {"lr": 1e9}, {"lr": float("nan")}, {"lr": "3"}, {"lr": True}, {"lr": None}, {"lr": [1]}, {"depth": 2.5},
    {"depth": 10 ** 400}, {"seed": -1}, {"activation": "sine"}, {"activation": 1}, {"standardise": 1}, {"hidden": 3}, [], "lr",
    None], ids=repr)
def test_a_setting_that_cannot_be_is_refused_in_words_and_nothing_moves(digits, changes):
    race = Race(digits, SMALL)
    before = dict(race.settings)
    with pytest.raises(ValueError, match=r"got|known are"):
        race.set(changes)
    assert race.settings == before and race.runs == 1


def test_the_table_of_settings_and_the_presets_fit_together():
    for name, setting in SETTINGS.items():
        assert list(setting.stops) == sorted(setting.stops) or isinstance(setting.start, str), name
        assert setting.check(name, setting.start) == setting.start
    for _, settings in PRESETS.values():
        checked(settings)


@pytest.mark.parametrize("number", [7, 8, 9, 10, 11, 12])
def test_the_lesson_names_the_address_of_its_race(number):
    path, = (PROJECT / "lessons").glob(f"{number:02}_*.py")
    closing = path.read_text(encoding="utf-8").split("lesson.finish()")[1]
    keys = re.findall(rf"http://127\.0\.0\.1:{PORT}/#preset=(\w+)\)", closing)
    assert keys and all(PRESETS[key][0].startswith(f"{number}.") for key in keys)


# --- The server -----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def server(digits):
    server = Server(Race(digits, SMALL | {"speed": 1}), 0)
    server.pause()
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.closing = True
    thread.join(10)
    assert not thread.is_alive()


def ask(server, method, path, body=None, *, token=True, **headers):
    """(status, headers, body) of one request; a header that is None is left out."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    given = {"Host": f"127.0.0.1:{server.server_port}"} | ({"X-Token": server.token} if token else {})
    given |= {"Content-Type": "application/json", "Content-Length": str(len(body))} if body is not None else {}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection.putrequest(method, path, skip_host=True)
    for name, value in given.items():
        if value is not None:
            connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    result = answer.status, answer.headers, answer.read()
    connection.close()
    return result


def state_of(server, version=0):
    status, _, body = ask(server, "GET", f"/state?version={version}")
    assert status == 200
    return json.loads(body)


def test_the_page_has_all_it_needs_and_may_not_be_framed(server):
    status, headers, body = ask(server, "GET", "/", token=False)
    assert status == 200 and headers["Content-Type"].startswith("text/html")
    assert {name: headers[name] for name in HEADERS} == HEADERS
    text = body.decode()
    assert server.token in text and "NONCE" not in text
    assert not re.search(r"(?:src|href|url\()\s*=?\s*[\"']?(?:https?:)?//", text)


def test_a_change_arrives_in_the_state_and_who_waits_is_answered(server):
    version = state_of(server)["version"]
    assert ask(server, "POST", "/set", b'{"lr": 3}')[0] == 200
    state = state_of(server, version)
    assert state["version"] > version and state["settings"]["lr"] == 3 and not state["playing"]
    steps = [net["step"] for net in state["nets"]]
    assert ask(server, "POST", "/do", b'{"action": "step"}')[0] == 200
    state = state_of(server, state["version"])
    assert [net["step"] for net in state["nets"]] == [step + 1 for step in steps]
    assert [net["name"] for net in state["nets"]] == list(NAMES)
    assert state_of(server, state["version"])["version"] == state["version"]  # after a second without news


ELSEWHERE = [
    dict(Host="evil.example"), dict(Host="evil.example:80"), dict(Host=None), dict(Host="127.0.0.1"), dict(Origin="null"),
    dict(Origin="http://evil.example"), dict(Origin="http://127.0.0.1:1"), dict(X_Token=None), dict(X_Token="guess"),
    dict(X_Token="\xe9")]


@pytest.mark.parametrize("headers", ELSEWHERE, ids=str)
@pytest.mark.parametrize("method, path, body", [("GET", "/state?version=0", None), ("POST", "/set", b'{"depth": 5}'),
                                                ("POST", "/do", b'{"action": "reset"}')])
def test_who_comes_from_elsewhere_learns_and_moves_nothing(server, method, path, body, headers):
    before = server.version
    status, _, answer = ask(server, method, path, body, **headers)
    assert 400 <= status < 500 and 10 < len(answer) < 200 and b"settings" not in answer
    assert server.version == before and server.commands.empty()


@pytest.mark.parametrize("path, body, headers", [
    ("/set", b'{"depth": 5}', dict(Content_Type="text/plain")), ("/set", b'{"depth": 5}', dict(Content_Type=None)),
    ("/set", b'{"depth": 5}', dict(Content_Length="-1")), ("/set", b'{"depth": 5}', dict(Content_Length="9" * 30)),
    ("/set", b'{"depth": 5}', dict(Content_Length=None)), ("/set", b'{"depth": 5}', dict(Content_Length="\xb2")),
    ("/set", b'{"depth": 5}', dict(Transfer_Encoding="chunked")),
    ("/set", b" " * (LONGEST + 1), {}), ("/set", b"[" * LONGEST, {}), ("/set", b"", {}), ("/set", b"\xff", {}),
    ("/set", b"{", {}), ("/set", b"[]", {}), ("/set", b"3", {}), ("/set", b'{"lr": NaN}', {}), ("/set", b'{"lr": 1e999}', {}),
    ("/set", b'{"lr": -Infinity}', {}), ("/set", b'{"depth": ' + b"9" * 900 + b"}", {}), ("/set", b'{"depth": {}}', {}),
    ("/set", b'{"__class__": 1}', {}), ("/set", b'{"lr": 1, "token": 2}', {}), ("/do", b'{"action": "run"}', {}),
    ("/do", b'{"action": ["go"]}', {}), ("/do", b"{}", {}), ("/do", b"[]", {}), ("/do", b'{"action": "go", "lr": 1}', {}),
    ("/", b"{}", {}), ("/state", b"{}", {}), ("/../set", b"{}", {}), ("/set/", b"{}", {})], ids=lambda v: str(v)[:40])
def test_a_bad_body_is_refused_with_a_sentence_and_nothing_moves(server, path, body, headers):
    before = server.version
    status, _, answer = ask(server, "POST", path, body, **headers)
    assert 400 <= status < 500 and 10 < len(answer) < 300
    assert server.version == before and server.commands.empty()


@pytest.mark.parametrize("path", ["/race.html", "/../setup.cfg", "//etc/passwd", "/%2e%2e/setup.cfg", "/state/", "//[", "/set",
                                  "/state", "/state?version=-1", "/state?version=x", "/state?version=" + "9" * 40])
def test_there_are_no_files_and_no_other_questions(server, path):
    status, _, answer = ask(server, "GET", path)
    assert 400 <= status < 500 and 10 < len(answer) < 200


def test_it_listens_on_this_machine_only(server):
    assert server.socket.getsockname()[0] == "127.0.0.1"


def test_a_port_that_cannot_be_had_is_a_sentence(capsys):
    for port in ("80000", "80", "-1"):
        assert main(["race", "--port", port]) == 1
        assert "1024 to 65535" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert main(["race", "--port", str(taken.getsockname()[1])]) == 1
    error = capsys.readouterr().err
    assert "cannot be used" in error and "--port" in error and "Traceback" not in error


@pytest.mark.skipif(os.name == "nt", reason="Windows sends Ctrl-C to a whole console")
def test_ctrl_c_ends_it_well_while_a_page_waits():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # over SSH no browser is opened
    process = subprocess.Popen([sys.executable, "-m", "minidl", "race", "--port", str(port)], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, cwd=PROJECT, env=os.environ | {"SSH_CONNECTION": "1 2 3 4"})
    try:
        assert f":{port}/" in process.stdout.readline() and f"ssh -L {port}:" in process.stdout.readline()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/")
        token = re.search(rb'"token":"([^"]+)"', connection.getresponse().read())[1].decode()
        connection.request("GET", "/state?version=1", headers={"X-Token": token})
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=30)
    finally:
        process.kill()
    connection.close()
    assert process.returncode == 0 and out == "the race is over\n" and error == ""


# --- The page as a file ---------------------------------------------------------------------------

def test_the_file_has_all_its_runs_in_under_200_kilobytes(digits):
    size = len(page.html(token="x")) + 2_000
    for depth, activation in product(page.GRID["depth"], page.GRID["activation"]):
        race = Race(digits, page.FIXED | {"depth": depth, "activation": activation})
        text = "".join(page.encoded(net, [net.inside] * len(page.MOMENTS), race.settings) for net in race.nets)
        others = np.prod([len(values) for name, values in page.GRID.items() if name not in ("depth", "activation")])
        size += others * (len(text) + 3)
    assert np.prod([len(values) for values in page.GRID.values()]) >= 300 and size < 200_000


def test_a_file_holds_what_the_race_found(monkeypatch, tmp_path):
    grid = {name: values[-1:] for name, values in page.GRID.items()}
    monkeypatch.setattr(page, "GRID", grid)
    monkeypatch.setattr(page, "processes", lambda n: nullcontext())  # in this process
    monkeypatch.setattr(page, "STEPS", (0, 10))
    monkeypatch.setattr(page, "MOMENTS", (1, 10))
    page.write(tmp_path / "race.html")
    text = (tmp_path / "race.html").read_text(encoding="utf-8")
    config = json.loads(re.search(r'id="config">(.*)</script>', text)[1])
    assert len(config["runs"]) == 1 and config["grid"] == {name: list(values) for name, values in grid.items()}
    race = Race(data.load("digits"), page.FIXED | {name: values[0] for name, values in grid.items()}, every=10)
    for _ in range(10):
        race.step()
    digits, run = config["digits"], config["runs"][0]
    died, accuracy = (digits.index(run[i]) * len(digits) + digits.index(run[i + 1]) for i in (0, 6))
    assert died == len(digits) ** 2 - 1 and race.nets[0].dead is None
    assert accuracy / (len(digits) ** 2 - 2) == pytest.approx(race.nets[0].points[-1][2], abs=1e-3)


def test_a_file_that_cannot_be_written_is_found_before_the_training(tmp_path, capsys):
    assert main(["race", "--page", str(tmp_path / "missing" / "race.html")]) == 1
    assert "missing" in capsys.readouterr().err
    assert main(["race", "--page", ""]) == 1


def test_numbers_are_two_characters_in_order_and_none_is_its_own():
    values = [page.number("loss", 10.0 ** e, log=True) for e in range(-3, 7)]
    places = [page.DIGITS.index(a) * len(page.DIGITS) + page.DIGITS.index(b) for a, b in values]
    assert places == sorted(places) and places[-1] == len(page.DIGITS) ** 2 - 2
    assert page.number("loss", 0.0, log=True) == page.number("loss", 1e-9, log=True) == page.DIGITS[0] * 2
    assert page.number("loss", None) == page.number("loss", float("nan")) == page.DIGITS[-1] * 2
