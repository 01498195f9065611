//! Rotary position embedding: its base, and YaRN's stretching of it.
//!
//! Reads the three spellings that checkpoints use: `rope_theta` with `rope_scaling` (transformers 4), the same
//! with `type` for `rope_type`, and `rope_parameters` (transformers 5). It knows nothing of angles and tensors.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{Fields, agreed, describe};
use crate::warning::ConfigWarning;

/// How positions beyond the trained context are handled.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Slow rotations are slowed further, fast ones stay as they are.
    Yarn(Yarn),
}

/// The parameters of YaRN, named and defaulted as in transformers.
///
/// Source: transformers `modeling_rope_utils.py`, `_compute_yarn_parameters`;
/// the method: <https://arxiv.org/abs/2309.00071>.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// How many times longer the context becomes.
    pub factor: f64,
    /// The context, in tokens, that the model was first trained with.
    pub original_max_position_embeddings: usize,
    /// Scales cosines and sines; [`Yarn::attention_scaling`] derives it where it is not given.
    pub attention_factor: Option<f64>,
    /// Pairs that turn more often than this within the original context keep their frequency.
    pub beta_fast: f64,
    /// Pairs that turn less often than this within the original context are slowed by `factor`.
    pub beta_slow: f64,
    /// Weight of `ln(factor)` in the numerator of the attention scaling.
    pub mscale: Option<f64>,
    /// Weight of `ln(factor)` in the denominator of the attention scaling.
    pub mscale_all_dim: Option<f64>,
    /// Whether the ends of the ramp between the two kinds of pairs are rounded outwards to whole pairs.
    pub truncate: bool,
}

impl Yarn {
    /// What cosines and sines are multiplied by: `attention_factor`, or else what the paper suggests for `factor`.
    ///
    /// ```
    /// use nv_config::{Qwen3Config, RopeScaling};
    ///
    /// let config: Qwen3Config = serde_json::from_str(
    ///     r#"{"vocab_size": 32, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
    ///         "num_attention_heads": 2, "num_key_value_heads": 1,
    ///         "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}}"#,
    /// )?;
    /// let Some(RopeScaling::Yarn(yarn)) = config.rope_scaling else { panic!("it is there") };
    /// assert_eq!(yarn.attention_scaling(), 0.1 * 4f64.ln() + 1.0);
    /// # Ok::<(), serde_json::Error>(())
    /// ```
    pub fn attention_scaling(&self) -> f64 {
        let mscaled = |mscale: f64| match self.factor {
            factor if factor <= 1.0 => 1.0,
            // Not `f64::ln`: the platform's own may differ from another's in the last bit.
            factor => 0.1 * mscale * libm::log(factor) + 1.0,
        };
        // As in transformers, a zero is as good as none.
        let given = |mscale: Option<f64>| mscale.filter(|&m| m != 0.0);
        match (self.attention_factor, given(self.mscale), given(self.mscale_all_dim)) {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(mscale), Some(all_dim)) => mscaled(mscale) / mscaled(all_dim),
            _ => mscaled(1.0),
        }
    }

    /// The longest context, in tokens, that the original one is stretched to.
    pub(crate) fn context_len(&self) -> usize {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "saturates, and `validate` refuses what is no positive number"
        )]
        let context_len = (self.factor * self.original_max_position_embeddings as f64) as usize;
        context_len
    }

    pub(crate) fn validate(&self, rope_theta: f64) -> Result<()> {
        let require = |valid: bool, key: &str, expected: &str, found: f64| {
            let field = || format!("rope_scaling.{key}");
            if valid { Ok(()) } else { Err(Error::invalid(field(), expected, found)) }
        };
        let positive = |key: &str, value: f64| {
            require(value.is_finite() && value > 0.0, key, "a finite number above 0", value)
        };

        let factor = self.factor;
        require(factor.is_finite() && factor >= 1.0, "factor", "a finite number from 1", factor)?;
        let original = self.original_max_position_embeddings;
        positive("original_max_position_embeddings", original as f64)?;
        positive("beta_fast", self.beta_fast)?;
        positive("beta_slow", self.beta_slow)?;
        require(
            self.beta_fast >= self.beta_slow,
            "beta_fast",
            &format!("at least beta_slow ({})", self.beta_slow),
            self.beta_fast,
        )?;
        for (key, value) in [("mscale", self.mscale), ("mscale_all_dim", self.mscale_all_dim)] {
            let value = value.unwrap_or(0.0);
            require(value.is_finite() && value >= 0.0, key, "a finite number from 0", value)?;
        }
        positive("attention_factor", self.attention_scaling())?;
        // The ramp's ends are logarithms to this base.
        if rope_theta <= 1.0 {
            return Err(Error::invalid("rope_theta", "a number above 1 for YaRN", rope_theta));
        }
        Ok(())
    }
}

/// What a config says about rotary embedding, from whichever spelling it uses.
#[derive(Debug, Default)]
pub(crate) struct Rope {
    pub(crate) theta: Option<f64>,
    pub(crate) scaling: Option<RopeScaling>,
    /// The longest context, in tokens, if the file gives all that it follows from.
    pub(crate) context_len: Option<usize>,
    pub(crate) warnings: Vec<ConfigWarning>,
}

/// Fields that say the same for every rope type, or nothing.
const COMMON_KEYS: &[&str] =
    &["rope_type", "type", "rope_theta", "partial_rotary_factor", "finetuned"];

const ORIGINAL_MAX_POSITION_EMBEDDINGS: &str = "original_max_position_embeddings";

/// Fields that go with rope type `yarn`.
const YARN_KEYS: &[&str] = &[
    "factor",
    ORIGINAL_MAX_POSITION_EMBEDDINGS,
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
];

impl Rope {
    /// Reads the rotary embedding of a whole config.
    pub(crate) fn from_fields(config: &Fields, max_position_embeddings: usize) -> Result<Self> {
        full_rotation(config)?;
        let mut thetas = vec![config.get_spelling("rope_theta")?];
        let mut scalings = Vec::new();
        let mut warnings = Vec::new();
        let mut is_context_given = false;
        for key in ["rope_scaling", "rope_parameters"] {
            if config.value(key).is_some_and(is_empty) {
                continue;
            }
            let Some(fields) = config.object(key)? else { continue };
            is_context_given |= fields.value("factor").is_some()
                && [&fields, config]
                    .iter()
                    .any(|f| f.value(ORIGINAL_MAX_POSITION_EMBEDDINGS).is_some());
            full_rotation(&fields)?;
            thetas.push(fields.get_spelling("rope_theta")?);
            let scaling =
                scaling_from_fields(&fields, config, max_position_embeddings, &mut warnings)?;
            scalings.push(Some(config.spelling(key, scaling)));
        }
        let scaling = agreed(scalings)?.flatten();
        let context_len = match &scaling {
            Some(RopeScaling::Yarn(yarn)) if is_context_given => {
                Some(yarn.context_len()).filter(|&len| len > 0)
            }
            _ => None,
        };
        Ok(Self { theta: agreed(thetas)?, scaling, context_len, warnings })
    }
}

/// Whether a value is false in Python, which transformers takes for none.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Bool(is_true) => !is_true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Null | Value::Object(_) => false,
    }
}

/// Reads one object of rope parameters. What transformers ignores in it is ignored here, with a warning.
fn scaling_from_fields(
    fields: &Fields,
    config: &Fields,
    max_position_embeddings: usize,
    warnings: &mut Vec<ConfigWarning>,
) -> Result<Option<RopeScaling>> {
    let rope_type: Option<String> =
        agreed([fields.get_spelling("rope_type")?, fields.get_spelling("type")?])?;
    let yarn_keys = match rope_type.as_deref() {
        None | Some("default") => &[],
        Some("yarn") => YARN_KEYS,
        // A factor of 1 leaves every frequency as it is.
        Some("linear" | "dynamic" | "llama3") if fields.get("factor")? == Some(1.0) => {
            return Ok(None);
        }
        Some(other) => {
            let name = fields.name("rope_type");
            return Err(Error::unsupported(name, format!("{other:?}"), r#""default" and "yarn""#));
        }
    };
    for (key, value) in fields.iter() {
        let is_plain = key == "factor" && value.as_f64() == Some(1.0);
        if COMMON_KEYS.contains(&key) || yarn_keys.contains(&key) || is_plain {
            continue;
        }
        let rope_type = rope_type.as_deref().unwrap_or("default");
        // Parameters of each kind of layer, of which Qwen3 has one.
        if value.is_object() {
            let known = [COMMON_KEYS, yarn_keys].concat().join(", ");
            let supported = format!("{known} with rope type {rope_type:?}");
            return Err(Error::unsupported(fields.name(key), describe(value), supported));
        }
        let mut because = format!("transformers has no such parameter of rope type {rope_type:?}");
        if key == "attn_factor" {
            because += "; vLLM has, and to compute as vLLM does, \
                        add an attention_factor of attn_factor * (0.1 * ln(factor) + 1)";
        }
        let (field, value) = (fields.name(key), describe(value));
        warnings.push(ConfigWarning::Ignored { field, value, because });
    }
    if yarn_keys.is_empty() {
        return Ok(None);
    }

    let original: Option<usize> = agreed([
        fields.get_spelling(ORIGINAL_MAX_POSITION_EMBEDDINGS)?,
        config.get_spelling(ORIGINAL_MAX_POSITION_EMBEDDINGS)?,
    ])?;
    let factor = match (fields.get::<f64>("factor")?, original) {
        (Some(factor), _) => factor,
        (None, Some(original)) => max_position_embeddings as f64 / original as f64,
        (None, None) => return Err(Error::Missing { field: fields.name("factor") }),
    };
    // As in transformers, a beta of zero is as good as none, and a null `truncate` is false.
    let beta = |key, default| -> Result<f64> {
        Ok(fields.get(key)?.filter(|&beta| beta != 0.0).unwrap_or(default))
    };
    Ok(Some(RopeScaling::Yarn(Yarn {
        factor,
        original_max_position_embeddings: original.unwrap_or(max_position_embeddings),
        attention_factor: fields.get("attention_factor")?,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        mscale: fields.get("mscale")?,
        mscale_all_dim: fields.get("mscale_all_dim")?,
        truncate: fields.get_or("truncate", !fields.is_null("truncate"))?,
    })))
}

/// Refuses models that rotate only a part of each head.
fn full_rotation(fields: &Fields) -> Result<()> {
    match fields.get::<f64>("partial_rotary_factor")? {
        Some(factor) if factor.total_cmp(&1.0).is_ne() => {
            Err(Error::unsupported(fields.name("partial_rotary_factor"), factor, "1"))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_scaling_is_that_of_transformers() {
        let check = |factor, attention_factor, mscale, mscale_all_dim, expected: f64| {
            let yarn = Yarn {
                factor,
                original_max_position_embeddings: 32768,
                attention_factor,
                beta_fast: 32.0,
                beta_slow: 1.0,
                mscale,
                mscale_all_dim,
                truncate: true,
            };
            let found = yarn.attention_scaling();
            assert!((found - expected).abs() < 1e-15, "{yarn:?}: {found}");
        };
        // Expected values printed by transformers 5.23, `_compute_yarn_parameters`.
        check(4.0, None, None, None, 1.138_629_436_111_989);
        check(1.0, None, None, None, 1.0);
        check(4.0, Some(1.25), Some(0.5), Some(0.75), 1.25);
        check(8.0, None, Some(0.707), Some(1.0), 0.949_560_882_462_165_3);
        check(8.0, None, Some(0.707), None, 1.207_944_154_167_983_6);
        check(8.0, None, Some(0.0), Some(1.0), 1.207_944_154_167_983_6);
    }
}
