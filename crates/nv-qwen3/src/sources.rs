//! Where a model's tensors come from: a checkpoint as it is, one that is quantised meanwhile, a `VarBuilder`.
//!
//! Knows names and shapes; knows nothing of what the graph computes with them.

mod checkpoint;
mod plain;
mod quantizing;
mod var_builder;

use candle_core::Tensor;
use nv_config::Qwen3Config;

use crate::error::{Result, TensorReport};
use crate::spec::{EMBED_TOKENS, LM_HEAD, Role, TensorSpec, tensor_specs};
use crate::weight::Weight;

pub use checkpoint::CopyReason;
pub(crate) use checkpoint::{
    CheckpointSource, PackedFormats, copied_matrices, locate_once, report,
};
pub use plain::{PlainTensor, PlainTensors, ReadRow};
pub(crate) use plain::{packed_bytes, quantize_rows};
pub(crate) use quantizing::QuantizingSource;
pub(crate) use var_builder::VarBuilderSource;

/// A tensor of the graph, and where it is.
#[derive(Debug, Clone)]
pub struct Located {
    /// What it is.
    pub spec: TensorSpec,
    /// Its name where the weights are.
    pub stored_as: String,
}

/// What gives a model its weights.
pub(crate) trait WeightSource {
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;

    /// How the source's tensors differ from `tensors`, which are those of the graph of `config`.
    ///
    /// # Errors
    /// What reading a tensor returns, if the source has to.
    fn report(&mut self, config: &Qwen3Config, tensors: &[Located]) -> Result<TensorReport>;

    /// Whether two matrices would both be copied, and are equal: then one copy is enough.
    ///
    /// # Errors
    /// What reading a tensor returns.
    fn are_equal_copies(&mut self, a: &Located, b: &Located) -> Result<bool>;

    /// A matrix. Asked for once, and only after a report without differences.
    ///
    /// # Errors
    /// What reading a tensor returns.
    fn matrix(&mut self, tensor: &Located) -> Result<Weight>;

    /// A norm's weight or a bias, in F32. Asked for as [`Self::matrix`].
    ///
    /// # Errors
    /// What reading a tensor returns.
    fn vector(&mut self, tensor: &Located) -> Result<Tensor>;
}

/// The tensors of the graph where the weights have the names that `has` knows.
///
/// As in transformers, an `lm_head.weight` of a tied model that is there is used, and stands in for an embedding that is not.
pub(crate) fn locate(config: &Qwen3Config, has: impl Fn(&str) -> bool) -> Vec<Located> {
    let has_own_head = config.tie_word_embeddings && has(LM_HEAD);
    let stands_in = has_own_head && !has(EMBED_TOKENS);
    let specs = tensor_specs(&Qwen3Config {
        tie_word_embeddings: config.tie_word_embeddings && (stands_in || !has_own_head),
        ..config.clone()
    });
    let located = specs.into_iter().map(|spec| {
        let stands_in = stands_in && spec.role == Role::Embedding;
        let stored_as = if stands_in { LM_HEAD.to_owned() } else { spec.name.clone() };
        Located { spec, stored_as }
    });
    located.collect()
}

/// Leaves the head out of `tensors` if, as `are_equal` says of it and the embedding, it would be the same once more.
pub(crate) fn drop_equal_head<E>(
    tensors: &mut Vec<Located>,
    are_equal: impl FnOnce(&Located, &Located) -> Result<bool, E>,
) -> Result<(), E> {
    let find = |role| tensors.iter().find(|tensor| tensor.spec.role == role);
    if let (Some(head), Some(embedding)) = (find(Role::Head), find(Role::Embedding))
        && are_equal(head, embedding)?
    {
        tensors.retain(|tensor| tensor.spec.role != Role::Head);
    }
    Ok(())
}
