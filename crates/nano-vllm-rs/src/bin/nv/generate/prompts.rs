//! Where prompts come from.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nano_vllm_rs::text::{
    self, ChatMessage, ChatTemplate, Fields, FromField, Tokenizer, json_from_str,
};
use serde_json::Value;

use crate::args::{GenerateArgs, SamplingArgs};
use crate::prompt::{Encoded, Prompt};

/// A request as the user wrote it.
#[derive(Debug)]
pub(super) struct Input {
    /// Where it stands: `line 3`.
    pub(super) place: String,
    /// What it asks for, or why that can't be told.
    pub(super) content: Result<(Prompt, SamplingArgs)>,
}

impl Input {
    /// All that `args` name, in order.
    ///
    /// # Errors
    /// If a file can't be read, or there is nothing in it.
    pub(super) fn read(args: &GenerateArgs) -> Result<Vec<Self>> {
        if let Some(path) = &args.jsonl {
            return Self::each_line(path, |line| read_request(line, &args.sampling));
        }
        let prompt = |text: &str| {
            let text = text.to_owned();
            let prompt = if args.raw { Prompt::Continue(text) } else { Prompt::Answer(text) };
            Ok((prompt, args.sampling.clone()))
        };
        if let Some(path) = &args.prompt_file {
            return Self::each_line(path, prompt);
        }
        let texts = args.prompt.iter().chain(&args.more_prompts);
        let input = |(i, text): (usize, &String)| Self {
            place: format!("prompt {}", i + 1),
            content: prompt(text),
        };
        Ok(texts.enumerate().map(input).collect())
    }

    /// Whether the chat template has a part in it.
    pub(super) fn needs_template(&self) -> bool {
        matches!(self.content, Ok((Prompt::Answer(_) | Prompt::Conversation(_), _)))
    }

    /// What the model is to go on from; without tokens where that can't be told.
    ///
    /// # Errors
    /// If a text has no tokens, or the template refuses a conversation.
    pub(super) fn encode(
        &self,
        template: Option<&ChatTemplate>,
        tokenizer: &Tokenizer,
    ) -> Result<Encoded> {
        match &self.content {
            Ok((prompt, _)) => prompt.encode(template, tokenizer),
            Err(_) => Ok(Encoded::default()),
        }
    }

    fn each_line(
        path: &Path,
        read: impl Fn(&str) -> Result<(Prompt, SamplingArgs)>,
    ) -> Result<Vec<Self>> {
        let text = if path == Path::new("-") {
            io::read_to_string(io::stdin()).context("cannot read prompts from stdin")?
        } else {
            fs::read_to_string(path)
                .with_context(|| format!("cannot read prompts from {}", path.display()))?
        };
        let lines = (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty());
        let inputs: Vec<Self> = lines
            .map(|(number, line)| Self { place: format!("line {number}"), content: read(line) })
            .collect();
        if inputs.is_empty() {
            bail!("there is no prompt in {}", path.display());
        }
        Ok(inputs)
    }
}

/// A line of JSON: a prompt, and sampling parameters that count before `sampling`.
fn read_request(line: &str, sampling: &SamplingArgs) -> Result<(Prompt, SamplingArgs)> {
    let Ok(mut fields) = Fields::new(json_from_str(line)?, "") else {
        bail!("expected a JSON object")
    };
    let prompt = match (fields.take_value("prompt"), fields.has("messages")) {
        (Some(Value::String(text)), false) => Prompt::Continue(text),
        (Some(token_ids @ Value::Array(_)), false) => {
            Prompt::TokenIds(Vec::from_field(token_ids, "prompt")?)
        }
        (Some(other), false) => {
            let expected = "a string or a list of token ids";
            return Err(text::Error::unexpected("prompt", expected, &other).into());
        }
        (None, true) => Prompt::Conversation(ChatMessage::take_all(&mut fields)?),
        (Some(_), true) => bail!("expected one of the fields `prompt` and `messages`, found both"),
        (None, false) => {
            bail!("expected one of the fields `prompt` and `messages`, found neither")
        }
    };
    // Null, if it is still there.
    fields.take_value("messages");
    let sampling = sampling.clone().with_fields(&mut fields)?;
    if let Some(name) = fields.into_rest().keys().next() {
        bail!("field `{name}` is unknown");
    }
    Ok((prompt, sampling))
}

#[cfg(test)]
mod tests {
    use super::*;
    use nano_vllm_rs::config::GenerationConfig;

    fn read(line: &str) -> Result<(Prompt, SamplingArgs)> {
        read_request(line, &SamplingArgs::default())
    }

    #[test]
    fn a_line_is_a_text_token_ids_or_a_conversation() {
        let check = |line, expected| assert_eq!(read(line).unwrap().0, expected);
        check(r#"{"prompt": "a"}"#, Prompt::Continue("a".into()));
        check(r#"{"prompt": [1, 2.0], "messages": null}"#, Prompt::TokenIds(vec![1, 2]));
        check(
            r#"{"messages": [{"role": "user", "content": "a"}]}"#,
            Prompt::Conversation(vec![ChatMessage::new("user", "a")]),
        );
    }

    #[test]
    fn every_parameter_has_its_field() {
        let parameters = r#"{"prompt": "a", "max_tokens": 9, "min_tokens": 1, "temperature": 0.5, "top_k": 3,
            "top_p": 0.9, "min_p": 0.1, "repetition_penalty": 1.1, "presence_penalty": 0.1,
            "frequency_penalty": 0.2, "logit_bias": {"5": -1}, "allowed_token_ids": [1, 5],
            "banned_token_ids": [2], "stop": ["x"], "include_stop_str_in_output": true, "stop_token_ids": [3],
            "ignore_eos": true, "n": 2, "seed": 7, "logprobs": 1, "prompt_logprobs": 0, "return_token_ids": true}"#;
        let (_, sampling) = read(parameters).unwrap();
        let params = sampling.params(&GenerationConfig::default()).unwrap();
        let shown = format!("{params:?}");
        let expected = "SamplingParams { temperature: 0.5, top_k: Some(3), top_p: 0.9, min_p: 0.1, \
            repetition_penalty: 1.1, presence_penalty: 0.1, frequency_penalty: 0.2, logit_bias: {5: -1.0}, \
            allowed_token_ids: Some([1, 5]), banned_token_ids: [2], min_tokens: 1, max_tokens: Some(9), \
            stop_token_ids: [3], eos_token_ids: [], ignore_eos: true, n: 2, seed: 7, logprobs: Some(1), \
            prompt_logprobs: Some(0) }";
        assert_eq!(shown, expected);
        assert!(sampling.return_token_ids);
        let mut stop = sampling.stop_strings().unwrap();
        assert_eq!(stop.push("axb").text, "ax");
    }

    #[test]
    fn numbers_may_be_written_as_floats_and_null_and_empty_stops_are_nothing() {
        let asked = read(
            r#"{"prompt": "a", "max_tokens": 9.0, "top_k": 20.0, "n": 1e0, "seed": 7.0, "temperature": 1,
            "stop": "", "logprobs": null, "ignore_eos": null, "stop_token_ids": [3.0], "top_p": 0}"#,
        );
        let plain = read(
            r#"{"prompt": "a", "max_tokens": 9, "top_k": 20, "n": 1, "seed": 7, "temperature": 1.0,
            "stop": [], "stop_token_ids": [3], "top_p": 0.0}"#,
        );
        assert_eq!(asked.unwrap().1, plain.unwrap().1);
    }

    #[test]
    fn errors_name_the_field() {
        let check =
            |line, expected: &str| assert_eq!(format!("{:#}", read(line).unwrap_err()), expected);
        let one = "expected one of the fields `prompt` and `messages`, found";
        check("{}", &format!("{one} neither"));
        check(r#"{"prompt": "a", "messages": []}"#, &format!("{one} both"));
        check(
            r#"{"prompt": [-1]}"#,
            "field `prompt[0]`: expected a whole number from 0 to 4294967295, found -1",
        );
        check(
            r#"{"prompt": {}}"#,
            "field `prompt`: expected a string or a list of token ids, found an object",
        );
        check(
            r#"{"messages": [{"role": "x"}]}"#,
            r#"field `messages[0].role`: expected system, developer, user, assistant or tool, found "x""#,
        );
        check(
            r#"{"prompt": "a", "temperature": "hot"}"#,
            r#"field `temperature`: expected a number, found "hot""#,
        );
        check(r#"{"prompt": "a", "temprature": 1}"#, "field `temprature` is unknown");
        check(
            r#"{"prompt": "a", "top_k": -2}"#,
            "field `top_k`: expected a whole number from -1, found -2",
        );
        check(
            r#"{"prompt": "a", "n": 1.5}"#,
            "field `n`: expected a whole number from 0, found 1.5",
        );
        check("[1]", "expected a JSON object");
        check("{\"prompt\": ", "EOF while parsing a value at line 1 column 11");
    }
}
