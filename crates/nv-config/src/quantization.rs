//! `quantization_config`: how a checkpoint stores its matrices, where that is not as plain numbers.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::json::{Fields, describe};

const FIELD: &str = "quantization_config";

/// How a checkpoint stores its matrices: `quantization_config`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QuantizationConfig {
    /// As `nv quantize` writes them.
    Packed(PackedConfig),
}

/// Matrices in the layout that kernels stream: each is a tensor of bytes, in a format that has a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedConfig {
    /// The names of formats by the modules that have them, such as `q_proj`. A module that isn't listed stores plain numbers.
    pub formats: BTreeMap<String, String>,
}

impl PackedConfig {
    /// What `quant_method` says.
    pub const METHOD: &str = "nano-vllm-rs";

    /// Counts what changed of the layouts.
    pub const VERSION: usize = 1;

    /// The format of the matrix of that name: `model.layers.0.self_attn.q_proj.weight` has that of `q_proj`.
    pub fn format(&self, tensor: &str) -> Option<&str> {
        let module = tensor.strip_suffix(".weight")?;
        let module = module.rsplit_once('.').map_or(module, |(_, last)| last);
        self.formats.get(module).map(String::as_str)
    }

    /// What a `config.json` says.
    pub fn to_json(&self) -> Value {
        let (method, version, formats) = (Self::METHOD, Self::VERSION, &self.formats);
        json!({ "quant_method": method, "version": version, "formats": formats })
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self> {
        let version: usize = fields.require("version")?;
        if version != Self::VERSION {
            let supported = format!("{}: quantize the model again", Self::VERSION);
            return Err(Error::unsupported(fields.name("version"), version, supported));
        }
        let Some(given) = fields.object("formats")? else {
            return Err(Error::Missing { field: fields.name("formats") });
        };
        let mut formats = BTreeMap::new();
        for (module, _) in given.iter() {
            formats.insert(module.to_owned(), given.require(module)?);
        }
        Ok(Self { formats })
    }
}

impl QuantizationConfig {
    /// # Errors
    /// [`Error::Unsupported`] for methods of others.
    pub(crate) fn from_fields(fields: &Fields<'_>) -> Result<Option<Self>> {
        let Some(value) = fields.value(FIELD) else { return Ok(None) };
        let object = fields.object(FIELD)?;
        let method = object.as_ref().and_then(|config| config.value("quant_method"));
        let supported = format!("{:?} and unquantised checkpoints", PackedConfig::METHOD);
        match (object, method) {
            (Some(object), Some(method)) if method == PackedConfig::METHOD => {
                Ok(Some(Self::Packed(PackedConfig::from_fields(&object)?)))
            }
            (_, Some(method)) => {
                let field = format!("{FIELD}.quant_method");
                Err(Error::unsupported(field, describe(method), supported))
            }
            (_, None) => Err(Error::unsupported(FIELD, describe(value), supported)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &Value) -> Result<Option<QuantizationConfig>> {
        let object = json!({ "quantization_config": value });
        QuantizationConfig::from_fields(&Fields::new(object.as_object().unwrap()))
    }

    #[test]
    fn what_is_written_is_read() {
        let formats = [("q_proj", "q4"), ("lm_head", "q8")];
        let formats = formats.map(|(module, format)| (module.to_owned(), format.to_owned()));
        let packed = PackedConfig { formats: formats.into() };
        let read = parse(&packed.to_json()).unwrap();
        assert_eq!(read, Some(QuantizationConfig::Packed(packed.clone())));
        let check = |tensor, format| assert_eq!(packed.format(tensor), format, "{tensor}");
        check("model.layers.0.self_attn.q_proj.weight", Some("q4"));
        check("lm_head.weight", Some("q8"));
        check("model.layers.0.self_attn.k_proj.weight", None);
        check("model.layers.0.self_attn.q_proj.bias", None);
        assert_eq!(parse(&Value::Null).unwrap(), None);
    }

    #[test]
    fn what_is_not_understood_is_refused_by_name() {
        let check = |value: Value, expected: &str| {
            assert_eq!(parse(&value).unwrap_err().to_string(), expected);
        };
        let (method, formats) = (PackedConfig::METHOD, json!({ "q_proj": "q8" }));
        check(
            json!({ "quant_method": method, "version": 2, "formats": formats }),
            "field `quantization_config.version`: 2 is not supported, only 1: quantize the model again",
        );
        check(
            json!({ "quant_method": method, "formats": formats }),
            "field `quantization_config.version`: missing, and it has no default",
        );
        check(
            json!({ "quant_method": method, "version": 1 }),
            "field `quantization_config.formats`: missing, and it has no default",
        );
        check(
            json!({ "quant_method": method, "version": 1, "formats": { "q_proj": 8 } }),
            "field `quantization_config.formats.q_proj`: expected a string, found 8",
        );
        check(
            json!({ "quant_method": "gptq", "bits": 4 }),
            "field `quantization_config.quant_method`: \"gptq\" is not supported, only \"nano-vllm-rs\" and unquantised checkpoints",
        );
    }
}
