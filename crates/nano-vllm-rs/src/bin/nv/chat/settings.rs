//! What `/set` changes.

use std::fmt;

use anyhow::{Context, Result, bail};
use nano_vllm_rs::engine::SamplingParams;

use crate::args::random_seed;

const NAMES: &str =
    "temperature, top_p, top_k, min_p, repetition_penalty, max_tokens, seed, thinking";

/// What `max_tokens` is if only the context ends an answer.
pub(super) const NO_LIMIT: usize = usize::MAX;

const SEEDS: &str = "a whole number from 0 or `random`";

/// How answers are generated. Prints as a line for each setting.
#[derive(Debug)]
pub(super) struct Settings {
    params: SamplingParams,
    /// `None` for another each time.
    seed: Option<u64>,
    /// `None` for what the template does by itself.
    enable_thinking: Option<bool>,
}

impl Settings {
    pub(super) fn new(params: SamplingParams, seed: Option<u64>) -> Self {
        Self { params, seed, enable_thinking: None }
    }

    /// Changes one setting, and returns it as it is then. If `value` makes no sense nothing changes.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<String> {
        let params = self.params.clone();
        match name {
            "temperature" => self.params = params.with_temperature(number(name, value)?)?,
            "top_p" => self.params = params.with_top_p(number(name, value)?)?,
            "top_k" => self.params = params.with_top_k(whole_number(name, value)?),
            "min_p" => self.params = params.with_min_p(number(name, value)?)?,
            "repetition_penalty" => {
                self.params = params.with_repetition_penalty(number(name, value)?)?;
            }
            "max_tokens" => self.params = params.with_max_tokens(whole_number(name, value)?)?,
            "seed" => {
                let seed = || value.parse().ok();
                self.seed = (value != "random")
                    .then(|| {
                        seed().with_context(|| format!("seed: expected {SEEDS}, found `{value}`"))
                    })
                    .transpose()?;
            }
            "thinking" => {
                self.enable_thinking = match value {
                    "on" => Some(true),
                    "off" => Some(false),
                    "auto" => None,
                    _ => bail!("thinking: expected on, off or auto, found `{value}`"),
                };
            }
            _ => bail!("there is no setting `{name}`: expected one of {NAMES}"),
        }
        let line = |line: &&str| line.split_whitespace().next() == Some(name);
        Ok(self.to_string().lines().find(line).unwrap_or_default().to_owned())
    }

    /// The parameters of the next answer.
    pub(super) fn params(&self) -> SamplingParams {
        self.params.clone().with_seed(self.seed.unwrap_or_else(random_seed))
    }

    pub(super) fn enable_thinking(&self) -> Option<bool> {
        self.enable_thinking
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { params, seed, enable_thinking } = self;
        let max_tokens = params.max_tokens().filter(|&max_tokens| max_tokens != NO_LIMIT);
        let max_tokens = max_tokens.map(|max_tokens| max_tokens.to_string());
        let seed = seed.map(|seed| seed.to_string());
        let thinking = enable_thinking.map(|thinks| if thinks { "on" } else { "off" });
        writeln!(f, "temperature         {}", params.temperature())?;
        writeln!(f, "top_p               {}", params.top_p())?;
        writeln!(f, "top_k               {}", params.top_k().unwrap_or(0))?;
        writeln!(f, "min_p               {}", params.min_p())?;
        writeln!(f, "repetition_penalty  {}", params.repetition_penalty())?;
        writeln!(
            f,
            "max_tokens          {}",
            max_tokens.as_deref().unwrap_or("the context's end")
        )?;
        writeln!(f, "seed                {}", seed.as_deref().unwrap_or("random"))?;
        write!(f, "thinking            {}", thinking.unwrap_or("auto"))
    }
}

fn number(name: &str, value: &str) -> Result<f64> {
    value.parse().ok().with_context(|| format!("{name}: expected a number, found `{value}`"))
}

fn whole_number(name: &str, value: &str) -> Result<usize> {
    let number = value.parse().ok();
    number.with_context(|| format!("{name}: expected a whole number from 0, found `{value}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_setting_can_be_changed() {
        let mut settings = Settings::new(SamplingParams::default(), None);
        let values = [
            ("temperature", "0.7"),
            ("top_p", "0.9"),
            ("top_k", "20"),
            ("min_p", "0.1"),
            ("repetition_penalty", "1.5"),
            ("max_tokens", "7"),
            ("seed", "42"),
            ("thinking", "off"),
        ];
        for (name, value) in values {
            assert_eq!(settings.set(name, value).unwrap(), format!("{name:<20}{value}"));
        }
        assert_eq!(settings.to_string().lines().count(), values.len());
        assert!(values.iter().all(|(name, _)| NAMES.contains(name)));
        let expected = SamplingParams::default()
            .with_temperature(0.7)
            .and_then(|params| params.with_top_k(20).with_top_p(0.9))
            .and_then(|params| params.with_min_p(0.1))
            .and_then(|params| params.with_repetition_penalty(1.5))
            .and_then(|params| params.with_max_tokens(7))
            .unwrap()
            .with_seed(42);
        assert_eq!(settings.params(), expected);
        assert_eq!(settings.enable_thinking(), Some(false));
        assert_eq!(settings.set("thinking", "auto").unwrap(), "thinking            auto");
        settings.set("seed", "random").unwrap();
        assert_ne!(settings.params().seed(), settings.params().seed());
    }

    #[test]
    fn a_value_without_sense_changes_nothing() {
        let mut settings = Settings::new(SamplingParams::default(), Some(1));
        let before = settings.to_string();
        let mut check = |name, value, expected: &str| {
            assert_eq!(settings.set(name, value).unwrap_err().to_string(), expected);
            assert_eq!(settings.to_string(), before);
        };
        check("temperature", "-1", "temperature: expected a finite number from 0, found -1");
        check("temperature", "hot", "temperature: expected a number, found `hot`");
        check("top_p", "-1", "top_p: expected a number from 0 to 1, found -1");
        check("top_k", "-1", "top_k: expected a whole number from 0, found `-1`");
        check("min_p", "2", "min_p: expected a number from 0 to 1, found 2");
        check("max_tokens", "0", "max_tokens: expected at least 1, found 0");
        check("seed", "x", "seed: expected a whole number from 0 or `random`, found `x`");
        check("thinking", "maybe", "thinking: expected on, off or auto, found `maybe`");
        check("n", "2", &format!("there is no setting `n`: expected one of {NAMES}"));
    }
}
