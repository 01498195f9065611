//! `nv inspect`: what a model is made of, from its config and the headers of its weight files, and whether it can be run.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;
use nano_vllm_rs::config::{Dtype, RopeScaling};
use nano_vllm_rs::model::Qwen3Config;
use nano_vllm_rs::qwen3::{LoadedMatrix, TierDependence, packed_matrices, tier_dependences};
use nano_vllm_rs::weights::Checkpoint;

use crate::args::InspectArgs;
use crate::copies;
use crate::format::{bytes, grouped, plural};
use crate::model::Model;
use crate::table::{Align, Table};
use crate::tensor_names::{ranges, split_at_layer};

pub(crate) fn run(args: &InspectArgs, verbose: bool) -> Result<ExitCode> {
    let model = Model::open(&args.model, args.revision.as_deref())?;
    let Model { config, checkpoint, .. } = &model;
    let mut out = io::stdout().lock();
    // A format that isn't known is one of the problems below.
    let packed = packed_matrices(config, checkpoint).unwrap_or_default();
    writeln!(out, "{}", config_table(config))?;
    writeln!(out, "{}", tensor_table(checkpoint, &packed, args.all))?;
    if !packed.is_empty() {
        writeln!(out, "{}", packed_table(&packed))?;
        let dependences = tier_dependences(config, checkpoint).unwrap_or_default();
        writeln!(out, "{}", portability_table(&dependences))?;
    }
    write!(out, "{}", memory_table(config, checkpoint, &packed))?;
    if verbose {
        write!(out, "\n{}", copies::table(config, checkpoint, model.dtype(None)))?;
    }
    out.flush()?;
    let problems = model.problems();
    for problem in &problems {
        crate::say_error(problem);
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The fields that shape the model, under Hugging Face's names.
fn config_table(config: &Qwen3Config) -> Table<2> {
    let dtype = match config.dtype {
        Some(Dtype::BFloat16) => "bfloat16",
        Some(Dtype::Float16) => "float16",
        Some(Dtype::Float32) => "float32",
        None => "not given",
    };
    let rope_scaling = match &config.rope_scaling {
        Some(RopeScaling::Yarn(yarn)) => {
            format!("yarn: {} x {}", yarn.factor, yarn.original_max_position_embeddings)
        }
        None => "none".into(),
    };
    let mut table = Table::new("config", [Align::Left, Align::Left]);
    table.row([&"vocab_size", &config.vocab_size]);
    table.row([&"hidden_size", &config.hidden_size]);
    table.row([&"intermediate_size", &config.intermediate_size]);
    table.row([&"num_hidden_layers", &config.num_hidden_layers]);
    table.row([&"num_attention_heads", &config.num_attention_heads]);
    table.row([&"num_key_value_heads", &config.num_key_value_heads]);
    table.row([&"head_dim", &config.head_dim]);
    table.row([&"attention_bias", &config.attention_bias]);
    table.row([&"rms_norm_eps", &format!("{:e}", config.rms_norm_eps)]);
    table.row([&"rope_theta", &config.rope_theta]);
    table.row([&"rope_scaling", &rope_scaling]);
    table.row([&"max_position_embeddings", &config.max_position_embeddings]);
    table.row([&"tie_word_embeddings", &config.tie_word_embeddings]);
    table.row([&"dtype", &dtype]);
    table.row([&"parameters", &grouped(config.num_parameters())]);
    table
}

/// What rows of the tensor table are told apart by, in their order. Names are cut around the layer's number.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct TensorKey<'a> {
    before: &'a str,
    /// Only if each layer has its own row.
    layer: Option<usize>,
    after: &'a str,
    dtype: String,
    shape: &'a [usize],
}

/// The tensors of a row.
#[derive(Default)]
struct TensorGroup {
    layers: Vec<usize>,
    num_elements: u64,
    num_bytes: u64,
}

/// Names, dtypes and shapes, a row for the same tensor of all layers, or one for each tensor if `all`.
fn tensor_table(checkpoint: &Checkpoint, packed: &[LoadedMatrix], all: bool) -> Table<5> {
    let packed: BTreeMap<&str, &LoadedMatrix> =
        packed.iter().map(|matrix| (&*matrix.spec.name, matrix)).collect();
    let mut groups = BTreeMap::<TensorKey<'_>, TensorGroup>::new();
    for tensor in checkpoint.tensors() {
        let (before, layer, after) = split_at_layer(tensor.name());
        let (dtype, shape) = match packed.get(tensor.name()) {
            Some(matrix) => (matrix.format.name().to_owned(), &*matrix.spec.shape),
            None => (format!("{:?}", tensor.dtype()), tensor.shape()),
        };
        let key = TensorKey { before, layer: layer.filter(|_| all), after, dtype, shape };
        let group = groups.entry(key).or_default();
        group.layers.extend(layer);
        group.num_elements += shape.iter().map(|&size| size as u64).product::<u64>();
        group.num_bytes += tensor.bytes().len() as u64;
    }

    let title = format!(
        "{} in {}",
        plural(checkpoint.tensors().len(), "tensor"),
        plural(checkpoint.files().len(), "file"),
    );
    let align = [Align::Left, Align::Left, Align::Left, Align::Right, Align::Right];
    let mut table = Table::new(title, align);
    for (key, mut group) in groups {
        group.layers.sort_unstable();
        // Names are the file's: a terminal must not obey them.
        let (before, after) = (key.before.escape_debug(), key.after.escape_debug());
        let name = format!("{before}{}{after}", ranges(&group.layers));
        let shape = format!("{:?}", key.shape);
        let num_elements = grouped(group.num_elements);
        table.row([&name, &key.dtype, &shape, &num_elements, &bytes(group.num_bytes)]);
    }
    table
}

/// The formats of quantised matrices, and what they take.
fn packed_table(packed: &[LoadedMatrix]) -> Table<5> {
    let mut formats = BTreeMap::<&str, (usize, u64, u64)>::new();
    for matrix in packed {
        let (num_matrices, num_weights, num_bytes) =
            formats.entry(matrix.format.name()).or_default();
        *num_matrices += 1;
        *num_weights += matrix.spec.num_elements() as u64;
        *num_bytes += matrix.num_bytes as u64;
    }
    let align = [Align::Left, Align::Right, Align::Right, Align::Right, Align::Right];
    let mut table = Table::new("quantised matrices", align);
    table.row([&"", &"matrices", &"weights", &"bytes", &"bits a weight"]);
    for (name, (num_matrices, num_weights, num_bytes)) in formats {
        let bits = format!("{:.2}", (8 * num_bytes) as f64 / num_weights as f64);
        table.row([&name, &num_matrices, &grouped(num_weights), &bytes(num_bytes), &bits]);
    }
    table
}

/// Whether a quantised model's bits are those of every machine, and if not, why; a row for the same tensor of all layers.
fn portability_table(dependences: &[TierDependence]) -> Table<1> {
    let same = dependences.is_empty();
    let bits =
        if same { "the same bits on every machine" } else { "other bits in each tier of kernels" };
    let mut table = Table::new(format!("logits: {bits}"), [Align::Left]);
    let mut plain = BTreeMap::<(&str, &str), Vec<usize>>::new();
    for dependence in dependences {
        if let TierDependence::PlainMatrix { name } = dependence {
            let (before, layer, after) = split_at_layer(name);
            plain.entry((before, after)).or_default().extend(layer);
        } else {
            table.row([dependence]);
        }
    }
    for ((before, after), mut layers) in plain {
        layers.sort_unstable();
        let name = format!("{before}{}{after}", ranges(&layers));
        table.row([&TierDependence::PlainMatrix { name }]);
    }
    table
}

/// What the model takes in either dtype.
fn memory_table(
    config: &Qwen3Config,
    checkpoint: &Checkpoint,
    packed: &[LoadedMatrix],
) -> Table<3> {
    let mut table = Table::new("memory", [Align::Left, Align::Right, Align::Right]);
    table.row([&"", &"bf16", &"f32"]);
    let weights = |num_bytes| bytes(config.num_parameters() * num_bytes);
    if packed.is_empty() {
        table.row([&"weights", &weights(2), &weights(4)]);
    } else {
        let stored = bytes(checkpoint.num_bytes() as u64);
        table.row([&"weights", &stored, &stored]);
    }
    let mut kv_cache = |num_tokens| {
        let size =
            |num_bytes| bytes((config.kv_cache_bytes_per_token(num_bytes) * num_tokens) as u64);
        let name = format!("KV cache of {} tokens", grouped(num_tokens as u64));
        table.row([&name, &size(2), &size(4)]);
    };
    kv_cache(1000);
    kv_cache(config.max_position_embeddings);
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_bits_depend_on_is_a_row_for_the_same_tensor_of_all_layers() {
        let plain = |name: &str| TierDependence::PlainMatrix { name: name.into() };
        assert_eq!(portability_table(&[]).to_string(), "logits: the same bits on every machine\n");
        let found = [
            TierDependence::HeadDim { head_dim: 24 },
            plain("model.layers.1.mlp.up_proj.weight"),
            plain("model.layers.0.mlp.up_proj.weight"),
            plain("lm_head.weight"),
        ];
        assert_eq!(
            portability_table(&found).to_string(),
            "logits: other bits in each tier of kernels\
             \n  head_dim 24 is no multiple of 16, so candle attends\
             \n  `lm_head.weight` is multiplied as floating-point numbers\
             \n  `model.layers.{0..1}.mlp.up_proj.weight` is multiplied as floating-point numbers\n"
        );
    }
}
