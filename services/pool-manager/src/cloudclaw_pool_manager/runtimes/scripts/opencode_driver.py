"""Runs `opencode serve` for one attempt and speaks for it: messages are lines of JSON on standard input, what happens
is lines of JSON on standard output, in the shape of `opencode run --format json`. Passed to an interpreter of the image
(Python 3.9 or newer, nothing else) on the command line.

    argv[1]       {"argv": [...], "warm": bool, "retries": n}
    first line    {"directory", "session", "text", "model", "env"}: the order
    other lines   {"text"}: further messages; at the end of input it ends

With `warm` the server is started before the order, its files in /tmp because there is no home yet. It is given up when
the home that arrives has files of OpenCode's: the server would not read them any more.
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from typing import Any, Dict, Optional, Set, Tuple

SPARE = "/tmp/.claw-opencode"
PARKING = SPARE + "/parking"
ENV_FILE = "/tmp/.claw-env"
HOME = os.environ.get("HOME", "/home/agent")
DATA = os.path.join(HOME, ".local/share/opencode")
CONFIG = os.path.join(HOME, ".config/opencode")
LISTENING = b"listening on "
OUTPUTS = ("storage", "tool-output", "snapshot")
MAX_OVERFLOWS = 2
"""How often in a row a conversation may be summed up because it does not fit."""
LINES = {"step-start": "step_start", "step-finish": "step_finish", "text": "text", "tool": "tool_use"}


def say(kind: str, **fields: Any) -> None:
    """One line on standard output."""
    sys.stdout.write(json.dumps({"type": kind, **fields}, separators=(",", ":")) + "\n")
    sys.stdout.flush()


def failed(name: str, message: str) -> None:
    """An error in the agent's own shape."""
    say("error", error={"name": name, "data": {"message": message}})


def warn(message: str) -> None:
    """One line on standard error."""
    sys.stderr.write(message + "\n")
    sys.stderr.flush()


class Server:
    """One `opencode serve`; `url` is empty when it did not come up."""

    def __init__(self, argv: list[str], env: Dict[str, str], cwd: str) -> None:
        self.password = secrets.token_hex(16)
        self.process = subprocess.Popen(
            [*argv, "serve", "--hostname", "127.0.0.1", "--port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, **env, "OPENCODE_SERVER_PASSWORD": self.password},
            cwd=cwd,
        )
        self.url = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if LISTENING in line:
                self.url = line.split(LISTENING)[1].split()[0].decode()
                break
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        assert self.process.stdout is not None
        for _ in self.process.stdout:
            pass

    def open(self, method: str, path: str, directory: str, body: Any = None, timeout: Optional[float] = None) -> Any:
        """The response of one call."""
        basic = base64.b64encode(("opencode:" + self.password).encode()).decode()
        headers = {"authorization": "Basic " + basic, "content-type": "application/json"}
        headers["x-opencode-directory"] = directory
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)  # noqa: S310
        return urllib.request.urlopen(request, timeout=timeout)  # noqa: S310

    def call(self, method: str, path: str, directory: str, body: Any = None) -> Any:
        """What it answers."""
        with self.open(method, path, directory, body, timeout=120) as response:
            data = response.read()
        return json.loads(data) if data else None

    def end(self) -> int:
        """Its exit code, once it is gone."""
        if self.process.poll() is None:
            self.process.kill()
        code = self.process.wait()
        return 128 - code if code < 0 else code


class Attempt:
    """One order, and the messages after it. `spare`: the server waited, and its files are in /tmp."""

    def __init__(self, server: Server, order: Dict[str, Any], retries: int, spare: bool) -> None:
        self.server = server
        self.directory: str = order["directory"]
        self.model = order.get("model")
        self.retries = retries
        self.spare = spare
        self.session: str = order.get("session") or ""
        self.below: Set[str] = set()
        self.roles: Dict[str, str] = {}
        self.shown: Set[Tuple[str, str]] = set()
        self.overflows = 0
        self.good = True
        self.busy = False
        self.closing = False
        self.answered = threading.Event()
        self.connected = threading.Event()

    def run(self, first: Optional[str]) -> int:
        """Until the end of input; the exit code."""
        threading.Thread(target=self._listen, daemon=True).start()
        self.connected.wait(60)
        try:
            return self._converse(first)
        finally:
            self.closing = True

    def _converse(self, first: Optional[str]) -> int:
        resumed = bool(self.session)
        try:
            if resumed:
                self.server.call("GET", "/session/" + self.session, self.directory)
            else:
                self.session = self.server.call("POST", "/session", self.directory, {})["id"]
        except urllib.error.HTTPError as error:
            failed("SessionNotFound", f"there is no session {self.session!r}: {said(error)}")
            return 1
        self.keep()
        say("session", sessionID=self.session, resumed=resumed)
        if first:
            self.ask(first)
        for line in sys.stdin:
            if line.strip():
                self.ask(json.loads(line)["text"])
        self.keep()
        return 0 if self.good else 1

    def ask(self, text: str) -> None:
        """Give it one message, and wait for its answer."""
        self.answered.clear()
        self.good, self.busy, self.overflows = True, False, 0
        body: Dict[str, Any] = {"parts": [{"type": "text", "text": text}]}
        if self.model:
            body["model"] = self.model
        try:
            self.server.call("POST", f"/session/{self.session}/prompt_async", self.directory, body)
        except urllib.error.HTTPError as error:
            self.good = False
            failed("BadRequest", said(error))
            say("idle", sessionID=self.session)
            return
        self.answered.wait()

    def _listen(self) -> None:
        try:
            with self.server.open("GET", "/event", self.directory) as stream:
                self.connected.set()
                for line in stream:
                    if line.startswith(b"data:"):
                        event = json.loads(line[5:])
                        self._event(event.get("type"), event.get("properties") or {})
        except (OSError, ValueError) as error:
            warn(f"the stream of events broke: {error!r}")
        if not self.closing:  # nobody would notice: the program waits for its input
            failed("ServerEnded", "opencode serve ended in the middle of its work")
            os._exit(self.server.end() or 1)

    def _event(self, kind: str, about: Dict[str, Any]) -> None:
        session = about.get("sessionID")
        if kind == "session.created" and (about.get("info") or {}).get("parentID") and session:
            self.below.add(session)
        mine = session == self.session
        if not mine and session not in self.below:
            return
        if kind == "message.updated":
            self._role(about["info"])
        elif kind == "message.part.updated":
            self._part(about["part"], mine)
        elif kind in ("permission.asked", "question.asked"):
            threading.Thread(target=self._refuse, args=(kind, about), daemon=True).start()
        elif mine:
            self._own(kind, about)

    def _own(self, kind: str, about: Dict[str, Any]) -> None:
        """Of the session itself, not of one that it began."""
        if kind == "session.status":
            self.busy = self.busy or about["status"].get("type") == "busy"
            if about["status"].get("type") == "retry":
                self._retry(about["status"])
        elif kind == "session.compacted":
            say("compacted", sessionID=self.session)
        elif kind == "session.error":
            self._error(about.get("error") or {})
        elif kind == "session.idle" and self.busy and not self.answered.is_set():  # it says so twice
            self.keep()
            say("idle", sessionID=self.session)
            self.answered.set()

    def _role(self, info: Dict[str, Any]) -> None:
        aside = info.get("summary") is True or info.get("mode") == "compaction"
        self.roles[info["id"]] = "aside" if aside and info.get("role") == "assistant" else info.get("role", "")

    def _part(self, part: Dict[str, Any], mine: bool) -> None:
        role, kind = self.roles.get(part.get("messageID", "")), part.get("type", "")
        if role == "aside" and kind == "step-finish":
            say("aside", sessionID=part.get("sessionID"), part=part)
        name = LINES.get(kind)
        if role != "assistant" or name is None or (kind == "text" and not (part.get("time") or {}).get("end")):
            return
        if kind == "tool":
            status = part["state"].get("status")
            if status not in ("running", "completed", "error"):
                return
            name = "tool_start" if status == "running" else name
            part["state"].pop("metadata", None)  # says the output once more
        if (part["id"], name) in self.shown:
            return
        self.shown.add((part["id"], name))
        if kind == "step-finish" and mine:
            self.overflows = 0
            self.keep()
        say(name, sessionID=part.get("sessionID"), part=part)

    def _error(self, error: Dict[str, Any]) -> None:
        if error.get("name") == "MessageAbortedError":
            return
        self.good = False
        say("error", sessionID=self.session, error=error)
        if error.get("name") == "ContextOverflowError":
            self.overflows += 1
            if self.overflows > MAX_OVERFLOWS:  # it would sum up and ask again for ever
                self._stop()

    def _retry(self, status: Dict[str, Any]) -> None:
        attempt, message = status.get("attempt", 0), status.get("message", "")
        say("retry", sessionID=self.session, attempt=attempt, message=message)
        if attempt > self.retries:
            self.good = False
            failed("Retries", message)
            self._stop()

    def _stop(self) -> None:
        """Give the message up; the events go on to be read meanwhile."""
        threading.Thread(target=self._post, args=(f"/session/{self.session}/abort", {}), daemon=True).start()

    def _refuse(self, kind: str, about: Dict[str, Any]) -> None:
        """Nobody is there to be asked."""
        if kind == "permission.asked":
            say("denied", sessionID=about.get("sessionID"), tool=str(about.get("permission", "")))
            self._post(f"/permission/{about['id']}/reply", {"reply": "reject"})
        else:
            self._post(f"/question/{about['id']}/reject", {})

    def _post(self, path: str, body: Dict[str, Any]) -> None:
        try:
            self.server.call("POST", path, self.directory, body)
        except OSError as error:
            warn(f"{path} failed: {error!r}")

    def keep(self) -> None:
        """The conversation of a server that waited is in /tmp: bring it where a snapshot finds it."""
        if not self.spare:
            return
        os.makedirs(DATA, exist_ok=True)
        new = os.path.join(DATA, ".opencode.db.new")
        source, target = sqlite3.connect(SPARE + "/data/opencode/opencode.db"), sqlite3.connect(new)
        try:
            source.backup(target)
        finally:
            source.close()
            target.close()
        os.replace(new, os.path.join(DATA, "opencode.db"))


def said(error: urllib.error.HTTPError) -> str:
    """The words of a refused call."""
    return f"{error.code} {error.read(2000).decode(errors='replace')}"


def spare_env() -> Dict[str, str]:
    """Where a server keeps its files that has no home yet."""
    names = {"XDG_DATA_HOME": "data", "XDG_STATE_HOME": "state", "XDG_CONFIG_HOME": "config", "XDG_CACHE_HOME": "cache"}
    for name in names.values():
        os.makedirs(os.path.join(SPARE, name), exist_ok=True)
    os.makedirs(PARKING, exist_ok=True)
    return {**{key: os.path.join(SPARE, name) for key, name in names.items()}, "BASH_ENV": ENV_FILE}


def prime(server: Server) -> None:
    """Let it load what it loads with the first folder and session, here where nobody waits."""
    for path in ("/config", "/agent", "/config/providers", "/command", "/skill", "/experimental/tool/ids"):
        try:
            server.call("GET", path, PARKING)
        except OSError as error:
            warn(f"{path}: {error!r}")
    try:
        session = server.call("POST", "/session", PARKING, {})["id"]
        server.call("DELETE", f"/session/{session}", PARKING)
    except OSError as error:
        warn(f"no session in the parking folder: {error!r}")


def arrive(env: Dict[str, str]) -> None:
    """The home is there: variables for the tools, and large outputs where a snapshot finds them."""
    with open(ENV_FILE, "w") as file:
        for name, value in env.items():
            quoted = value.replace("'", "'\\''")
            file.write(f"export {name}='{quoted}'\n")
    for name in OUTPUTS:
        there, here = os.path.join(DATA, name), os.path.join(SPARE, "data/opencode", name)
        os.makedirs(there, exist_ok=True)
        shutil.rmtree(here, ignore_errors=True)
        os.symlink(there, here)


def main() -> int:
    how = json.loads(sys.argv[1])
    signal.signal(signal.SIGTERM, lambda *_: os._exit(143))
    server: Optional[Server] = None
    if how["warm"]:
        server = Server(how["argv"], spare_env(), "/tmp")
        if not server.url:
            return server.end() or 1
        prime(server)
        say("ready")
    line = sys.stdin.readline()
    if not line:
        return 0
    order = json.loads(line)
    env: Dict[str, str] = order.get("env") or {}
    spare = server is not None and not (os.path.exists(DATA) or os.path.exists(CONFIG))
    if spare:
        arrive(env)
    elif server is not None:
        server.end()
        shutil.rmtree(SPARE, ignore_errors=True)
        server = None
    server = server or Server(how["argv"], env, order["directory"])
    if not server.url:
        return server.end() or 1
    try:
        return Attempt(server, order, how["retries"], spare).run(order.get("text"))
    finally:
        server.end()


if __name__ == "__main__":
    sys.exit(main())
