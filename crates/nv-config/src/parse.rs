//! From the fields of a `config.json` to a valid config.
//!
//! What the graph can't compute is refused here, by name, so that no later layer has to ask. It knows nothing of
//! tensors, nor of where the file came from.

use std::fmt::Display;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::json::{self, Field, Fields, describe};
use crate::quantization::QuantizationConfig;
use crate::qwen3::{Dtype, FULL_ATTENTION, Qwen3Config, SILU};
use crate::rope::{Rope, RopeScaling};
use crate::validate::check_model;
use crate::warning::ConfigWarning;

// Qwen3's own, not those of transformers: each that stands in for a missing field is noted.
const DEFAULT_ROPE_THETA: f64 = 1e6;
const DEFAULT_MAX_POSITION_EMBEDDINGS: usize = 40960;

/// Reads a model's `config.json`.
///
/// # Errors
/// [`Error::Read`] and [`Error::Parse`] if `path` is not a file with a JSON object; [`Error::File`] with the
/// offending field in its source if the object is not a valid Qwen3 config, or asks for what the graph can't do.
pub fn load_config(path: impl AsRef<Path>) -> Result<Qwen3Config> {
    json::load(path.as_ref(), Qwen3Config::from_fields)
}

impl<'de> Deserialize<'de> for Qwen3Config {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Map::<String, Value>::deserialize(deserializer)?;
        Self::from_fields(Fields::new(&object)).map_err(D::Error::custom)
    }
}

impl Qwen3Config {
    fn from_fields(fields: Fields<'_>) -> Result<Self> {
        // First, so that another model's file is refused for what it is, not for a field that it lacks.
        let model_type = fields.get_or("model_type", "qwen3".to_owned())?;
        let architectures: Vec<String> = fields.get_if_valid("architectures").unwrap_or_default();
        check_model(&model_type, &architectures)?;
        let quantization_config = QuantizationConfig::from_fields(&fields)?;

        if !fields.get_or("is_causal", true)? {
            return Err(Error::unsupported("is_causal", false, "true"));
        }
        if let Some(Value::Object(layers)) = fields.value("per_layer_config")
            && !layers.is_empty()
        {
            let found = format!("an object of {} layers", layers.len());
            return Err(Error::unsupported("per_layer_config", found, "layers that are alike"));
        }

        let mut warnings = Vec::new();
        let mut guess = |field, assumed: &dyn Display, transformers: &str| {
            let (assumed, transformers) = (assumed.to_string(), transformers.to_owned());
            warnings.push(ConfigWarning::Guessed { field, assumed, transformers });
        };
        let tie_word_embeddings = fields.get("tie_word_embeddings")?.unwrap_or_else(|| {
            guess("tie_word_embeddings", &true, "false");
            true
        });
        let given: Option<usize> = fields.get("max_position_embeddings")?;
        let max_position_embeddings = given.unwrap_or(DEFAULT_MAX_POSITION_EMBEDDINGS);
        let rope = Rope::from_fields(&fields, max_position_embeddings)?;
        let max_position_embeddings = match (given, rope.context_len, &rope.scaling) {
            (None, Some(context_len), _) => context_len,
            (_, _, scaling) => {
                if given.is_none() {
                    guess("max_position_embeddings", &DEFAULT_MAX_POSITION_EMBEDDINGS, "32768");
                }
                match scaling {
                    Some(RopeScaling::Yarn(yarn)) => {
                        max_position_embeddings.max(yarn.context_len())
                    }
                    None => max_position_embeddings,
                }
            }
        };
        let rope_theta = rope.theta.unwrap_or_else(|| {
            guess("rope_theta", &DEFAULT_ROPE_THETA, "10000");
            DEFAULT_ROPE_THETA
        });
        warnings.extend(rope.warnings);

        let num_attention_heads = fields.require("num_attention_heads")?;
        let use_sliding_window = fields.get_or("use_sliding_window", false)?;
        let (sliding_window, max_window_layers) = if use_sliding_window {
            sliding_window(&fields)?
        } else {
            (None, fields.get_if_valid("max_window_layers"))
        };
        let vocab_size: usize = fields.require("vocab_size")?;
        let is_token = |&id: &u32| (id as usize) < vocab_size;
        let eos_token_id: Vec<u32> = fields.get_or("eos_token_id", Vec::new())?;
        let outside: Vec<u32> = eos_token_id.iter().copied().filter(|id| !is_token(id)).collect();
        if !outside.is_empty() {
            let because = format!("the vocabulary has {vocab_size} tokens, so it never comes");
            let (field, value) = ("eos_token_id".to_owned(), describe(&outside.into()));
            warnings.push(ConfigWarning::Ignored { field, value, because });
        }
        let config = Self {
            vocab_size,
            hidden_size: fields.require("hidden_size")?,
            intermediate_size: fields.require("intermediate_size")?,
            num_hidden_layers: fields.require("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: if fields.is_null("num_key_value_heads") {
                num_attention_heads
            } else {
                fields.require("num_key_value_heads")?
            },
            head_dim: fields.get_or("head_dim", 128)?,
            rms_norm_eps: fields.get_or("rms_norm_eps", 1e-6)?,
            rope_theta,
            max_position_embeddings,
            rope_scaling: rope.scaling,
            tie_word_embeddings,
            hidden_act: match fields.get_or("hidden_act", SILU.to_owned())?.as_str() {
                "swish" => SILU.to_owned(),
                other => other.to_owned(),
            },
            attention_bias: fields.get_or("attention_bias", false)?,
            use_sliding_window,
            sliding_window,
            max_window_layers: max_window_layers.unwrap_or(28),
            layer_types: layer_types(&fields)?,
            eos_token_id,
            bos_token_id: fields.get_if_valid("bos_token_id").filter(is_token),
            dtype: fields.get_if_valid("dtype").or_else(|| fields.get_if_valid("torch_dtype")),
            quantization_config,
            architectures,
            model_type,
            warnings,
        };
        config.validate()?;
        Ok(config)
    }
}

/// `sliding_window` and `max_window_layers` of a model that uses them.
fn sliding_window(fields: &Fields) -> Result<(Option<usize>, Option<usize>)> {
    let window = match fields.get("sliding_window")? {
        // transformers' default: only null turns the window off.
        None if !fields.is_null("sliding_window") => Some(4096),
        given => given,
    };
    Ok((window, fields.get("max_window_layers")?))
}

/// `layer_types` with the name that transformers gives to what it once called `attention`.
fn layer_types(fields: &Fields) -> Result<Vec<String>> {
    let mut layer_types: Vec<String> = fields.get_or("layer_types", Vec::new())?;
    for kind in &mut layer_types {
        if kind == "attention" {
            FULL_ATTENTION.clone_into(kind);
        }
    }
    Ok(layer_types)
}

impl Field for Dtype {
    const EXPECTED: &str = r#""bfloat16", "float16" or "float32""#;

    fn from_json(value: &Value) -> Option<Self> {
        let name = value.as_str()?;
        match name.strip_prefix("torch.").unwrap_or(name) {
            "bfloat16" | "bf16" => Some(Self::BFloat16),
            "float16" | "half" | "fp16" => Some(Self::Float16),
            "float32" | "float" | "fp32" => Some(Self::Float32),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;
    use serde_json::json;

    use super::*;
    use crate::rope::Yarn;

    /// The required fields of a small model, then `fields` over them.
    fn parse(fields: Value) -> Result<Qwen3Config> {
        let mut config = json!({
            "vocab_size": 300, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2,
        });
        let object = config.as_object_mut().unwrap();
        object.extend(fields.as_object().unwrap().clone());
        Qwen3Config::from_fields(Fields::new(object))
    }

    fn check_error(fields: Value, expected: &str) {
        match parse(fields.clone()) {
            Ok(config) => panic!("{fields} gave {config:?}"),
            Err(error) => assert_eq!(error.to_string(), expected, "{fields}"),
        }
    }

    fn guessed(field: &'static str, assumed: &str, transformers: &str) -> ConfigWarning {
        let (assumed, transformers) = (assumed.to_owned(), transformers.to_owned());
        ConfigWarning::Guessed { field, assumed, transformers }
    }

    fn published(name: &str) -> Qwen3Config {
        load_config(format!("{}/tests/configs/{name}.json", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn published_configs_have_the_published_parameter_counts() {
        let check = |name, num_parameters| {
            assert_eq!(published(name).num_parameters(), num_parameters, "{name}");
        };
        check("Qwen3-0.6B", 596_049_920);
        check("Qwen3-0.6B-transformers5", 596_049_920);
        check("Qwen3-1.7B", 1_720_574_976);
        check("Qwen3-4B", 4_022_468_096);
        check("Qwen3-8B", 8_190_735_360);
        check("Qwen3-14B", 14_768_307_200);
        check("Qwen3-32B", 32_762_123_264);
    }

    #[test]
    fn parameters_of_a_small_model_count_out_by_hand() {
        let check = |fields, num_parameters| {
            assert_eq!(parse(fields).unwrap().num_parameters(), num_parameters);
        };
        // Embeddings; per layer q, k, v, o, two head norms, the MLP, two norms; the last norm.
        let layer = 24 * 32 + 2 * (24 * 16) + 32 * 24 + 2 * 8 + 3 * (24 * 40) + 2 * 24;
        let tied = 300 * 24 + 2 * layer + 24;
        check(json!({"head_dim": 8}), tied);
        check(json!({"head_dim": 8, "tie_word_embeddings": false}), tied + 300 * 24);
        let biases = 2 * (32 + 16 + 16 + 24);
        check(json!({"head_dim": 8, "attention_bias": true}), tied + biases);
    }

    #[test]
    fn both_spellings_of_one_model_read_alike() {
        let spelled_out = published("Qwen3-0.6B-transformers5");
        assert_eq!(spelled_out.layer_types, vec!["full_attention"; 28]);
        assert_eq!(Qwen3Config { layer_types: vec![], ..spelled_out }, published("Qwen3-0.6B"));
    }

    #[test]
    fn every_field_is_read() {
        let expected = Qwen3Config {
            vocab_size: 151_936,
            hidden_size: 5120,
            intermediate_size: 25600,
            num_hidden_layers: 64,
            num_attention_heads: 64,
            num_key_value_heads: 8,
            head_dim: 128,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: None,
            max_position_embeddings: 40960,
            tie_word_embeddings: false,
            hidden_act: "silu".to_owned(),
            attention_bias: false,
            use_sliding_window: false,
            sliding_window: None,
            max_window_layers: 64,
            layer_types: vec![],
            eos_token_id: vec![151_645],
            bos_token_id: Some(151_643),
            dtype: Some(Dtype::BFloat16),
            quantization_config: None,
            architectures: vec!["Qwen3ForCausalLM".to_owned()],
            model_type: "qwen3".to_owned(),
            warnings: vec![],
        };
        assert_eq!(published("Qwen3-32B"), expected);
        assert_eq!((expected.q_size(), expected.kv_size()), (8192, 1024));
        assert_eq!(expected.num_key_value_groups(), 8);
    }

    #[test]
    fn absent_and_null_fields_have_their_defaults() {
        let expected = Qwen3Config {
            vocab_size: 300,
            hidden_size: 24,
            intermediate_size: 40,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 128,
            rms_norm_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: None,
            max_position_embeddings: 40960,
            tie_word_embeddings: true,
            hidden_act: "silu".to_owned(),
            attention_bias: false,
            use_sliding_window: false,
            sliding_window: None,
            max_window_layers: 28,
            layer_types: vec![],
            eos_token_id: vec![],
            bos_token_id: None,
            dtype: None,
            quantization_config: None,
            architectures: vec![],
            model_type: "qwen3".to_owned(),
            warnings: vec![
                guessed("tie_word_embeddings", "true", "false"),
                guessed("max_position_embeddings", "40960", "32768"),
                guessed("rope_theta", "1000000", "10000"),
            ],
        };
        let optional = [
            "head_dim",
            "rms_norm_eps",
            "rope_theta",
            "rope_scaling",
            "rope_parameters",
            "max_position_embeddings",
            "tie_word_embeddings",
            "hidden_act",
            "attention_bias",
            "use_sliding_window",
            "sliding_window",
            "max_window_layers",
            "layer_types",
            "eos_token_id",
            "bos_token_id",
            "dtype",
            "torch_dtype",
            "architectures",
            "model_type",
            "partial_rotary_factor",
            "quantization_config",
            "per_layer_config",
        ];
        let nulls = optional.iter().map(|&key| (key.to_owned(), Value::Null)).collect();
        assert_eq!(parse(json!({})).unwrap(), expected);
        assert_eq!(parse(Value::Object(nulls)).unwrap(), expected);
    }

    #[test]
    fn rope_is_read_in_every_spelling() {
        let check = |fields: Value, rope_theta: f64, rope_scaling: Option<Yarn>| {
            let config = parse(fields.clone()).unwrap();
            let expected = (Some(rope_theta), rope_scaling.map(RopeScaling::Yarn));
            assert_eq!((Some(config.rope_theta), config.rope_scaling), expected, "{fields}");
        };
        let yarn = |factor, original_max_position_embeddings| Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor: None,
            beta_fast: 32.0,
            beta_slow: 1.0,
            mscale: None,
            mscale_all_dim: None,
            truncate: true,
        };

        check(json!({"rope_theta": 10000}), 1e4, None);
        check(json!({"rope_parameters": {"rope_theta": 10000, "rope_type": "default"}}), 1e4, None);
        check(json!({"rope_parameters": {"rope_theta": 10000.0}}), 1e4, None);
        check(json!({"rope_scaling": {"type": "default"}}), 1e6, None);
        check(json!({"rope_theta": 5e6, "rope_parameters": {"rope_theta": 5_000_000}}), 5e6, None);
        check(json!({"partial_rotary_factor": 1, "rope_scaling": {}}), 1e6, None);

        let spelled = json!({"factor": 4.0, "original_max_position_embeddings": 32768});
        let with = |key: &str, value: Value| {
            let mut object = spelled.clone();
            object[key] = value;
            object
        };
        let expected = || Some(yarn(4.0, 32768));
        check(json!({"rope_scaling": with("type", json!("yarn"))}), 1e6, expected());
        check(json!({"rope_scaling": with("rope_type", json!("yarn"))}), 1e6, expected());
        check(json!({"rope_parameters": with("rope_type", json!("yarn"))}), 1e6, expected());
        let both = with("rope_type", json!("yarn"));
        check(json!({"rope_scaling": both, "rope_parameters": both}), 1e6, expected());

        // What transformers fills in: the factor from the lengths, the original length from the maximum.
        let lengths = json!({"rope_type": "yarn", "original_max_position_embeddings": 10240});
        check(json!({"rope_scaling": lengths}), 1e6, Some(yarn(4.0, 10240)));
        let factor = json!({"rope_type": "yarn", "factor": 2});
        check(json!({"rope_scaling": factor}), 1e6, Some(yarn(2.0, 40960)));

        let everything = json!({
            "rope_type": "yarn", "type": "yarn", "factor": 8, "original_max_position_embeddings": 64,
            "attention_factor": 1.25, "beta_fast": 16, "beta_slow": 2, "mscale": 0.5, "mscale_all_dim": 0.75,
            "truncate": false, "rope_theta": 100, "partial_rotary_factor": 1.0,
        });
        let expected = Yarn {
            attention_factor: Some(1.25),
            beta_fast: 16.0,
            beta_slow: 2.0,
            mscale: Some(0.5),
            mscale_all_dim: Some(0.75),
            truncate: false,
            ..yarn(8.0, 64)
        };
        check(json!({"rope_parameters": everything}), 100.0, Some(expected));
    }

    #[test]
    fn windows_that_never_open_are_no_matter() {
        let check = |fields: Value, sliding_window: Option<usize>| {
            assert_eq!(parse(fields.clone()).unwrap().sliding_window, sliding_window, "{fields}");
        };
        check(json!({"sliding_window": 64}), None);
        check(
            json!({"use_sliding_window": true, "sliding_window": null, "max_window_layers": 0}),
            None,
        );
        check(json!({"use_sliding_window": true, "sliding_window": 64}), Some(64));
        check(json!({"use_sliding_window": true}), Some(4096));
    }

    #[test]
    fn token_ids_and_dtypes_are_read_in_every_spelling() {
        let config = parse(json!({"eos_token_id": [7, 299], "dtype": "float32"})).unwrap();
        assert_eq!((config.eos_token_id, config.dtype), (vec![7, 299], Some(Dtype::Float32)));
        let check = |fields: Value, dtype: Option<Dtype>| {
            assert_eq!(parse(fields.clone()).unwrap().dtype, dtype, "{fields}");
        };
        check(json!({"dtype": "float16", "torch_dtype": "float16"}), Some(Dtype::Float16));
        // As in transformers, `dtype` wins.
        check(json!({"dtype": "float32", "torch_dtype": "bfloat16"}), Some(Dtype::Float32));
        check(json!({"torch_dtype": "torch.bfloat16"}), Some(Dtype::BFloat16));
        check(json!({"torch_dtype": "half"}), Some(Dtype::Float16));
        for unknown in [json!("auto"), json!("float8_e4m3fn"), json!("float64"), json!({"": 1})] {
            check(json!({ "torch_dtype": unknown }), None);
            check(json!({ "dtype": unknown, "torch_dtype": "float32" }), Some(Dtype::Float32));
        }
    }

    /// transformers 5.24 computes the same logits with each of these fields as without it, or refuses its type alone.
    #[test]
    fn fields_that_decide_nothing_may_hold_anything() {
        let given = json!({
            "tie_word_embeddings": true, "rope_theta": 1e6, "max_position_embeddings": 40960,
        });
        let parse = |fields: &Value| {
            let mut object = given.clone();
            object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            parse(object)
        };
        let plain = parse(&json!({})).unwrap();
        for fields in [
            json!({"bos_token_id": 99_999}),
            json!({"bos_token_id": -1}),
            json!({"bos_token_id": [1]}),
            json!({"bos_token_id": "<s>"}),
            json!({"pad_token_id": 99_999}),
            json!({"pad_token_id": -1}),
            json!({"eos_token_id": -1}),
            json!({"eos_token_id": []}),
            json!({"torch_dtype": "auto"}),
            json!({"hidden_size": 24.0, "max_position_embeddings": 40960.0, "vocab_size": 3e2}),
            json!({"sliding_window": -1}),
            json!({"sliding_window": "none"}),
            json!({"sliding_window": false, "max_window_layers": -1}),
            json!({"max_window_layers": null}),
            json!({"hidden_act": "swish"}),
            json!({"rope_scaling": {"rope_type": "default", "factor": 1.0, "finetuned": true}}),
            json!({"rope_scaling": {"type": "linear", "factor": 1}}),
            json!({"rope_scaling": {"type": "dynamic", "factor": 1.0}}),
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 1, "low_freq_factor": 1.0}}),
            json!({"original_max_position_embeddings": 64}),
            json!({"rope_scaling": false, "rope_parameters": []}),
            json!({"rope_scaling": "", "rope_parameters": 0}),
            json!({"architectures": {"0": "Qwen3ForCausalLM"}}),
            json!({"per_layer_config": {}}),
            json!({"attention_dropout": "x", "initializer_range": null, "use_cache": "maybe"}),
        ] {
            let config = parse(&fields).unwrap_or_else(|error| panic!("{fields}: {error}"));
            assert_eq!(config, plain, "{fields}");
        }

        let check = |fields: Value, expected: Qwen3Config| {
            assert_eq!(parse(&fields).unwrap(), expected, "{fields}");
        };
        check(
            json!({"num_key_value_heads": null}),
            Qwen3Config { num_key_value_heads: 4, ..plain.clone() },
        );
        let eos_token_id = vec![2, 2];
        check(json!({"eos_token_id": [2, 2.0]}), Qwen3Config { eos_token_id, ..plain.clone() });
        let architectures = vec!["Qwen3ForCausalLM".to_owned()];
        check(
            json!({"architectures": "Qwen3ForCausalLM"}),
            Qwen3Config { architectures, ..plain.clone() },
        );
        let layer_types = vec!["full_attention".to_owned(); 2];
        check(
            json!({"layer_types": ["attention", "full_attention"]}),
            Qwen3Config { layer_types: layer_types.clone(), ..plain.clone() },
        );
        check(
            json!({
                "layer_types": layer_types, "use_sliding_window": true, "sliding_window": 8,
                "max_window_layers": 0,
            }),
            Qwen3Config {
                layer_types,
                use_sliding_window: true,
                sliding_window: Some(8),
                max_window_layers: 0,
                ..plain.clone()
            },
        );
        check(
            json!({"use_sliding_window": true, "sliding_window": 40960, "max_window_layers": 0}),
            Qwen3Config {
                use_sliding_window: true,
                sliding_window: Some(40960),
                max_window_layers: 0,
                ..plain.clone()
            },
        );
        check(
            json!({"eos_token_id": [7, 300]}),
            Qwen3Config {
                eos_token_id: vec![7, 300],
                warnings: vec![ConfigWarning::Ignored {
                    field: "eos_token_id".to_owned(),
                    value: "[300]".to_owned(),
                    because: "the vocabulary has 300 tokens, so it never comes".to_owned(),
                }],
                ..plain
            },
        );
    }

    #[test]
    fn what_transformers_ignores_of_rope_is_ignored_with_a_warning() {
        let check = |rope: Value, same: Value, expected: &[&str]| {
            let read =
                |rope: &Value| parse(json!({ "rope_theta": 1e4, "rope_scaling": rope })).unwrap();
            let (found, same) = (read(&rope), read(&same));
            assert_eq!(found.rope_scaling, same.rope_scaling, "{rope}");
            let warnings: Vec<_> = found.warnings.iter().map(ToString::to_string).collect();
            let ignored: Vec<_> = warnings.iter().filter(|line| line.contains("ignored")).collect();
            assert_eq!(ignored, expected, "{rope}");
        };
        let yarn =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768});
        // As DeepSeek-R1-0528-Qwen3-8B has it.
        let mut deepseek = yarn.clone();
        deepseek["attn_factor"] = json!(0.878_248_856_286_941_9);
        check(
            deepseek,
            yarn.clone(),
            &[
                "field `rope_scaling.attn_factor` (0.8782488562869419) is ignored: transformers has no such \
               parameter of rope type \"yarn\"; vLLM has, and to compute as vLLM does, add an \
               attention_factor of attn_factor * (0.1 * ln(factor) + 1)",
            ],
        );
        let mut finetuned = yarn.clone();
        finetuned["finetuned"] = json!(true);
        check(finetuned, yarn.clone(), &[]);
        let mut zero = yarn.clone();
        zero["beta_fast"] = json!(0);
        zero["beta_slow"] = json!(0.0);
        check(zero, yarn.clone(), &[]);
        let (mut null, mut cut) = (yarn.clone(), yarn);
        null["truncate"] = Value::Null;
        cut["truncate"] = json!(false);
        check(null, cut, &[]);
        check(
            json!({"factor": 2.0}),
            Value::Null,
            &[
                "field `rope_scaling.factor` (2.0) is ignored: transformers has no such parameter of rope type \"default\"",
            ],
        );
        check(
            json!({"rope_type": "default", "mrope_section": [24, 20, 20]}),
            Value::Null,
            &[
                "field `rope_scaling.mrope_section` ([24,20,20]) is ignored: transformers has no such parameter of rope type \"default\"",
            ],
        );
        // The field of the whole config stands in for that of the object.
        let outside = json!({
            "original_max_position_embeddings": 16, "rope_scaling": {"type": "yarn", "factor": 4},
        });
        let Some(RopeScaling::Yarn(yarn)) = parse(outside).unwrap().rope_scaling else {
            panic!("it is there")
        };
        assert_eq!(yarn.original_max_position_embeddings, 16);
    }

    #[test]
    fn wrong_values_are_named() {
        let missing = |field| format!("field `{field}`: missing, and it has no default");
        check_error(json!({"vocab_size": null}), &missing("vocab_size"));
        let absent = r#"{"vocab_size": 300, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 2, "num_attention_heads": 4}"#;
        let error = serde_json::from_str::<Qwen3Config>(absent).unwrap_err();
        assert_eq!(error.to_string(), missing("num_key_value_heads"));
        for field in ["hidden_size", "num_hidden_layers", "head_dim", "max_position_embeddings"] {
            check_error(
                json!({ field: 0 }),
                &format!("field `{field}`: expected at least 1, found 0"),
            );
        }
        let integer = "field `hidden_size`: expected a non-negative integer, found";
        check_error(json!({"hidden_size": -1}), &format!("{integer} -1"));
        check_error(json!({"hidden_size": 1.5}), &format!("{integer} 1.5"));
        check_error(json!({"hidden_size": "24"}), &format!("{integer} \"24\""));
        check_error(json!({"hidden_size": [24]}), &format!("{integer} [24]"));
        check_error(json!({"hidden_size": vec![24; 99]}), &format!("{integer} a list of 99 items"));
        check_error(
            json!({"num_attention_heads": 5}),
            "field `num_attention_heads`: expected a multiple of num_key_value_heads (2), found 5",
        );
        check_error(json!({"head_dim": 7}), "field `head_dim`: expected an even number, found 7");
        check_error(
            json!({"rms_norm_eps": 0}),
            "field `rms_norm_eps`: expected a finite number above 0, found 0",
        );
        check_error(
            json!({"rope_parameters": {"rope_theta": -1e4}}),
            "field `rope_theta`: expected a finite number above 0, found -10000",
        );
        check_error(
            json!({"tie_word_embeddings": "yes"}),
            "field `tie_word_embeddings`: expected true or false, found \"yes\"",
        );
        check_error(
            json!({"eos_token_id": [1, "</s>"]}),
            r#"field `eos_token_id`: expected a token id or a list of token ids, found [1,"</s>"]"#,
        );
        check_error(
            json!({"layer_types": ["full_attention"]}),
            "field `layer_types`: expected num_hidden_layers (2) items, found 1",
        );
        check_error(
            json!({"rope_scaling": "yarn"}),
            "field `rope_scaling`: expected an object, found \"yarn\"",
        );
    }

    /// As vLLM derives the longest sequence, but for configs that name a longer one themselves.
    #[test]
    fn yarn_makes_room_for_longer_sequences() {
        let check = |max_position_embeddings: usize, scaling: Value, expected: usize| {
            let fields = json!({
                "max_position_embeddings": max_position_embeddings, "rope_scaling": scaling.clone(),
            });
            let found = parse(fields).unwrap().max_position_embeddings;
            assert_eq!(found, expected, "{max_position_embeddings}, {scaling}");
        };
        let qwen = json!({
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768,
        });
        check(40960, qwen.clone(), 131_072);
        check(131_072, qwen.clone(), 131_072);
        check(262_144, qwen, 262_144);
        let lengths = json!({"rope_type": "yarn", "original_max_position_embeddings": 10240});
        check(40960, lengths, 40960);
        check(40960, json!({"rope_type": "yarn", "factor": 4.0}), 163_840);
        check(40960, json!({"rope_type": "default"}), 40960);

        // What the file says in other words is no guess.
        let check = |scaling: Value, expected: usize, is_guessed: bool| {
            let config = parse(json!({"rope_theta": 1e6, "rope_scaling": scaling})).unwrap();
            assert_eq!(config.max_position_embeddings, expected, "{scaling}");
            let guess = guessed("max_position_embeddings", "40960", "32768");
            assert_eq!(config.warnings.contains(&guess), is_guessed, "{scaling}");
        };
        let whole = json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 8192});
        check(whole, 16384, false);
        check(json!({"type": "yarn", "factor": 2.0}), 81920, true);
        check(json!({"type": "yarn", "original_max_position_embeddings": 8192}), 40960, true);
        check(json!({"factor": 2, "original_max_position_embeddings": 8192}), 40960, true);
    }

    #[test]
    fn wrong_yarn_parameters_are_named() {
        let check = |fields: Value, expected: &str| {
            let mut rope =
                json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 64});
            rope.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
            check_error(json!({ "rope_scaling": rope }), &format!("field `{expected}"));
        };
        check(
            json!({"factor": 0.5}),
            "rope_scaling.factor`: expected a finite number from 1, found 0.5",
        );
        check(
            json!({"factor": null, "original_max_position_embeddings": null}),
            "rope_scaling.factor`: missing, and it has no default",
        );
        check(
            json!({"original_max_position_embeddings": 0}),
            "rope_scaling.original_max_position_embeddings`: expected a finite number above 0, found 0",
        );
        check(
            json!({"beta_slow": -1}),
            "rope_scaling.beta_slow`: expected a finite number above 0, found -1",
        );
        check(
            json!({"beta_fast": 2, "beta_slow": 3}),
            "rope_scaling.beta_fast`: expected at least beta_slow (3), found 2",
        );
        check(
            json!({"mscale": -1}),
            "rope_scaling.mscale`: expected a finite number from 0, found -1",
        );
        check(
            json!({"attention_factor": 0}),
            "rope_scaling.attention_factor`: expected a finite number above 0, found 0",
        );
        check(json!({"truncate": 1}), "rope_scaling.truncate`: expected true or false, found 1");
        check(json!({"rope_theta": 1}), "rope_theta`: expected a number above 1 for YaRN, found 1");
    }

    #[test]
    fn contradictions_are_named() {
        check_error(
            json!({"rope_theta": 1e6, "rope_parameters": {"rope_theta": 10000}}),
            "fields `rope_theta` (1000000.0) and `rope_parameters.rope_theta` (10000) disagree; keep one",
        );
        check_error(
            json!({"rope_scaling": {"type": "yarn", "rope_type": "default"}}),
            "fields `rope_scaling.rope_type` (\"default\") and `rope_scaling.type` (\"yarn\") disagree; keep one",
        );
        let yarn = json!({"type": "yarn", "factor": 2, "original_max_position_embeddings": 20480});
        check_error(
            json!({"rope_scaling": yarn, "rope_parameters": {"rope_type": "default"}}),
            "fields `rope_scaling` (an object of 3 fields) and \
             `rope_parameters` ({\"rope_type\":\"default\"}) disagree; keep one",
        );
        check_error(
            json!({"original_max_position_embeddings": 64, "rope_scaling": {
                "type": "yarn", "factor": 2, "original_max_position_embeddings": 32,
            }}),
            "fields `rope_scaling.original_max_position_embeddings` (32) and \
             `original_max_position_embeddings` (64) disagree; keep one",
        );
    }

    #[test]
    fn overflowing_sizes_are_named() {
        const HUGE: usize = 1 << 62;
        let product = |fields: Value, names: &str, factors: &str| {
            let expected =
                format!("field `{names}`: expected a product that fits in memory, found {factors}");
            check_error(fields, &expected);
        };
        product(
            json!({"vocab_size": HUGE}),
            "vocab_size * hidden_size",
            "4611686018427387904 * 24",
        );
        product(
            json!({"intermediate_size": HUGE}),
            "intermediate_size * hidden_size",
            "4611686018427387904 * 24",
        );
        product(
            json!({"num_attention_heads": HUGE}),
            "num_attention_heads * head_dim",
            "4611686018427387904 * 128",
        );
        product(
            json!({"num_attention_heads": HUGE >> 7}),
            "num_attention_heads * head_dim * hidden_size",
            "4611686018427387904 * 24",
        );
        check_error(
            json!({"num_hidden_layers": HUGE}),
            "field `num_hidden_layers`: expected a model that fits in memory, \
             found 4611686018427387904 layers of this width",
        );
        check_error(
            json!({"num_hidden_layers": 10_001}),
            "field `num_hidden_layers`: expected at most 10000, found 10001",
        );
        check_error(
            json!({"max_position_embeddings": HUGE}),
            "field `max_position_embeddings`: expected a KV cache that fits in memory, \
             found 4611686018427387904",
        );
        check_error(
            json!({"vocab_size": 1_u64 << 32}),
            "field `vocab_size`: expected at most 4294967295, found 4294967296",
        );
    }

    #[test]
    fn what_the_graph_cannot_do_is_refused_by_name() {
        let check =
            |fields: Value, expected: &str| check_error(fields, &format!("field `{expected}"));
        // The model is looked at first: these lack much else.
        check(
            json!({"model_type": "qwen3_moe", "vocab_size": null}),
            "model_type`: \"qwen3_moe\" is not supported, only \"qwen3\" (the dense models)",
        );
        check(
            json!({"architectures": ["Qwen3ForSequenceClassification"], "vocab_size": null}),
            "architectures`: [\"Qwen3ForSequenceClassification\"] is not supported, only [\"Qwen3ForCausalLM\"]",
        );
        check(
            json!({"quantization_config": {"quant_method": "fp8", "fmt": "e4m3"}}),
            "quantization_config.quant_method`: \"fp8\" is not supported, only \"nano-vllm-rs\" and unquantised checkpoints",
        );
        check(
            json!({"quantization_config": {"bits": 4}}),
            "quantization_config`: {\"bits\":4} is not supported, only \"nano-vllm-rs\" and unquantised checkpoints",
        );
        check(
            json!({"hidden_act": "gelu"}),
            "hidden_act`: \"gelu\" is not supported, only \"silu\"",
        );
        check(
            json!({"rope_scaling": {"type": "linear", "factor": 2}}),
            "rope_scaling.rope_type`: \"linear\" is not supported, only \"default\" and \"yarn\"",
        );
        check(
            json!({"rope_scaling": {"type": "dynamic", "factor": 2}}),
            "rope_scaling.rope_type`: \"dynamic\" is not supported, only \"default\" and \"yarn\"",
        );
        check(
            json!({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
            "rope_parameters.full_attention`: {\"rope_theta\":10000.0} is not supported, only rope_type, \
             type, rope_theta, partial_rotary_factor, finetuned with rope type \"default\"",
        );
        // Which has every token attend to all others in transformers 5.
        check(json!({"is_causal": false}), "is_causal`: false is not supported, only true");
        check(
            json!({"per_layer_config": {"0": {"intermediate_size": 16}}}),
            "per_layer_config`: an object of 1 layers is not supported, only layers that are alike",
        );
        for (fields, field) in [
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (
                json!({"rope_parameters": {"partial_rotary_factor": 0.5}}),
                "rope_parameters.partial_rotary_factor",
            ),
        ] {
            check(fields, &format!("{field}`: 0.5 is not supported, only 1"));
        }
        check(
            json!({"use_sliding_window": true, "sliding_window": 64, "max_window_layers": 1}),
            "sliding_window`: 64 from layer 1 on is not supported, only full attention in every layer",
        );
        check(
            json!({"use_sliding_window": true, "max_window_layers": 0}),
            "sliding_window`: 4096 from layer 0 on is not supported, only full attention in every layer",
        );
        check(
            json!({"layer_types": ["full_attention", "sliding_attention"]}),
            "layer_types[1]`: \"sliding_attention\" is not supported, only \"full_attention\"",
        );
    }

    #[test]
    fn deserialising_validates() {
        let error = serde_json::from_str::<Qwen3Config>(r#"{"model_type": "llama"}"#).unwrap_err();
        assert_eq!(
            error.to_string(),
            "field `model_type`: \"llama\" is not supported, only \"qwen3\" (the dense models)"
        );
        let valid = published("Qwen3-0.6B");
        for invalid in [
            Qwen3Config { num_key_value_heads: 0, ..valid.clone() },
            Qwen3Config { rms_norm_eps: f64::NAN, ..valid.clone() },
            Qwen3Config { rope_theta: f64::INFINITY, ..valid.clone() },
            Qwen3Config { num_hidden_layers: usize::MAX, ..valid.clone() },
        ] {
            assert!(invalid.validate().is_err(), "{invalid:?}");
        }
        assert_eq!(Qwen3Config { vocab_size: usize::MAX, ..valid }.num_parameters(), u64::MAX);
    }

    /// Any JSON, with many values that some field accepts.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            (0_u32..64).prop_map(|shift| Value::from(1_u64 << shift)),
            (0_u64..9).prop_map(Value::from),
            select(vec!["yarn", "default", "silu", "bfloat16", "qwen3", "full_attention", ""])
                .prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 6, |inner| {
            let keys = select(
                [RANDOM_KEYS, &["type", "rope_type", "factor", "beta_fast", "mscale"]].concat(),
            )
            .prop_map(str::to_owned);
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::vec((keys, inner), 0..6).prop_map(|o| o.into_iter().collect()),
            ]
        })
    }

    const RANDOM_KEYS: &[&str] = &[
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "rms_norm_eps",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "max_position_embeddings",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "layer_types",
        "eos_token_id",
        "dtype",
        "sliding_window",
        "use_sliding_window",
        "max_window_layers",
        "quantization_config",
        "per_layer_config",
    ];

    proptest! {
        #[test]
        fn random_objects_never_panic(
            fields in prop::collection::vec((select(RANDOM_KEYS), any_json()), 0..5),
        ) {
            let fields = fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
            if let Ok(config) = parse(Value::Object(fields)) {
                prop_assert!(config.validate().is_ok());
                prop_assert!(config.num_parameters() < u64::MAX);
                prop_assert!(config.kv_cache_bytes_per_token(4) >= config.num_key_value_groups());
            }
        }
    }
}
