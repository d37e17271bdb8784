"""Published sets: whatever a server, a proxy or a broken copy gives, only the right bytes are ever used or left behind."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from minidl import data
from minidl.course import cli
from minidl.data import published
from minidl.files import idx_bytes

PROJECT = Path(data.__file__).parents[2]
RNG = np.random.default_rng(0)
ARRAYS = tuple(RNG.integers(0, top, shape, np.uint8) for n in (50, 20) for top, shape in ((256, (n, 28, 28)), (10, n)))
MD5 = tuple(hashlib.md5(idx_bytes(array)).hexdigest() for array in ARRAYS)
PACKED = {f"{file}.gz": gzip.compress(idx_bytes(array)) for file, array in zip(published.FILES, ARRAYS)}


class Handler(BaseHTTPRequestHandler):
    """The first part of the path says how to answer, the last which file is wanted."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        how, _, file = self.path.strip("/").partition("/")
        body = PACKED[file.partition("?")[0]]
        self.server.asked.append(self.path)
        try:
            getattr(self, how)(file, body)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client had enough
        self.close_connection = True

    def answer(self, body, status=200, **headers):
        self.send_response(status)
        for key, value in {"Content_Length": len(body), **headers}.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def good(self, file, body):
        self.answer(body)

    def late(self, file, body):
        time.sleep(0.2)
        self.answer(body)

    def unpacked(self, file, body):
        """As a proxy does that unpacks what it hands on."""
        self.answer(gzip.decompress(body))

    def truncated(self, file, body):
        self.answer(body[:len(body) // 2], Content_Length=len(body))

    def truncated_without_length(self, file, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body[:len(body) // 2])

    def altered(self, file, body):
        """One bit of the data is wrong, and the gzip is in order."""
        content = bytearray(gzip.decompress(body))
        content[-1] ^= 1
        self.answer(gzip.compress(bytes(content)))

    def login_page(self, file, body):
        """As a captive portal answers every request."""
        self.answer(b"<html>please log in</html>")

    def failing(self, file, body):
        self.answer(b"", 500)

    def absent(self, file, body):
        self.answer(b"", 404)

    def silent(self, file, body):
        time.sleep(2)

    def slow(self, file, body):
        self.send_response(200)
        self.send_header("Content-Length", len(body))
        self.end_headers()
        for byte in body:
            self.wfile.write(bytes([byte]))
            time.sleep(0.01)

    def endless(self, file, body):
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(bytes(2 ** 16))

    def moved(self, file, body):
        self.answer(b"", 302, Location=f"/good/{file}")

    def moved_for_ever(self, file, body):
        self.answer(b"", 302, Location=f"/moved_for_ever/{file}")

    def moved_to_a_file(self, file, body):
        self.answer(b"", 302, Location="file:///etc/hostname")

    def drips(self, head, drop):
        """Send head, then a drop now and then, for ever."""
        self.wfile.write(head)
        while True:
            self.wfile.write(drop)
            time.sleep(0.1)

    def dripping_status(self, file, body):
        self.drips(b"HTTP/1.1 200 ", b"O")

    def dripping_header(self, file, body):
        self.drips(b"HTTP/1.1 200 OK\r\nX: ", b"x")

    def dripping_headers(self, file, body):
        self.drips(b"HTTP/1.1 200 OK\r\n", b"X: x\r\n")

    def dripping_chunk_length(self, file, body):
        self.drips(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0")

    def dripping_trailer(self, file, body):
        """All the data are there, and then it does not end."""
        length = f"{len(body):x}".encode()
        self.drips(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            + length
            + b"\r\n"
            + body
            + b"\r\n0\r\n",
            b"X: x\r\n",
        )

    def dripping_end(self, file, body):
        """A file without a length that is whole, and goes on."""
        self.drips(b"HTTP/1.1 200 OK\r\n\r\n" + body, b"\0")

    def continuing(self, file, body):
        self.drips(b"", b"HTTP/1.1 100 Continue\r\n\r\n")

    def moved_slowly(self, file, body):
        time.sleep(0.6)
        self.answer(b"", 302, Location=f"/moved_slowly/{file}?{time.monotonic()}")

    def too_long_by_its_header(self, file, body):
        self.answer(body, Content_Length=2 ** 40)

    def length_of_ten_thousand_digits(self, file, body):
        self.answer(body, Content_Length="9" * 10_000)

    def rude(self, file, body):
        """The reason that a server gives is shown to the user."""
        self.wfile.write(
            "HTTP/1.1 500 \x1b]0;owned\x07\x9b2J\u202e".encode("latin-1", "replace")
            + b"!" * 60_000
            + b"\r\n\r\n"
        )

    def bomb(self, file, body):
        """300 times its size, and of a size that no published file has."""
        self.answer(
            gzip.compress(b"\0\0\x08\x01" + (60 * 10**6).to_bytes(4, "big") + bytes(60 * 10**6), 9)
        )

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """A mirror on the loopback, and the set `mnist` replaced by a small one that it knows; gives `mirrors(*how)`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_port}"

    def mirrors(*how):
        small = published.Published(tuple(f"{base}/{h}/" for h in how), MD5, "MIT", 1, ("MNIST/raw",))
        monkeypatch.setitem(published.SETS, "mnist", small)
        return server

    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("MINIDL_OFFLINE")
    monkeypatch.setattr(published, "TIMEOUT", 5)
    monkeypatch.setattr(published, "LARGEST", 10 ** 6)
    mirrors("good")
    yield mirrors
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")


def left_behind():
    return sorted(path.name for path in data.cache().rglob("*") if path.is_file())


def assert_loaded(loaded):
    (x_train, y_train), (x_test, y_test) = loaded
    for x, y, images, labels in ((x_train, y_train, *ARRAYS[:2]), (x_test, y_test, *ARRAYS[2:])):
        assert np.array_equal(np.rint(x * 255).astype(np.uint8).reshape(images.shape), images) and np.array_equal(y, labels)


@pytest.mark.parametrize("how", ["good", "unpacked", "moved", "length_of_ten_thousand_digits"])
def test_what_is_missing_is_downloaded_checked_and_kept(server, how):
    asked = server(how).asked
    assert_loaded(data.load("mnist"))
    assert left_behind() == sorted(PACKED)
    requests = len(asked)
    assert_loaded(data.load("mnist"))
    assert len(asked) == requests, "the second time it comes from the cache"


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_a_terminal_sees_a_bar_for_each_file(server, monkeypatch):
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    data.load("mnist")
    assert all(f"{file}.gz: 100%" in terminal.getvalue() for file in published.FILES)
    assert "downloading" not in terminal.getvalue()


def test_a_terminal_that_says_it_is_0_wide_sees_a_bar_too():
    """As a new pseudo-terminal does, and some editors' terminals."""
    pty = pytest.importorskip("pty", reason="no pseudo-terminals here")
    screen, terminal = pty.openpty()
    code = "from minidl import console\nwith console.bar(total=3) as bar: bar.update(3)"
    subprocess.run([sys.executable, "-c", code], stdin=terminal, stdout=terminal, stderr=terminal, check=True, timeout=60,
                   env={**os.environ, "PYTHONPATH": str(PROJECT)})
    assert b"100%" in os.read(screen, 10_000)
    os.close(screen)
    os.close(terminal)


def test_without_a_stderr_there_is_no_bar_and_no_error(server, monkeypatch):
    """As under pythonw.exe."""
    monkeypatch.setattr(sys, "stderr", None)
    assert_loaded(data.load("mnist"))


BAD = ["truncated", "truncated_without_length", "altered", "login_page", "failing", "absent", "silent", "slow", "endless",
       "moved_for_ever", "moved_to_a_file", "too_long_by_its_header", "rude", "bomb"]
DRIPPING = [
    "dripping_status",
    "dripping_header",
    "dripping_headers",
    "dripping_chunk_length",
    "dripping_trailer",
    "dripping_end",
    "continuing",
    "moved_slowly",
]


@pytest.fixture
def impatient(monkeypatch, how):
    if how in ("silent", "slow"):
        monkeypatch.setattr(published, "TIMEOUT", 0.5)


@pytest.mark.parametrize("how", BAD)
@pytest.mark.usefixtures("impatient")
def test_a_bad_mirror_leaves_nothing_and_the_error_says_what_to_do(server, how):
    mirror = f"{server(how) and published.SETS['mnist'].mirrors[0]}{published.FILES[0]}.gz"
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist")
    assert left_behind() == []
    message = str(caught.value)
    assert f"{mirror}: " in message and "--unpack" in message and str(data.cache() / "mnist") in message
    assert all(f"{file}.gz" in message for file in published.FILES) and ".tmp" not in message


@pytest.mark.parametrize("how", DRIPPING)
def test_a_server_that_drips_holds_nobody_for_ever(server, monkeypatch, how):
    """Wherever it drips: each piece comes in time for the socket, and the whole never ends."""
    server(how, "good")
    monkeypatch.setattr(published, "TIMEOUT", 1)
    monkeypatch.setattr(
        published, "FILES", published.FILES[:1]
    )  # fetch then asks for one file alone
    folder = data.cache() / "mnist"
    worker = threading.Thread(target=published.fetch, args=("mnist", folder), daemon=True)
    worker.start()
    worker.join(30)
    assert not worker.is_alive() and left_behind() == [f"{published.FILES[0]}.gz"]
    assert (folder / left_behind()[0]).read_bytes() == PACKED[left_behind()[0]]


def test_a_login_page_is_called_a_web_page(server):
    server("login_page")
    with pytest.raises(
        FileNotFoundError, match="the answer is a web page, perhaps of a network that wants a login"
    ):
        data.load("mnist")


def test_what_a_server_says_is_cleaned_and_cut(server):
    server("rude")
    with pytest.raises(FileNotFoundError) as caught:
        data.load("mnist")
    message = str(caught.value)
    assert "HTTP Error 500: ?]0;owned??2J" in message and len(message) < 2000
    assert all(c.isprintable() or c == "\n" for c in message)


def largest(call):
    """The most memory in bytes that call() took at a time."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def announcing(n):
    """A gzip file that unpacks to 100 times its size: a bound by its own size believes it."""
    start = b"\0\0\x08\x01" + n.to_bytes(4, "big") + RNG.bytes(n // 120)
    return gzip.compress(start + bytes(n + 8 - len(start)), 6)


@pytest.mark.parametrize("file", [published.FILES[1], published.FILES[2]])
def test_no_more_is_unpacked_than_the_published_file_has(file, tmp_path):
    """A mirror, a pack, and a copy in the cache."""
    bomb, size = announcing(60_000_000), published.SIZES[published.FILES.index(file)]

    def refused():
        with pytest.raises(
            ValueError, match=f"at most {size:,} are believed|at most .* can be right|more than"
        ):
            published._install("mnist", file, tmp_path / "cache", [bomb])
        (tmp_path / f"{file}.gz").write_bytes(bomb)
        with pytest.raises(ValueError, match="believed|can need"):
            published.read(file, tmp_path)
    assert largest(refused) < 4 * len(bomb)
    assert not (tmp_path / "cache").exists()


def test_a_published_file_is_installed_in_little_more_memory_than_it_has(tmp_path, monkeypatch):
    """The largest, 47 MB unpacked, packed a third of that: no copies beside these two."""
    images = np.zeros((60_000, 28, 28), np.uint8)
    images[:25_000] = RNG.integers(0, 256, (25_000, 28, 28), np.uint8)
    content = gzip.compress(idx_bytes(images), 1)
    md5 = hashlib.md5(idx_bytes(images)).hexdigest()
    del images
    monkeypatch.setitem(
        published.SETS, "mnist", published.Published((), (md5, *MD5[1:]), "MIT", 1, ())
    )
    pieces = (content[i:i + 2 ** 16] for i in range(0, len(content), 2 ** 16))
    assert (
        largest(lambda: published._install("mnist", published.FILES[0], tmp_path, pieces))
        < 100_000_000
    )
    assert (tmp_path / f"{published.FILES[0]}.gz").read_bytes() == content


@pytest.mark.parametrize("how", BAD)
@pytest.mark.usefixtures("impatient")
def test_the_second_mirror_helps_when_the_first_is_bad(server, how):
    server(how, "good")
    assert_loaded(data.load("mnist"))
    assert left_behind() == sorted(PACKED)


def test_no_server_at_all_is_reported_in_the_same_way(server, monkeypatch):
    monkeypatch.setitem(published.SETS, "mnist", published.Published(("http://127.0.0.1:9/",), MD5, "MIT", 1, ()))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.load("mnist")


def test_finished_files_survive_a_failure_and_are_not_fetched_again(server):
    data.load("mnist")
    (data.cache() / "mnist" / f"{published.FILES[2]}.gz").unlink()
    asked = server("good").asked
    del asked[:]
    data.load("mnist")
    assert asked == [f"/good/{published.FILES[2]}.gz"]


def test_a_damaged_file_in_the_cache_is_replaced(server):
    data.load("mnist")
    path = data.cache() / "mnist" / f"{published.FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-50])
    assert_loaded(data.load("mnist"))


@pytest.mark.parametrize("stray", [published.FILES[0], "mnist.npz"])
def test_a_damaged_copy_beside_the_downloaded_files_does_no_harm(server, stray):
    """As somebody leaves it who tried to put MNIST there by hand."""
    (data.cache() / "mnist").mkdir(parents=True)
    (data.cache() / "mnist" / stray).write_bytes(b"<html>please log in</html>")
    for _ in range(2):
        assert_loaded(data.load("mnist"))


def test_offline_means_offline_and_names_the_damaged_copy(server, monkeypatch):
    asked = server("good").asked
    data.load("mnist")
    del asked[:]
    path = data.cache() / "mnist" / f"{published.FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:-50])
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="MINIDL_OFFLINE") as caught:
        data.load("mnist")
    assert f"not usable: {path}" in str(caught.value)
    assert asked == []


CHILD = """
import sys
from minidl import data
from minidl.data import published
published.SETS["mnist"] = published.Published((sys.argv[1],), tuple(sys.argv[2:]), "MIT", 1, ())
x = data.load("mnist")[0][0]
print(len(x))
"""


def child(how, server):
    server(how)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    return subprocess.Popen([sys.executable, "-c", CHILD, *published.SETS["mnist"].mirrors, *MD5], env=environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_at_once_both_get_the_data(server):
    both = [child("late", server) for _ in range(2)]
    results = [process.communicate(timeout=60) for process in both]
    assert [out.strip() for out, _ in results] == ["50", "50"], results
    errors = "".join(error for _, error in results)
    assert errors.count("downloading http") >= 4 and "\r" not in errors and "\x1b" not in errors
    assert left_behind() == sorted(PACKED)


def test_where_open_files_cannot_be_replaced_the_other_process_may_be_ahead(server, monkeypatch):
    """Windows refuses os.replace while another process reads the target."""
    def refused(temporary, path):
        Path(path).write_bytes(PACKED[path.name])
        raise PermissionError(13, "Access is denied", str(path))
    monkeypatch.setattr(os, "replace", refused)
    assert_loaded(data.load("mnist"))


def test_ctrl_c_during_a_download_leaves_nothing(server, monkeypatch, capsys):
    def interrupted(name, file, array, source):
        raise KeyboardInterrupt
    monkeypatch.setattr(published, "_check_file", interrupted)
    code, error = run(capsys, "mnist")
    assert code == 130 and error.endswith("interrupted\n") and left_behind() == []


def test_a_killed_download_leaves_nothing_that_would_be_used(server):
    process = child("slow", server)
    process.stderr.readline()  # "downloading ..."
    time.sleep(0.1)
    process.kill()
    process.communicate()
    assert not set(left_behind()) & set(PACKED)
    server("good")
    assert_loaded(data.load("mnist"))


# --- Copies of other packages -------------------------------------------------------------------------

def write_files(folder, arrays=ARRAYS, suffix=""):
    folder.mkdir(parents=True)
    for file, array in zip(published.FILES, arrays):
        (folder / f"{file}{suffix}").write_bytes((gzip.compress if suffix else bytes)(idx_bytes(array)))


def write_keras(folder, arrays=ARRAYS):
    folder.mkdir(parents=True)
    np.savez_compressed(folder / "mnist.npz", **dict(zip(data.search.KEYS, arrays)))


@pytest.mark.parametrize("write, place", [
    (write_keras, "~/datasets"), (write_files, "MNIST/raw"), (write_files, "data/MNIST/raw"),
    (write_files, "~/data/MNIST/raw")])
def test_copies_of_keras_and_torchvision_are_used_and_left_alone(server, write, place):
    asked = server("good").asked
    folder = Path(place).expanduser().absolute()
    write(folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert_loaded(data.load("mnist"))
    assert asked == [] and {path: path.read_bytes() for path in folder.iterdir()} == before


def test_a_copy_that_is_not_the_published_set_is_passed_over(server):
    altered = ARRAYS[0].copy()
    altered[0, 0, 0] ^= 1
    write_keras(Path.home() / "datasets", (altered, *ARRAYS[1:]))
    assert_loaded(data.load("mnist"))
    assert left_behind() == sorted(PACKED)


def test_a_set_of_the_published_size_must_be_the_published_one_wherever_it_is(tmp_path):
    """So that MNIST's files are not taken for Fashion-MNIST's, whose names and sizes are the same."""
    arrays = tuple(np.zeros(shape, np.uint8) for shape in ((60_000, 28, 28), (60_000,), (10_000, 28, 28), (10_000,)))
    write_files(tmp_path / "own", arrays)
    with pytest.raises(ValueError, match="not the published fashion_mnist.*train-images"):
        data.load("fashion_mnist", tmp_path / "own")


def test_the_error_says_whose_file_it_is(monkeypatch):
    monkeypatch.setitem(published.SETS, "mnist", published.Published((), MD5, "MIT", 1, ()))
    with pytest.raises(ValueError, match="that is mnist's"):
        published.check("fashion_mnist", ARRAYS, "here")


# --- The command line ---------------------------------------------------------------------------------

def run(capsys, *words):
    code = cli.main(["data", *map(str, words)])
    out, error = capsys.readouterr()
    return code, error if code else out


def test_the_list_says_what_is_here_where_and_how_to_get_the_rest(server, capsys, tmp_path):
    code, out = run(capsys)
    assert code == 0 and "digits         10,000 training and 2,000 test images" in out
    assert "python -m minidl data mnist" in out and "python -m minidl data fashion_mnist" in out
    assert run(capsys, "mnist") == (0, f"mnist          50 training and 20 test images in {data.cache() / 'mnist'}\n")
    assert str(data.cache() / "mnist") in run(capsys)[1]


def test_the_list_goes_on_where_one_set_is_not_usable(server, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MINIDL_DATA", "nowhere")
    code, out = run(capsys)
    assert code == 0 and out.count("not usable: MINIDL_DATA names nowhere") == 3 and "fetch it" not in out
    monkeypatch.delenv("MINIDL_DATA")
    monkeypatch.setattr(data.search, "PACKAGE", tmp_path)
    code, out = run(capsys)
    assert code == 0 and "digits         not usable: minidl is incomplete" in out and "mnist          not here" in out


def test_a_reader_that_has_read_enough_is_no_error():
    """As in `python -m minidl data | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run([sys.executable, "-m", "minidl", "data"], stdout=writer, stderr=subprocess.PIPE, cwd=PROJECT)
    os.close(writer)
    assert result.stderr == b""


def test_a_download_that_fails_ends_with_code_1_and_the_reason(server, capsys):
    server("failing")
    code, out = run(capsys, "mnist")
    assert code == 1 and "HTTP Error 500" in out


def test_a_pack_installs_on_a_machine_without_a_network(server, capsys, tmp_path, monkeypatch):
    code, out = run(capsys, "--pack", tmp_path / "sets.zip")
    assert code == 1 and "nothing to pack" in out
    run(capsys, "mnist")
    code, out = run(capsys, "--pack", tmp_path / "sets.zip")
    assert code == 0 and "packed mnist" in out
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other machine"))
    monkeypatch.setenv("MINIDL_OFFLINE", "1")
    code, out = run(capsys, "--unpack", tmp_path / "sets.zip")
    assert code == 0 and str(data.cache()) in out
    assert_loaded(data.load("mnist"))


def packed_with(tmp_path, changes):
    path = tmp_path / "sets.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {**{f"mnist/{name}": content for name, content in PACKED.items()}, **changes}.items():
            if content is not None:
                archive.writestr(name, content)
    return path


FIRST = f"mnist/{published.FILES[0]}.gz"


@pytest.mark.parametrize("changes", [{FIRST: PACKED[f"{published.FILES[2]}.gz"]}, {FIRST: b"no gzip"}, {FIRST: bytes(10 ** 7)},
                                     {f"mnist/{published.FILES[3]}.gz": None}, {FIRST: None}])
def test_a_pack_with_wrong_content_is_refused(server, capsys, tmp_path, changes):
    path = packed_with(tmp_path, changes)
    code, out = run(capsys, "--unpack", path)
    assert code == 1 and str(path) in out and data.find("mnist")[0] is None
    assert all((data.cache() / "mnist" / name).read_bytes() == PACKED[name] for name in left_behind())


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_pack_that_lies_about_its_sizes_costs_no_memory(server, tmp_path, method):
    """The directory says 1,000 bytes, and 50 million would come out."""
    path = packed_with(tmp_path, {FIRST: None})
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr(FIRST, bytes(50_000_000))
        archive.getinfo(FIRST).file_size = 1000

    def refused():
        with pytest.raises(ValueError, match=f"sets.zip cannot be unpacked: {FIRST}: "):
            published.unpack(path, data.cache())
    assert largest(refused) < 1_000_000 and left_behind() == []


def test_a_pack_that_is_missing_is_no_damaged_pack(tmp_path):
    with pytest.raises(FileNotFoundError):
        published.unpack(tmp_path / "nowhere.zip", tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not really", bytes(1000)])
def test_what_is_no_pack_is_refused(capsys, tmp_path, content):
    (tmp_path / "sets.zip").write_bytes(content)
    code, out = run(capsys, "--unpack", tmp_path / "sets.zip")
    assert code == 1 and "sets.zip" in out and left_behind() == []


def test_a_pack_that_was_packed_again_and_damaged_is_refused(server, capsys, tmp_path):
    path = packed_with(tmp_path, {FIRST: bytes(10 ** 5)})
    content = bytearray(path.read_bytes())
    start = content.index(FIRST.encode()) + len(FIRST)
    content[start:start + 20] = b"\xff" * 20
    path.write_bytes(content)
    code, out = run(capsys, "--unpack", path)
    assert code == 1 and str(path) in out and left_behind() == []


def test_pack_and_unpack_do_not_go_together(tmp_path):
    with pytest.raises(SystemExit):
        cli.main(["data", "--pack", str(tmp_path / "a.zip"), "--unpack", str(tmp_path / "b.zip")])


def test_a_pack_cannot_write_outside_the_cache(server, capsys, tmp_path):
    path = packed_with(tmp_path, {"../outside": b"x", "/mnist/../../outside": b"x"})
    assert run(capsys, "--unpack", path)[0] == 0
    assert left_behind() == sorted(PACKED) and not list(tmp_path.rglob("outside"))
