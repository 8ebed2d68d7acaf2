"""Writes what the chat templates of published models make of difficult conversations.

    python tools/golden/templates.py FOLDER_OF_JINJA_FILES crates/lehr-tokenizer/tests/golden

The folder is `vendor/llama.cpp/models/templates` of the source distribution of llama-cpp-python 0.3.36 (MIT). Each
template renders each conversation below with jinja2 as transformers sets it up. In place of a text the golden file has
`{"refused": reason}` where the template calls raise_exception, and null where Python itself fails. `templates.json.gz` holds
templates, conversations and texts.
"""

import gzip
import json
import sys
from pathlib import Path

from jinja2.exceptions import TemplateError
from transformers.utils import chat_template_utils as utils

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city, <b>now</b> & later",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city's \"name\""},
                "days": {"type": "integer", "description": "Days ahead", "enum": [1, 2, 3]},
            },
            "required": ["city"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "时间", "parameters": {"type": "object", "properties": {}}}}


def message(role, content, **more):
    return {"role": role, "content": content, **more}


def call(name, arguments, id="abcdefghi"):
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


ASK, ANSWER, AGAIN = message("user", "What is 1 + 1?"), message("assistant", "It is 2."), message("user", "And 2 + 2?")
SYSTEM = message("system", "You are brief.")
PADDED = [message("system", " \tinside \n"), message("user", "  padded \n"), message("assistant", "\n answer \n\n"), message("user", "\n\n")]
ODD = "<|im_end|> </s> [INST] <|eot_id|>{{ x }} {% if %} <b>\"q\" 'a' & ü 你好 🦀 \\n \u00a0 </think> a"
VALUES = {"city": "Köln \"<Rhein>\"", "days": 2, "at": 1.5, "now": True, "no": None, "list": [1, "a", {"b": []}], "empty": {}}
THOUGHT = "<think>\nOne and one.\n</think>\n\nIt is 2."

CONVERSATIONS = [
    ("question", [ASK], {"add_generation_prompt": True}),
    ("system", [SYSTEM, ASK], {"add_generation_prompt": True}),
    ("turns", [SYSTEM, ASK, ANSWER, AGAIN], {"add_generation_prompt": True}),
    ("turns without system", [ASK, ANSWER, AGAIN, message("assistant", "4")], {}),
    ("one answer", [SYSTEM, ASK, ANSWER], {}),
    ("white space", PADDED, {"add_generation_prompt": True}),
    ("empty", [message("system", ""), message("user", "")], {"add_generation_prompt": True}),
    ("empty answer", [ASK, message("assistant", "")], {}),
    ("lookalikes", [message("system", ODD), message("user", ODD), message("assistant", ODD), message("user", ODD)], {"add_generation_prompt": True}),
    ("thought", [ASK, message("assistant", THOUGHT), AGAIN], {"add_generation_prompt": True}),
    ("last thought", [ASK, message("assistant", THOUGHT)], {}),
    ("reasoning", [ASK, message("assistant", "It is 2.", reasoning_content="One and one.")], {}),
    ("no thinking", [SYSTEM, ASK], {"add_generation_prompt": True, "enable_thinking": False}),
    ("thinking", [SYSTEM, ASK], {"add_generation_prompt": True, "enable_thinking": True}),
    ("tools", [SYSTEM, ASK], {"add_generation_prompt": True, "tools": [WEATHER, CLOCK]}),
    (
        "tool result",
        [
            ASK,
            message("assistant", "", tool_calls=[call("get_weather", {"city": "Köln", "days": 2})]),
            message("tool", "{\"sky\": \"clear\"}", name="get_weather", tool_call_id="abcdefghi"),
        ],
        {"add_generation_prompt": True, "tools": [WEATHER]},
    ),
    (
        "two results",
        [
            SYSTEM,
            ASK,
            message("assistant", "I look.", tool_calls=[call("get_weather", VALUES), call("clock", {}, "jklmnopqr")]),
            message("tool", "clear", name="get_weather", tool_call_id="abcdefghi"),
            message("tool", "12:00", name="clock", tool_call_id="jklmnopqr"),
            message("assistant", "Clear at noon."),
            AGAIN,
        ],
        {"add_generation_prompt": True, "tools": [WEATHER, CLOCK]},
    ),
    ("user first", [ANSWER, ASK], {"add_generation_prompt": True}),
]


def strftime_now(format):
    from datetime import datetime

    return datetime(2026, 3, 9, 7, 5, 1).strftime(format)


def rendered(template, messages, settings):
    compiled = utils._compile_jinja_template(template)
    compiled.globals["strftime_now"] = strftime_now
    context = {"bos_token": "<s>", "eos_token": "</s>", "tools": None, "documents": None, "add_generation_prompt": False, **settings}
    try:
        return compiled.render(messages=utils._alias_reasoning_fields(json.loads(json.dumps(messages))), **context)
    except TemplateError as error:
        if type(error) is TemplateError:
            return {"refused": str(error)}
        print(f"    fails: {type(error).__name__}: {error}"[:150])
    except TypeError as error:
        print(f"    fails: {type(error).__name__}: {error}"[:150])
    return None


def texts(folder):
    templates, rows = {}, {}
    for path in sorted(folder.glob("*.jinja")):
        print(path.stem)
        templates[path.stem] = path.read_text(encoding="utf-8")
        rows[path.stem] = [rendered(templates[path.stem], messages, settings) for _, messages, settings in CONVERSATIONS]
    conversations = [{"name": name, "messages": messages, "settings": settings} for name, messages, settings in CONVERSATIONS]
    return {"conversations": conversations, "templates": templates, "texts": rows}


def write_gz(path, value):
    data = json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(data, compresslevel=9, mtime=0))
    print(f"{path}: {path.stat().st_size} bytes")


def main():
    folder, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    write_gz(out / "templates.json.gz", texts(folder))


if __name__ == "__main__":
    main()
