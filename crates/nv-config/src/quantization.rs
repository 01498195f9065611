//! `quantization_config`: how a checkpoint stores its matrices, where that is not plainly.

use crate::error::{Error, Result};
use crate::json::{Fields, describe};

/// Refuses checkpoints whose tensors are not plain floating-point numbers.
pub(crate) fn check_quantization(fields: &Fields) -> Result<()> {
    const FIELD: &str = "quantization_config";
    let Some(value) = fields.value(FIELD) else { return Ok(()) };
    let method = fields.object(FIELD)?.and_then(|config| config.value("quant_method"));
    let supported = "unquantised checkpoints";
    Err(match method {
        Some(method) => {
            Error::unsupported(format!("{FIELD}.quant_method"), describe(method), supported)
        }
        None => Error::unsupported(FIELD, describe(value), supported),
    })
}
