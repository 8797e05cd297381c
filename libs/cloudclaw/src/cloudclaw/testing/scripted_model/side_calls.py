"""Recognises what agents ask beside the conversation, and answers without moving the scenario on.

Titles, topics, quota probes and warm-ups would otherwise eat turns: they often quote the user's prompt.
"""

from __future__ import annotations

from collections.abc import Callable

from cloudclaw.testing.scripted_model.conversation import Request


def _title(request: Request) -> bool:
    system = request.system.lower()
    return "title" in system and any(verb in system for verb in ("generat", "output only", "creat", "write"))


def _topic(request: Request) -> bool:
    return "isnewtopic" in request.system.lower()


def _quota(request: Request) -> bool:
    return request.max_tokens == 1 or [one.text.strip().lower() for one in request.messages] in (["quota"], ["warmup"])


def _summary(request: Request) -> bool:
    system = request.system.lower()
    last = request.messages[-1].text.lower() if request.messages else ""
    return "summariz" in system or last.startswith(("summarize ", "summarise "))


# What it is, how it is known, what it is answered. Only requests that offer no tools are looked at.
_KINDS: list[tuple[str, Callable[[Request], bool], str]] = [
    ("quota", _quota, "OK"),
    ("topic", _topic, '{"isNewTopic": false, "title": null}'),
    ("title", _title, "Scripted conversation"),
    ("summary", _summary, "A scripted conversation."),
]


def recognise(request: Request) -> tuple[str, str] | None:
    """The kind of a side call and the text to answer it with; None for a request of the conversation itself."""
    if request.tools:
        return None
    return next(((kind, text) for kind, known, text in _KINDS if known(request)), None)
