"""Checks that schemathesis doesn't bring."""

import re

import schemathesis

# What a request can have wrong though its form is right: fields, and why no schema can say it.
BEYOND_SCHEMAS = {
    # The vocabulary's size.
    r"logit_bias|allowed_token_ids|stop_token_ids|prompt.*|tokens\[\d+\]",
    # Of numbers above 0, those that 32 bits can't hold.
    r"repetition_penalty",
    # A template's mind, and the prompt's length.
    r"messages|max_tokens|max_completion_tokens|min_tokens",
    # Languages of their own.
    r"(guided|structured_outputs)[_.](json|regex|grammar|choice)|response_format\.json_schema\.schema|tools(\[\d+\].*)?",
    # What one field asks of another, or says against it.
    r"enable_thinking|think|thinking(\.type)?|reasoning(\.(enabled|effort))?|reasoning_effort",
    r"stream_options|top_logprobs|prompt_logprobs|echo|n|stop|tool_choice(\.function\.name)?|structured_outputs.*|guided_.*|response_format.*",
}


@schemathesis.check
def right_requests_are_answered(ctx, response, case):
    """As `positive_data_acceptance`, but for what only the server can know."""
    if case.meta is None or not case.meta.generation.mode.is_positive or response.status_code < 400:
        return
    error = response.json()["error"]
    is_example = case.meta.phase.name.name == "EXAMPLES"
    # Without a field: what several together leave of the vocabulary, which is nothing.
    is_beyond = any(re.fullmatch(fields, error["param"] or "n") for fields in BEYOND_SCHEMAS)
    # Names of models that aren't served; cases that ask whether another method or no body is refused.
    is_other = error["code"] in ("model_not_found", "rate_limit_exceeded") or response.status_code in (405, 415)
    assert not is_example and (is_beyond or is_other), f"{response.status_code}: {error}"
