"""A model endpoint that plays a script: test support, labelled as such, never a default.

It speaks Anthropic Messages, OpenAI Chat Completions and Responses, and Gemini's generateContent, streamed and not,
so that stock agents run against it without a model, a key or a network. See `scenario` for what a script says, and
`README.md` beside this file.
"""

from cloudclaw.testing.scripted_model.client import ModelClient
from cloudclaw.testing.scripted_model.record import Recorder, read_record
from cloudclaw.testing.scripted_model.running import ScriptedModel
from cloudclaw.testing.scripted_model.scenario import Script, ScriptError, load, parse

__all__ = ["ModelClient", "Recorder", "Script", "ScriptError", "ScriptedModel", "load", "parse", "read_record"]
