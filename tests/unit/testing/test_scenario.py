"""Scripts: what is accepted, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudclaw.testing.scripted_model import ScriptError, load, parse


def script(**turn: object) -> dict[str, object]:
    return {"scenarios": [{"name": "one", "turns": [turn]}]}


@pytest.mark.parametrize(
    ("tree", "names"),
    [
        ({}, "scenarios"),
        ({"scenarios": [{"name": "a b", "turns": [{"text": "x"}]}]}, "$.scenarios[0].name"),
        ({"scenarios": [{"name": "a", "turns": []}]}, "$.scenarios[0].turns"),
        ({"scenarios": [{"name": "a", "match": "(", "turns": [{"text": "x"}]}]}, "$.scenarios[0].match"),
        ({"scenarios": [], "default": "none"}, "$.default"),
        (script(), "$.scenarios[0].turns[0]"),
        (script(txt="x"), "txt"),
        (script(text=1), "$.scenarios[0].turns[0].text"),
        (script(text="x", chunk=0), "$.scenarios[0].turns[0].chunk"),
        (script(text="x", repeat=-1), "$.scenarios[0].turns[0].repeat"),
        (script(error={"kind": "odd"}), "$.scenarios[0].turns[0].error.kind"),
        (script(tools=[{"bash": "a", "read": {"path": "b"}}]), "$.scenarios[0].turns[0].tools[0]"),
        (script(tools=[{"jump": "a"}]), "$.scenarios[0].turns[0].tools[0]"),
        (script(tools=[{"bash": 1}]), "$.scenarios[0].turns[0].tools[0].bash"),
        (script(tools=[{"write": {"path": "a"}}]), "$.scenarios[0].turns[0].tools[0].write.content"),
        (script(tools=[{"read": {"path": "a", "mode": 1}}]), "unknown field `mode`"),
    ],
)
def test_a_wrong_script_is_refused_by_the_name_of_its_field(tree: object, names: str) -> None:
    with pytest.raises(ScriptError) as refused:
        parse(tree)
    assert names in str(refused.value)


def test_a_name_that_is_there_twice_is_refused() -> None:
    one = {"name": "a", "turns": [{"text": "x"}]}
    with pytest.raises(ScriptError, match=r"twice - at `\$\.scenarios\[1\]\.name`"):
        parse({"scenarios": [one, one]})


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[[scenarios]]\nname = "one"\nturns = [{ text = "hello" }]\n')
    (tmp_path / "a.json").write_text('{"scenarios": [{"name": "one", "turns": [{"text": "hello"}]}]}')
    assert load(tmp_path / "a.toml") == load(tmp_path / "a.json")


def test_a_file_that_is_not_there_or_not_toml_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"none\.toml: No such file"):
        load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("= 1")
    with pytest.raises(ScriptError, match=r"bad\.toml: not TOML"):
        load(tmp_path / "bad.toml")


def test_repeated_turns_are_counted_and_the_last_may_go_on_for_ever() -> None:
    turns = [{"text": "a", "repeat": 2}, {"text": "b"}, {"text": "c", "repeat": 0}]
    scenario = parse({"scenarios": [{"name": "one", "turns": turns}]}).scenarios[0]
    assert [scenario.turn(index).text for index in range(5)] == ["a", "a", "b", "c", "c"]
    with pytest.raises(ScriptError, match="repeat"):
        parse({"scenarios": [{"name": "one", "turns": turns[::-1]}]})
