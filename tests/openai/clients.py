"""What clients send that differ from the official one, asked again: `cargo xtask openai` runs this.

clients.jsonl has a request a line, as the client wrote it (only ids of calls were made readable), and what must come back.
NV_SCRIPTED is the address of a server whose model says what stands in <say>…</say>; its key is "key". Each answer is held
to the server's own document, too.
"""

import http.client
import json
import os
import pathlib
import unittest
import urllib.parse

from document import Answers, fetch

SCRIPTED = os.environ["NV_SCRIPTED"]
REQUESTS = pathlib.Path(__file__).with_name("clients.jsonl")
HEADERS = {"content-type": "application/json", "authorization": "Bearer key", "accept": "*/*"}
# The schemas of answers and of chunks.
SCHEMAS = {
    "/v1/chat/completions": ("ChatCompletion", "ChatCompletionChunk"),
    "/v1/completions": ("Completion", "Completion"),
}


def chat(choice: dict, gathered: dict) -> None:
    """Adds what a choice, or a chunk's, has of a message."""
    message = choice.get("message") or choice["delta"]
    for field in ("content", "reasoning_content"):
        if message.get(field):
            gathered[field] = gathered.get(field, "") + message[field]
    for call in message.get("tool_calls", []):
        calls = gathered.setdefault("calls", [])
        if "name" in call["function"]:
            calls.append({"name": call["function"]["name"], "arguments": ""})
        calls[-1]["arguments"] += call["function"]["arguments"]


def completion(choice: dict, gathered: dict) -> None:
    gathered["text"] = gathered.get("text", "") + choice["text"]


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.answers = Answers(fetch(SCRIPTED))
        cls.connection = http.client.HTTPConnection(urllib.parse.urlsplit(SCRIPTED).netloc, timeout=60)
        cls.addClassCleanup(cls.connection.close)

    def ask(self, path: str, body: dict) -> dict:
        """What comes back, gathered from chunks if there are some."""
        self.connection.request("POST", path, json.dumps(body), HEADERS)
        response = self.connection.getresponse()
        data = response.read().decode()
        if response.status != 200:
            self.answers.check("Error", json.loads(data))
            return {"status": response.status, "code": json.loads(data)["error"]["code"]}
        of_answer, of_chunk = SCHEMAS[path]
        add = chat if "chat" in path else completion
        gathered = {}
        if body.get("stream"):
            self.assertEqual(response.headers["content-type"], "text/event-stream")
            *events, done, rest = data.split("\n\n")
            self.assertEqual((done, rest), ("data: [DONE]", ""))
            for event in events:
                chunk = json.loads(event.removeprefix("data: "))
                self.answers.check(of_chunk, chunk)
                for choice in chunk["choices"]:
                    add(choice, gathered)
                    gathered["finish_reason"] = choice["finish_reason"] or gathered.get("finish_reason")
                if "usage" in chunk and not chunk["choices"]:
                    gathered["total_tokens"] = chunk["usage"]["total_tokens"]
            asks_for_usage = body.get("stream_options", {}).get("include_usage", False)
            self.assertEqual(gathered.pop("total_tokens", 0) > 0, asks_for_usage)
        else:
            answer = json.loads(data)
            self.answers.check(of_answer, answer)
            (choice,) = answer["choices"]
            add(choice, gathered)
            gathered["finish_reason"] = choice["finish_reason"]
        for call in gathered.get("calls", []):
            call["arguments"] = json.loads(call["arguments"])
        return gathered

    def test_requests_are_answered_as_their_clients_need(self):
        lines = REQUESTS.read_text().splitlines()
        self.assertGreater(len(lines), 40)
        for number, line in enumerate(lines, 1):
            request = json.loads(line)
            with self.subTest(line=number, client=request["client"]):
                self.assertEqual(self.ask(request["path"], request["body"]), request["expected"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
