"""The race in a browser: the main thread trains and publishes, daemon threads answer the page.

What is published is one text that never changes, so no lock is held while a network trains. The
page asks for the text after the one it has and waits at most a second for it; the changes it
requests go into a queue that the main thread empties between two steps.
"""

import json
import os
import queue
import secrets
import sys
import threading
import time
import webbrowser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from .page import html
from .race import checked

PORT = 8107
FRAMES = 15  # pictures in a second
LONGEST = 1000  # bytes of a request's body
HEADERS = {  # no other page may frame this one, or load it as if it were its own
    "Content-Security-Policy": "frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Refused(Exception):
    """A request that is refused. Arguments: the HTTP status, and a sentence that says why."""


class Server(ThreadingHTTPServer):
    """Serves one Race on the loopback interface. Port 0 picks a free one; OSError if taken."""

    daemon_threads = True
    allow_reuse_address = os.name != "nt"  # Windows would let two servers have one port

    def __init__(self, race, port=PORT):
        super().__init__(("127.0.0.1", port), Handler)
        self.race, self.token = race, secrets.token_urlsafe(16)
        self.commands, self.news = queue.SimpleQueue(), threading.Condition()
        self.playing, self.closing, self.version, self.text = True, False, 0, b""
        self.page = html(token=self.token)
        self.publish()

    @property
    def address(self):
        """The address of the page, http://127.0.0.1:8107/ with the port in use."""
        return f"http://127.0.0.1:{self.server_port}/"

    def publish(self):
        """Serve the present state of the race from now on."""
        state = {"version": self.version + 1, "playing": self.playing, **self.race.snapshot()}
        text = json.dumps(state, separators=(",", ":"), allow_nan=False).encode()
        with self.news:
            self.version, self.text = state["version"], text
            self.news.notify_all()

    def after(self, version):
        """The state after the one with this version, waiting at most a second for it."""
        with self.news:
            self.news.wait_for(lambda: self.version != version, timeout=1)
            return self.text

    def handle_error(self, request, address):
        """Report an error, unless the browser has merely hung up."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, address)

    def run(self):
        """Train and publish until `closing`; all work on the networks is done here."""
        threading.Thread(target=self.serve_forever, args=(0.1,), daemon=True).start()
        try:
            owed, now = 0.0, time.perf_counter()
            while not self.closing:
                played = self.playing
                due = now + 1 / FRAMES if played else time.perf_counter() + 0.5
                changed = self.obey(due)
                now, before = time.perf_counter(), now
                if played and self.playing:
                    speed = self.race.settings["speed"]
                    # A race that falls half a second behind runs slower instead of catching up.
                    owed = min(owed + speed * (now - before), speed / 2 + 1)
                    look = True
                    while owed >= 1 and time.perf_counter() < now + 1 / FRAMES:
                        self.race.step(look)
                        owed, changed, look = owed - 1, True, False
                if changed:
                    self.publish()
        finally:
            self.shutdown()
            self.server_close()

    def obey(self, due):
        """Carry out commands until the time that is due; returns whether there were any."""
        done = False
        while True:
            try:  # never without a timeout: Windows would not notice Ctrl-C
                command = self.commands.get(timeout=max(0, due - time.perf_counter()))
            except queue.Empty:
                return done
            command()
            done, due = True, 0  # so that it is drawn at once

    def pause(self):
        """Stop training."""
        self.playing = False

    def go(self):
        """Go on training."""
        self.playing = True

    def step(self):
        """Stop training after one more step."""
        self.playing = False
        self.race.step()


class Handler(BaseHTTPRequestHandler):
    """Answers requests from the server's own page, and no others.

    A request must use this server's own address and come from a page of this server. All but the
    request for the page itself must carry the token that is in the page.
    """

    protocol_version = "HTTP/1.1"
    # Written separately, head and body would wait for each other in the kernel, 40 ms a time.
    wbufsize, disable_nagle_algorithm = -1, True
    timeout = 30

    def do_GET(self):
        """/ is the page, /state?version=3 the state after the third."""
        self.answer(self.get)

    def do_POST(self):
        """/set takes {"lr": 3}, /do takes {"action": "pause"}, go, step or reset."""
        self.answer(self.post)

    def answer(self, method):
        """Send what the method returns, (content type, bytes), or the sentence it refuses with."""
        try:
            self.check_sender()
            status, (kind, body) = 200, method(*self.path.partition("?")[::2])
        except Refused as refused:
            status, kind, body = refused.args[0], "text/plain", f"{refused.args[1]}\n".encode()
            self.close_connection = True  # its body may be unread
        self.send_response(status)
        for name, value in HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def check_sender(self):
        """Refuse another name for this machine (DNS rebinding) and pages of other servers."""
        hosts = [f"{name}:{self.server.server_port}" for name in ("127.0.0.1", "localhost")]
        if self.headers.get_all("Host", []) not in [[host] for host in hosts]:
            raise Refused(403, f"this server answers as {hosts[0]} only")
        origin = self.headers.get_all("Origin", [])
        if origin not in ([], [f"http://{self.headers['Host']}"]):
            raise Refused(403, "requests from other pages are refused")

    def check_token(self):
        """Refuse a request without the token that is in the page."""
        if not secrets.compare_digest(self.headers.get("X-Token", "").encode(),
                                      self.server.token.encode()):
            raise Refused(403, "this page belongs to an earlier race: reload it")

    def get(self, path, query):
        """(content type, bytes) for GET."""
        if path == "/":
            return "text/html", self.server.page
        if path != "/state":
            raise Refused(404, "there are / and /state here, and no files")
        self.check_token()
        version = query.removeprefix("version=")
        if not version.isdecimal() or len(version) > 15:
            raise Refused(400, "ask for /state?version=0")
        return "application/json", self.server.after(int(version))

    def post(self, path, query):
        """(content type, bytes) for POST: checks the body and puts the command into the queue."""
        if path not in ("/set", "/do"):
            raise Refused(404, "there are /set and /do here")
        self.check_token()
        values = self.body()
        if path == "/set":
            try:
                changes = checked(values)
            except ValueError as error:
                raise Refused(400, str(error)) from None
            self.server.commands.put(lambda: self.server.race.set(changes))
        else:
            actions = {"pause": self.server.pause, "go": self.server.go, "step": self.server.step,
                       "reset": self.server.race.reset}
            action = values.get("action") if isinstance(values, dict) and len(values) == 1 else None
            if not isinstance(action, str) or action not in actions:
                raise Refused(400, f"the action is {', '.join(actions)}")
            self.server.commands.put(actions[action])
        return "application/json", b"{}"

    def body(self):
        """The JSON value of the request's body."""
        if self.headers.get_content_type() != "application/json":
            raise Refused(415, "the body must be application/json")
        length = self.headers.get_all("Content-Length", [])
        if len(length) != 1 or not (length[0].isascii() and length[0].isdecimal()) \
                or "Transfer-Encoding" in self.headers:
            raise Refused(411, "the body needs one Content-Length")
        if len(length[0]) > 9 or int(length[0]) > LONGEST:
            raise Refused(413, f"the body has at most {LONGEST} bytes")
        try:
            return json.loads(self.rfile.read(int(length[0])).decode(), parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise Refused(400, "the body is no JSON") from None

    def log_message(self, *arguments):
        """Log nothing, because a line for each request would drown everything else."""


def _no_number(text):
    raise ValueError(f"{text} is no number in JSON")


def serve(race, port=PORT):
    """Serve the race until Ctrl-C; opens a browser where there is a screen, else says what to do.

    Raises ValueError for an invalid port, and OSError, with advice, for one that is taken.
    """
    if not 1024 <= port <= 65535:
        raise ValueError(f"a port is a whole number from 1024 to 65535, got {port}")
    try:
        server = Server(race, port)
    except OSError as error:
        raise OSError(f"port {port} cannot be used ({error.strerror}); another race may be "
                      "running, or take another: "
                      f"python -m minidl race --port {port + 1}") from None
    try:
        print(f"the race runs at {server.address} until Ctrl-C", flush=True)
        remote = "SSH_CONNECTION" in os.environ
        if remote:
            print(f"from your own machine: ssh -L {port}:127.0.0.1:{port} "
                  f"{os.environ.get('USER', 'you')}@this-machine, then open the address there")
        if "JPY_PARENT_PID" in os.environ:
            print("from a notebook: the address works if Jupyter runs on the machine you sit at; "
                  "a remote Jupyter cannot show it")
        sys.stdout.flush()
        if not remote and (os.name == "nt" or sys.platform == "darwin"
                           or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
            threading.Thread(target=webbrowser.open, args=(server.address,), daemon=True).start()
        server.run()
    except KeyboardInterrupt:
        print("the race is over")
