"""Decides which turn of which scenario answers a request, from what stands in the request.

Nothing is counted by the server, so a conversation that goes on elsewhere, or a request that is sent twice, gets
the turn that its own history calls for.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from cloudclaw.testing.scripted_model.conversation import Message, Request
from cloudclaw.testing.scripted_model.scenario import Scenario, Script, Turn


@dataclass(frozen=True)
class Cue:
    """What to play: a turn, by its index from 0."""

    scenario: Scenario
    index: int

    @property
    def turn(self) -> Turn:
        """The turn itself."""
        return self.scenario.turn(self.index)

    def fill(self, text: str) -> str:
        """`text` with the turn's number in it."""
        return text.replace("{turn}", str(self.index + 1))


def find(script: Script, request: Request) -> Cue | None:
    """The turn that `request` calls for; None when no scenario answers it.

    The newest user message that asks for a scenario chooses it; without one, the newest message of the model, which
    is a summary then. The turns that were played since, as far as the conversation shows them complete, are counted.
    """
    for role in ("user", "assistant"):
        for at in range(len(request.messages) - 1, -1, -1):
            if request.messages[at].role != role:
                continue
            for scenario in script.scenarios:
                start = scenario.start_in(request.messages[at].text)
                if start is not None:
                    return Cue(scenario, _played(scenario, start, request.messages[at + 1 :]))
    default = script.named(script.default)
    return None if default is None else Cue(default, _played(default, 0, request.messages))


def _played(scenario: Scenario, index: int, messages: list[Message]) -> int:
    """The index of the turn after those that are complete in `messages`, the first of which is at `index`.

    A turn with tool calls is complete when a result follows, one of text alone when all of its text is there: what
    an agent kept of a broken stream, or says in the model's name, does not count.
    """
    between = [one for one in messages if one.role in ("user", "assistant")]  # Claude Code adds system messages
    spoken = [(role, list(group)) for role, group in groupby(between, key=lambda one: one.role)]
    for number, (role, group) in enumerate(spoken):
        if role != "assistant":
            continue
        if any(one.calls for one in group):
            following = spoken[number + 1][1] if number + 1 < len(spoken) else []
            index += any(one.results for one in following)
        else:
            cue = Cue(scenario, index)
            said = _squeeze("".join(one.text for one in group))
            index += bool(cue.turn.text) and not cue.turn.tools and _squeeze(cue.fill(cue.turn.text)) in said
    return index


def _squeeze(text: str) -> str:
    # Agents trim and join the model's words, but keep them.
    return "".join(text.split())
