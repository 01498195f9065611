"""The official client against a server: `cargo xtask openai` starts the servers and runs this.

NV_DEMO is the address of `nv serve` with the demo checkpoint; NV_SCRIPTED that of a server whose model says what stands in
<say>…</say>, for what a small model can't be brought to say. Both have the key "key".
"""

import asyncio
import json
import os
import time
import unittest
import urllib.request
from typing import Annotated, Literal

import openai
import pydantic

DEMO = os.environ["NV_DEMO"]
SCRIPTED = os.environ["NV_SCRIPTED"]

USER = [{"role": "user", "content": "In the beginning"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
KÖLN = {
    "type": "function",
    "function": {
        "name": "weather",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Bonn", "Köln"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = 'I ask.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Bonn"}}\n</tool_call>'


class King(pydantic.BaseModel):
    name: str = pydantic.Field(max_length=20)
    age: int = pydantic.Field(ge=0, le=999)
    house: Literal["Saul", "David"]
    sons: list[Annotated[str, pydantic.Field(max_length=10)]] = pydantic.Field(max_length=3)


def client(address: str, key: str = "key", **options) -> openai.OpenAI:
    return openai.OpenAI(base_url=address + "/v1", api_key=key, max_retries=0, timeout=60, **options)


def said(text: str) -> list:
    return [{"role": "user", "content": f"<say>{text}</say>"}]


def metric(address: str, name: str) -> float:
    with urllib.request.urlopen(address + "/metrics") as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"vllm:{name}{{"):
                return float(line.rsplit(" ", 1)[1])
    raise AssertionError(f"{name} is not in the metrics")


class Demo(unittest.TestCase):
    def setUp(self):
        self.client = client(DEMO)
        self.addCleanup(self.client.close)

    def test_models(self):
        models = self.client.models.list().data
        self.assertEqual([model.id for model in models], ["demo"])
        self.assertEqual(self.client.models.retrieve("demo").id, "demo")

    def test_chat_and_stream_say_the_same(self):
        options = dict(model="demo", messages=USER, max_tokens=24, seed=7, temperature=0.8)
        whole = self.client.chat.completions.create(**options)
        choice = whole.choices[0]
        self.assertEqual(choice.message.role, "assistant")
        self.assertIn(choice.finish_reason, ["length", "stop"])
        self.assertEqual(whole.usage.total_tokens, whole.usage.prompt_tokens + whole.usage.completion_tokens)
        stream = self.client.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        self.assertEqual(text, choice.message.content)
        self.assertEqual(chunks[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertGreater(len(chunks), 10)

    def test_seeds_repeat(self):
        def ask(seed):
            options = dict(model="demo", messages=USER, max_tokens=24, seed=seed, temperature=1.0)
            return self.client.chat.completions.create(**options).choices[0].message.content

        self.assertEqual(ask(1), ask(1))
        self.assertNotEqual(ask(1), ask(2))

    def test_n(self):
        answer = self.client.chat.completions.create(
            model="demo", messages=USER, max_tokens=16, n=3, seed=5, temperature=1.0
        )
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        self.assertEqual(len({choice.message.content for choice in answer.choices}), 3)

    def test_logprobs(self):
        answer = self.client.chat.completions.create(
            model="demo", messages=USER, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
        )
        choice = answer.choices[0]
        tokens = choice.logprobs.content
        self.assertEqual(len(tokens), 5)
        text = b"".join(bytes(token.bytes) for token in tokens).decode()
        self.assertEqual(text, choice.message.content)
        for token in tokens:
            self.assertEqual(len(token.top_logprobs), 3)
            # Greedy: what came is the likeliest.
            self.assertEqual(token.top_logprobs[0].token, token.token)
            self.assertLessEqual(token.logprob, 0)

    def test_completions(self):
        answer = self.client.completions.create(
            model="demo", prompt=["In the beginning", "And God said"], max_tokens=4, temperature=0, echo=True,
            logprobs=2,
        )
        self.assertEqual(len(answer.choices), 2)
        for choice, prompt in zip(answer.choices, ["In the beginning", "And God said"]):
            self.assertTrue(choice.text.startswith(prompt))
            logprobs = choice.logprobs
            self.assertIsNone(logprobs.token_logprobs[0])
            self.assertEqual("".join(logprobs.tokens), choice.text)
            self.assertEqual(len(logprobs.text_offset), len(logprobs.tokens))

    def test_logit_bias(self):
        # The bias outweighs everything.
        answer = self.client.completions.create(
            model="demo", prompt="And", max_tokens=3, temperature=0, logit_bias={"65": 100},
            extra_body={"ignore_eos": True},
        )
        again = self.client.completions.create(
            model="demo", prompt="And", max_tokens=3, temperature=0, extra_body={"allowed_token_ids": [65]}
        )
        self.assertEqual(answer.choices[0].text, again.choices[0].text)

    def test_errors(self):
        def check(error, status, param=None, **options):
            options = {"model": "demo", "messages": USER, "max_tokens": 1} | options
            with self.assertRaises(error) as caught:
                self.client.chat.completions.create(**options)
            self.assertEqual(caught.exception.status_code, status)
            self.assertEqual(caught.exception.param, param)

        check(openai.NotFoundError, 404, "model", model="gpt-4")
        check(openai.BadRequestError, 400, "temperature", temperature=-1)
        check(openai.BadRequestError, 400, "max_tokens", max_tokens=1_000_000_000)
        check(openai.BadRequestError, 400, "messages[0].role", messages=[{"role": "critic", "content": ""}])
        schema = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "thing"}}}
        check(openai.BadRequestError, 400, "response_format.json_schema.schema", response_format=schema)
        # The demo has no chat template that could show tools.
        check(openai.BadRequestError, 400, "tools", tools=[WEATHER])
        with self.assertRaises(openai.AuthenticationError):
            client(DEMO, key="wrong").models.list()

    def test_json_schema(self):
        # The demo knows no JSON; it can't but write it.
        for temperature in [0, 1]:
            answer = self.client.chat.completions.parse(
                model="demo", messages=USER, response_format=King, max_tokens=900, seed=1, temperature=temperature
            )
            choice = answer.choices[0]
            self.assertEqual(choice.finish_reason, "stop")
            self.assertIsInstance(choice.message.parsed, King)
            self.assertEqual(choice.message.parsed, King.model_validate_json(choice.message.content))

    def test_json_schema_in_a_stream(self):
        options = dict(model="demo", messages=USER, response_format=King, max_tokens=900, seed=2, temperature=0.8)
        with self.client.chat.completions.stream(**options) as stream:
            num_events = sum(event.type == "content.delta" for event in stream)
            streamed = stream.get_final_completion().choices[0].message
        self.assertGreater(num_events, 5)
        self.assertIsInstance(streamed.parsed, King)
        whole = self.client.chat.completions.parse(**options).choices[0].message
        self.assertEqual(streamed.content, whole.content)

    def test_guided(self):
        def ask(**extra_body):
            answer = self.client.completions.create(
                model="demo", prompt="And God said", max_tokens=60, temperature=1, seed=4, n=3, extra_body=extra_body
            )
            self.assertEqual({choice.finish_reason for choice in answer.choices}, {"stop"})
            return [choice.text for choice in answer.choices]

        self.assertLessEqual(set(ask(guided_choice=["light", "darkness"])), {"light", "darkness"})
        for text in ask(guided_regex="[a-z]{3}-[0-9]{2}"):
            self.assertRegex(text, r"\A[a-z]{3}-[0-9]{2}\Z")
        for text in ask(structured_outputs={"grammar": 'start: WORD (" " WORD)~2\nWORD: /[a-z]{1,6}/\n'}):
            self.assertRegex(text, r"\A[a-z]{1,6}( [a-z]{1,6}){2}\Z")

    def test_cancellation(self):
        stream = self.client.chat.completions.create(
            model="demo", messages=USER, stream=True, max_tokens=900, extra_body={"ignore_eos": True}
        )
        next(stream)
        next(stream)
        self.assertEqual(metric(DEMO, "num_requests_running"), 1)
        stream.close()
        end = time.monotonic() + 20
        while metric(DEMO, "kv_cache_usage_perc") > 0:
            self.assertLess(time.monotonic(), end, "the request goes on")
        self.assertEqual(metric(DEMO, "num_requests_running"), 0)

    def test_async_clients_are_served_together(self):
        async def ask(client, index):
            stream = await client.chat.completions.create(
                model="demo", messages=USER, stream=True, max_tokens=20, seed=index
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def ask_all():
            async with openai.AsyncOpenAI(base_url=DEMO + "/v1", api_key="key", max_retries=0) as client:
                return await asyncio.gather(*(ask(client, index) for index in range(20)))

        self.assertEqual(len(asyncio.run(ask_all())), 20)


class Scripted(unittest.TestCase):
    def setUp(self):
        self.client = client(SCRIPTED)
        self.addCleanup(self.client.close)

    def ask(self, text, **options):
        options = {"model": "scripted", "messages": said(text), "temperature": 0} | options
        return self.client.chat.completions.create(**options)

    def test_tools(self):
        choice = self.ask(CALL, tools=[WEATHER]).choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        self.assertEqual(choice.message.content, "I ask.")
        (call,) = choice.message.tool_calls
        self.assertEqual((call.type, call.function.name), ("function", "weather"))
        self.assertEqual(json.loads(call.function.arguments), {"city": "Bonn"})
        # The conversation goes on with the call and its answer.
        messages = said(CALL) + [
            choice.message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": "<say>Rain.</say>"},
        ]
        self.assertEqual(self.ask("", messages=messages).choices[0].message.content, "Rain.")

    def test_tools_in_a_stream(self):
        with self.client.chat.completions.stream(
            model="scripted", messages=said(CALL), tools=[WEATHER], temperature=0
        ) as stream:
            for _ in stream:
                pass
            choice = stream.get_final_completion().choices[0]
        self.assertEqual(choice.finish_reason, "tool_calls")
        (call,) = choice.message.tool_calls
        self.assertEqual(json.loads(call.function.arguments), {"city": "Bonn"})

    def test_cut_tool_call(self):
        options = {"tools": [WEATHER], "max_tokens": CALL.index('"Bonn"')}
        choice = self.ask(CALL, **options).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), ("I ask.", "length"))
        (call,) = choice.message.tool_calls
        self.assertEqual((call.function.name, call.function.arguments), ("weather", '{"city": '))
        chunks = [chunk.choices[0] for chunk in self.ask(CALL, stream=True, **options)]
        self.assertEqual("".join(chunk.delta.content or "" for chunk in chunks), "I ask.")
        calls = [call for chunk in chunks for call in chunk.delta.tool_calls or []]
        self.assertEqual("".join(call.function.arguments for call in calls), '{"city": ')
        self.assertEqual(chunks[-1].finish_reason, "length")

    def test_json_object(self):
        for text in ['{"a": [1, 2]}', 'Here it is: {"a": 1}']:
            message = self.ask(text, response_format={"type": "json_object"}, max_tokens=200).choices[0].message
            self.assertEqual(message.content[0], "{")
        self.assertEqual(self.ask('{"a": [1]}', response_format={"type": "json_object"}).choices[0].message.content, '{"a": [1]}')

    def test_tool_choice(self):
        named = {"type": "function", "function": {"name": "weather"}}
        for tool_choice, reason in [("required", "tool_calls"), (named, "stop")]:
            # Whether the model wants to call or not.
            for text in [CALL.split("\n", 1)[1], "I would rather talk."]:
                choice = self.ask(text, tools=[KÖLN], tool_choice=tool_choice).choices[0]
                self.assertEqual(choice.finish_reason, reason)
                self.assertIsNone(choice.message.content)
                (call,) = choice.message.tool_calls
                self.assertEqual(call.function.name, "weather")
                self.assertIn(json.loads(call.function.arguments)["city"], ["Bonn", "Köln"])
                with self.client.chat.completions.stream(
                    model="scripted", messages=said(text), tools=[KÖLN], tool_choice=tool_choice, temperature=0
                ) as stream:
                    for _ in stream:
                        pass
                    streamed = stream.get_final_completion().choices[0].message.tool_calls
                self.assertEqual(streamed[0].function.arguments, call.function.arguments)

    def test_reasoning(self):
        message = self.ask("<think>\nHm.\n</think>\n\nYes.").choices[0].message
        self.assertEqual((message.reasoning_content, message.content), ("Hm.", "Yes."))

    def test_stop(self):
        choice = self.ask("one, two, three", stop=["two"]).choices[0]
        self.assertEqual((choice.message.content, choice.finish_reason), ("one, ", "stop"))
        # They are not looked for in reasoning.
        message = self.ask("<think>\nOne.\n\nTwo.\n</think>\n\nThree.\n\nFour.", stop=["\n\n"]).choices[0].message
        self.assertEqual((message.reasoning_content, message.content), ("One.\n\nTwo.", "Three."))

    def test_template_errors(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.ask("", messages=[{"role": "user", "content": "refuse"}])
        self.assertIn("the template does not want to", str(caught.exception))

    def test_a_full_queue(self):
        # Four run and sixteen wait.
        with self.assertRaises(openai.RateLimitError):
            streams = []
            try:
                for _ in range(21):
                    streams.append(self.ask("a", messages=[{"role": "user", "content": "<forever>"}], stream=True))
            finally:
                for stream in streams:
                    stream.close()
        end = time.monotonic() + 20
        while metric(SCRIPTED, "num_requests_running") + metric(SCRIPTED, "num_requests_waiting") > 0:
            self.assertLess(time.monotonic(), end, "the requests go on")


if __name__ == "__main__":
    unittest.main(verbosity=2)
