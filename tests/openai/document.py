"""The server's own description of itself, held to what it answers.

As a program: schemathesis against the server at NV_SCRIPTED, whose key is "key". Cases are seeded, and bounded in number and
in time.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import jsonschema_rs

HERE = pathlib.Path(__file__).parent
# A minute does; this is for machines that have much else to do.
MAX_SECONDS = 300


def fetch(address: str) -> dict:
    """The document of a server, as strict as it can be read: answers have the fields that it names and no others, and
    keys are asked for."""
    with urllib.request.urlopen(address + "/openapi.json") as answer:
        document = json.load(answer)
    components = document["components"]["schemas"]
    for name in answered(document):
        components[name] = closed(components[name])
    for operations in document["paths"].values():
        for operation in operations.values():
            operation["security"] = [key for key in operation.get("security", []) if key]
    return document


def answered(document: dict) -> set[str]:
    """The names of the schemas that answers refer to."""
    found, left = set(), [document["components"]["responses"]]
    for operations in document["paths"].values():
        left += [operation["responses"] for operation in operations.values()]
    while left:
        match left.pop():
            case dict(value):
                left += value.values()
                name = str(value.get("$ref", "")).removeprefix("#/components/schemas/")
                if name in document["components"]["schemas"] and name not in found:
                    found.add(name)
                    left.append(document["components"]["schemas"][name])
            case list(values):
                left += values
    return found


def closed(schema):
    match schema:
        case dict():
            schema = {key: closed(value) for key, value in schema.items()}
            if isinstance(schema.get("properties"), dict):
                schema.setdefault("additionalProperties", False)
            return schema
        case list():
            return [closed(value) for value in schema]
    return schema


class Answers:
    """Validates answers by a document."""

    def __init__(self, document: dict):
        self.document = document
        self.validators = {}

    def check(self, name: str, value) -> None:
        """Raises jsonschema_rs.ValidationError if `value` isn't what the schema `name` describes."""
        if name not in self.validators:
            self.validators[name] = jsonschema_rs.Draft202012Validator(
                {"$ref": f"#/components/schemas/{name}", "components": self.document["components"]}
            )
        self.validators[name].validate(value)


def main() -> int:
    address = os.environ["NV_SCRIPTED"]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "openapi.json")
        path.write_text(json.dumps(fetch(address)))
        schemathesis = pathlib.Path(sys.executable).with_name("schemathesis")
        command = [schemathesis, "--config-file", HERE / "schemathesis.toml", "run", path, "--url", address, "--no-color"]
        # The checks of its own stand in a module here.
        environment = os.environ | {"PYTHONPATH": str(HERE), "PYTHONHASHSEED": "1"}
        return subprocess.run(command, cwd=folder, env=environment, timeout=MAX_SECONDS).returncode


if __name__ == "__main__":
    sys.exit(main())
