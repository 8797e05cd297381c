"""Which turn answers a conversation."""

from __future__ import annotations

from cloudclaw.testing.scripted_model import parse
from cloudclaw.testing.scripted_model.conversation import Message, Request
from cloudclaw.testing.scripted_model.play import find

SCRIPT = parse(
    {
        "scenarios": [
            {"name": "one", "turns": [{"text": "I look.", "tools": [{"bash": "ls"}]}, {"text": "Done {turn}."}]},
            {"name": "two", "match": "second thing", "turns": [{"text": "Second."}]},
        ]
    }
)

PROMPT = Message("user", "[[scenario:one]] go")
CALL = Message("assistant", "I look.", calls=1)
RESULT = Message("user", results=1)


def cue(*messages: Message) -> tuple[str, int] | None:
    found = find(SCRIPT, Request("", "", False, "", list(messages), [], 0))
    return None if found is None else (found.scenario.name, found.index)


def test_a_new_conversation_starts_with_the_first_turn() -> None:
    assert cue(PROMPT) == ("one", 0)


def test_a_tool_result_moves_on() -> None:
    assert cue(PROMPT, CALL, RESULT) == ("one", 1)


def test_several_calls_and_results_of_one_answer_are_one_turn() -> None:
    assert cue(PROMPT, CALL, Message("assistant", calls=1), RESULT, RESULT) == ("one", 1)


def test_a_call_without_its_result_is_played_again() -> None:
    assert cue(PROMPT, CALL, Message("user", "go on")) == ("one", 0)


def test_what_is_left_of_a_broken_answer_does_not_count() -> None:
    assert cue(PROMPT, CALL, RESULT, Message("assistant", "Do"), Message("user", "go on")) == ("one", 1)


def test_what_an_agent_says_in_the_models_name_does_not_count() -> None:
    assert cue(PROMPT, CALL, RESULT, Message("assistant", "No response requested."), Message("user", "on")) == (
        "one",
        1,
    )


def test_a_whole_text_counts_however_an_agent_joins_its_words() -> None:
    assert cue(PROMPT, CALL, RESULT, Message("assistant", "Done\n2."), Message("user", "and now?")) == ("one", 2)


def test_system_messages_between_a_call_and_its_result_do_not_matter() -> None:
    assert cue(PROMPT, CALL, Message("system", "by the way"), RESULT) == ("one", 1)


def test_the_newest_message_that_asks_for_a_scenario_wins() -> None:
    assert cue(PROMPT, CALL, RESULT, Message("assistant", "Done 2."), Message("user", "the second thing")) == ("two", 0)
    assert cue(PROMPT, CALL, RESULT, Message("assistant", "Done 2."), PROMPT) == ("one", 0)


def test_a_summary_says_where_to_go_on() -> None:
    assert cue(Message("assistant", "So far. [[scenario:one@1]]"), Message("user", "Continue.")) == ("one", 1)


def test_nothing_answers_a_conversation_that_asks_for_no_scenario() -> None:
    assert cue(Message("user", "hello")) is None
