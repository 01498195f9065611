//! Fields that mean something and that this server doesn't obey: the OpenAI API's, vLLM's and those of other servers. They
//! are refused by name, as an answer that ignores them would be a wrong one.

use nv_text::Fields;

use crate::error::Result;
use crate::fields::{refuse, refuse_others};

const LARK: &str = "use `structured_outputs.grammar`, in llguidance's dialect of Lark";
const LENGTH: &str = "use `max_tokens`";
const SAMPLING: &str = "use `temperature`, `top_p`, `top_k` and `min_p`";
const BUDGET: &str = "reasoning has no limit but `max_tokens`; `enable_thinking` switches it off";

/// Fields of any request that generates.
const ANY: &[(&str, &str)] = &[
    ("guided_whitespace_pattern", "JSON is written with a space or a line end between its parts"),
    ("bad_words", "use `logit_bias` for single tokens"),
    ("use_beam_search", "use `n` and compare `logprobs`"),
    ("logits_processors", "use `logit_bias`"),
    ("custom_logit_processor", "use `logit_bias`"),
    ("truncate_prompt_tokens", "shorten the prompt with /tokenize and /detokenize"),
    ("prompt_embeds", "send the prompt as text or tokens"),
    ("return_hidden_states", "the server answers with text alone"),
    ("json_schema", "use `response_format` or `structured_outputs.json`"),
    ("format", "use `response_format`"),
    ("regex", "use `structured_outputs.regex`"),
    ("grammar", LARK),
    ("ebnf", LARK),
    ("structural_tag", "use `structured_outputs.grammar`"),
    ("stop_regex", "use `stop`"),
    ("no_stop_trim", "use `include_stop_str_in_output`"),
    ("samplers", SAMPLING),
    ("max_new_tokens", LENGTH),
    ("max_output_tokens", LENGTH),
];

/// Fields of any request that generates, the values that change nothing, as JSON, and what to do for others.
const ANY_FIXED: &[(&str, &[&str], &str)] = &[
    ("n_predict", &["-1"], LENGTH),
    ("num_predict", &["-1"], LENGTH),
    ("min_new_tokens", &["0"], "use `min_tokens`"),
    ("n_probs", &["0"], "use `logprobs`"),
    ("repeat_penalty", &["1"], "use `repetition_penalty`"),
    ("typical_p", &["1"], SAMPLING),
    ("tfs_z", &["1"], SAMPLING),
    ("top_a", &["0"], SAMPLING),
    ("top_n_sigma", &["-1", "0"], SAMPLING),
    ("mirostat", &["0"], SAMPLING),
    ("dynatemp_range", &["0"], SAMPLING),
    ("xtc_probability", &["0"], SAMPLING),
    ("dry_multiplier", &["0"], "use `repetition_penalty`"),
    ("thinking_budget", &["-1"], BUDGET),
    ("thinking_budget_tokens", &["-1"], BUDGET),
    ("thinking_token_budget", &["-1"], BUDGET),
    ("reasoning_budget", &["-1"], BUDGET),
];

/// Fields of chats.
const CHAT: &[(&str, &str)] = &[
    ("functions", "use `tools`"),
    ("audio", "only text is answered"),
    ("echo", "use /v1/completions"),
    ("web_search_options", "offer a search in `tools`"),
];

/// Fields of chats, the values that change nothing, as JSON, and what to do for others.
const CHAT_FIXED: &[(&str, &[&str], &str)] = &[
    // Without `functions` there is nothing to call.
    ("function_call", &["\"none\"", "\"auto\""], "use `tool_choice`"),
    ("include_reasoning", &["true"], "leave `reasoning_content` unread"),
    ("separate_reasoning", &["true"], "put `reasoning_content` before the text"),
    ("stream_reasoning", &["true"], "leave `reasoning_content` unread"),
    (
        "reasoning_format",
        &["\"auto\"", "\"deepseek\"", "\"parsed\""],
        "reasoning comes as `reasoning_content`",
    ),
];

/// Fields that change the prompt of a chat.
const PROMPT: &[(&str, &str)] = &[
    ("chat_template", "the model's own template is used"),
    ("documents", "put them into the messages"),
    ("continue_final_message", "use /v1/completions"),
];

/// Fields of completions.
const COMPLETION: &[(&str, &str)] = &[("suffix", "the model only goes on with a text")];

/// Fields without consequence for the answer. Nothing stands between special tokens in any case, as this family's
/// tokenizers have it; a prediction makes an answer faster at most.
const WITHOUT_CONSEQUENCE: &[&str] = &[
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "prediction",
    "request_id",
    "cache_prompt",
    // Of beams, which are refused.
    "length_penalty",
    "early_stopping",
    "spaces_between_special_tokens",
];

/// Refuses what no request that generates can have, and takes what decides nothing.
pub(crate) fn refuse_any(fields: &mut Fields) -> Result<()> {
    refuse(fields, ANY)?;
    refuse_others(fields, ANY_FIXED)?;
    for name in WITHOUT_CONSEQUENCE {
        fields.take_value(name);
    }
    Ok(())
}

/// Refuses what no chat can have.
pub(crate) fn refuse_of_chat(fields: &mut Fields) -> Result<()> {
    refuse(fields, CHAT)?;
    refuse_others(fields, CHAT_FIXED)
}

/// Refuses what no conversation can have, be it answered or only tokenized.
pub(crate) fn refuse_of_conversation(fields: &mut Fields) -> Result<()> {
    refuse(fields, PROMPT)
}

/// Refuses what no completion can have.
pub(crate) fn refuse_of_completion(fields: &mut Fields) -> Result<()> {
    refuse(fields, COMPLETION)
}
