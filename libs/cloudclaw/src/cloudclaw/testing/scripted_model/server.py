"""The HTTP server: tells protocols apart by path, plays turns, records requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import Counter
from types import ModuleType
from typing import Any

from aiohttp import web

from cloudclaw.clock import Clock, SystemClock
from cloudclaw.testing.scripted_model import anthropic, gemini, openai_chat, openai_responses, play, side_calls
from cloudclaw.testing.scripted_model.actions import NoSuchToolError, resolve
from cloudclaw.testing.scripted_model.conversation import Answer, Call, Request
from cloudclaw.testing.scripted_model.record import Entry, Recorder
from cloudclaw.testing.scripted_model.scenario import Failure, Script, Turn

LABEL = {"x-scripted-model": "cloudclaw test support"}
MODELS = ("scripted", "scripted-small")


class Server:
    """Answers models' requests from a script.

    Args:
        script: what to play.
        recorder: gets every request but those under `/scripted/`.
        workdir: where relative paths of a script's actions are taken from.
    """

    def __init__(self, script: Script, recorder: Recorder, *, workdir: str = "/workspace", clock: Clock | None = None):
        self._script = script
        self._recorder = recorder
        self._workdir = workdir
        self._clock = clock or SystemClock()
        self._failed: Counter[tuple[str, str, int]] = Counter()
        self._released: set[str] = set()
        self._release = asyncio.Condition()

    def app(self) -> web.Application:
        """The application, to be served."""
        app = web.Application(client_max_size=256 << 20)
        app.router.add_get("/scripted/requests", self._requests)
        app.router.add_post("/scripted/reset", self._reset)
        app.router.add_post("/scripted/release", self._release_hold)
        app.router.add_route("*", "/{path:.*}", self._any)
        return app

    async def release(self, name: str) -> None:
        """Let turns with `hold = name` go on, now and later."""
        async with self._release:
            self._released.add(name)
            self._release.notify_all()

    async def reset(self) -> None:
        """Forget requests, error counts and releases."""
        self._failed.clear()
        self._released.clear()
        self._recorder.reset()

    async def _requests(self, request: web.Request) -> web.Response:
        """`GET /scripted/requests[?scenario=NAME][&after=VERSION&wait=SECONDS]`: the entries and the record's version,
        once it is past `after` or time is up."""
        with contextlib.suppress(TimeoutError):
            wait = self._recorder.wait_after(int(request.query.get("after", "-1")))
            await asyncio.wait_for(wait, float(request.query.get("wait", "0")))
        scenario = request.query.get("scenario")
        entries = [entry for entry in self._recorder.entries if scenario in (None, entry["scenario"])]
        return web.json_response({"requests": entries, "version": self._recorder.version}, headers=LABEL)

    async def _reset(self, request: web.Request) -> web.Response:
        await self.reset()
        return web.json_response({}, headers=LABEL)

    async def _release_hold(self, request: web.Request) -> web.Response:
        await self.release(request.query["name"])
        return web.json_response({}, headers=LABEL)

    async def _any(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        try:
            body = json.loads(raw) if raw else None
        except ValueError:
            body = raw.decode(errors="replace")
        entry = self._recorder.begin(
            {
                "time": self._clock.wall(),
                "method": request.method,
                "path": request.path_qs,
                "headers": dict(request.headers),
                "body": body,
                "kind": "",
                "scenario": "",
                "turn": None,
                "problem": "",
            }
        )
        try:
            return await self._answer(request, body if isinstance(body, dict) else {}, len(raw), entry)
        except (ConnectionError, asyncio.CancelledError):
            entry["client_gone"] = True
            raise
        finally:
            self._recorder.end(entry, self._clock.wall())

    async def _answer(self, http: web.Request, body: dict[str, Any], size: int, entry: Entry) -> web.StreamResponse:
        path = http.path.rstrip("/")
        headers = {name.lower(): value for name, value in http.headers.items()}
        if path.endswith(("/count_tokens", ":countTokens")):
            entry["kind"] = "count_tokens"
            return await self._json(http, {"input_tokens": size // 4, "totalTokens": size // 4}, entry)
        if http.method == "POST" and path.endswith("/messages"):
            return await self._model(http, anthropic, anthropic.read(body, headers, size), entry)
        if http.method == "POST" and path.endswith("/chat/completions"):
            return await self._model(http, openai_chat, openai_chat.read(body, headers, size), entry)
        if http.method == "POST" and path.endswith("/responses"):
            return await self._model(http, openai_responses, openai_responses.read(body, headers, size), entry)
        if http.method == "POST" and path.endswith((":generateContent", ":streamGenerateContent")):
            model, _, verb = path.rpartition("/")[2].partition(":")
            headers |= {"x-scripted-model-name": model, "x-scripted-stream": "1" * verb.startswith("stream")}
            return await self._model(http, gemini, gemini.read(body, headers, size), entry)
        if http.method == "GET" and "/models" in path:
            entry["kind"] = "models"
            return await self._json(http, _models(path.rpartition("/models")[2].strip("/")), entry)
        entry["kind"] = "other"
        if http.method == "HEAD" or not path:
            return await self._json(http, {"scripted": LABEL["x-scripted-model"]}, entry)
        return await self._json(http, {"error": {"message": f"scripted model: no such path {path}"}}, entry, 404)

    async def _model(self, http: web.Request, api: ModuleType, request: Request, entry: Entry) -> web.StreamResponse:
        ident = uuid.uuid4().hex[:24]
        side = side_calls.recognise(request)
        if side is not None:
            entry["kind"], text = side
            cue = play.find(self._script, request)
            if entry["kind"] == "summary" and cue is not None:
                # All that is left of the conversation afterwards is this text.
                text += f" [[scenario:{cue.scenario.name}@{cue.index}]]"
            return await self._send(http, api, request, _estimated(text, [], request, Turn()), Turn(), ident, entry)
        entry["kind"] = "turn"
        cue = play.find(self._script, request)
        if cue is None:
            entry["problem"] = "no scenario answers this conversation"
            if request.tools:
                return await self._error(http, api, Failure("invalid_request", message=_loud(entry)), request, entry)
            answer = _estimated(_loud(entry), [], request, Turn())
            return await self._send(http, api, request, answer, Turn(), ident, entry)
        turn = cue.turn
        entry["scenario"], entry["turn"] = cue.scenario.name, cue.index
        await self._pause(turn)
        if turn.error is not None and self._fails(turn.error, request, cue):
            return await self._error(http, api, turn.error, request, entry)
        try:
            found = [resolve(_filled(action, cue), request.tools, self._workdir) for action in turn.tools]
        except NoSuchToolError as error:
            entry["problem"] = str(error)
            return await self._error(http, api, Failure("invalid_request", message=_loud(entry)), request, entry)
        prefix = "toolu" if api is anthropic else "call"
        calls = [
            Call(f"{prefix}_{ident[:16]}{number}", name, arguments) for number, (name, arguments) in enumerate(found)
        ]
        return await self._send(
            http, api, request, _estimated(cue.fill(turn.text), calls, request, turn), turn, ident, entry
        )

    async def _pause(self, turn: Turn) -> None:
        if turn.hold:
            async with self._release:
                await self._release.wait_for(lambda: turn.hold in self._released)
        if turn.delay:
            await self._clock.sleep(turn.delay)
        if turn.hang == "before":
            await asyncio.Event().wait()

    def _fails(self, failure: Failure, request: Request, cue: play.Cue) -> bool:
        if failure.times == 0:
            return True
        said = next((one.text for one in request.messages if one.role == "user"), "")
        key = (request.session or said, cue.scenario.name, cue.index)
        self._failed[key] += 1
        return self._failed[key] <= failure.times

    async def _error(
        self, http: web.Request, api: ModuleType, failure: Failure, request: Request, entry: Entry
    ) -> web.StreamResponse:
        status, body = api.error(failure.kind, failure.message, request.model, uuid.uuid4().hex[:16])
        extra = {} if failure.retry_after is None else {"retry-after": f"{failure.retry_after:g}"}
        return await self._json(http, failure.body or body, entry, failure.status or status, extra)

    async def _send(
        self, http: web.Request, api: ModuleType, request: Request, answer: Answer, turn: Turn, ident: str, entry: Entry
    ) -> web.StreamResponse:
        if request.stream:
            chunks: list[bytes] = api.stream(answer, request, ident)
        else:
            whole = json.dumps(api.whole(answer, request, ident)).encode()
            chunks = [whole[: len(whole) // 2], whole[len(whole) // 2 :]]
        kind = "text/event-stream" if request.stream else "application/json"
        response = web.StreamResponse(headers=LABEL | {"content-type": kind, "cache-control": "no-cache"})
        entry["status"] = 200
        await response.prepare(http)
        for number, chunk in enumerate(chunks):
            if number == len(chunks) // 2 and (turn.cut or turn.hang == "during"):
                if turn.hang:
                    await asyncio.Event().wait()
                if http.transport is not None:
                    http.transport.close()
                return response
            if turn.chunk_delay and number:
                await self._clock.sleep(turn.chunk_delay)
            await response.write(chunk)
            entry["bytes_sent"] += len(chunk)
        await response.write_eof()
        return response

    async def _json(
        self,
        http: web.Request,
        body: dict[str, Any],
        entry: Entry,
        status: int = 200,
        extra: dict[str, str] | None = None,
    ) -> web.StreamResponse:
        data = json.dumps(body).encode()
        entry["status"] = status
        response = web.Response(
            body=data, status=status, content_type="application/json", headers=LABEL | (extra or {})
        )
        await response.prepare(http)
        await response.write_eof()
        entry["bytes_sent"] += len(data)
        return response


def _loud(entry: Entry) -> str:
    return f"scripted model: {entry['problem']}"


def _filled(value: Any, cue: play.Cue) -> Any:
    if isinstance(value, str):
        return cue.fill(value)
    if isinstance(value, dict):
        return {key: _filled(part, cue) for key, part in value.items()}
    return [_filled(part, cue) for part in value] if isinstance(value, list) else value


def _estimated(text: str, calls: list[Call], request: Request, turn: Turn) -> Answer:
    said = len(text) + sum(len(json.dumps(call.arguments)) for call in calls)
    usage = turn.usage
    return Answer(
        text=text,
        calls=calls,
        input_tokens=request.size // 4 if usage.input_tokens is None else usage.input_tokens,
        output_tokens=max(1, said // 4) if usage.output_tokens is None else usage.output_tokens,
        cache_read_tokens=usage.cache_read_tokens,
        cache_write_tokens=usage.cache_write_tokens,
        chunk=turn.chunk,
    )


def _models(name: str) -> dict[str, Any]:
    """The list of models, or the model `name`, in a form that Anthropic's and OpenAI's clients both read."""

    def one(ident: str) -> dict[str, Any]:
        known = {"id": ident, "object": "model", "type": "model", "display_name": ident}
        return known | {"created": 1700000000, "created_at": "2023-11-14T00:00:00Z", "owned_by": "scripted"}

    if name:
        return one(name)
    return {"object": "list", "data": [one(name) for name in MODELS], "has_more": False}
