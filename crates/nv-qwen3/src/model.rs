//! `Qwen3Model` and `Qwen3ForCausalLM`: the whole graph, from token ids to logits.
//!
//! The `[batch, seq_len]` calls unpack their input at the door and bring a contiguous cache of their own.

use std::fmt;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use nv_config::Qwen3Config;
use nv_kernels::Precision;
use nv_weights::Checkpoint;

use crate::cache::{AttentionCache, DenseCache};
use crate::decoder::Qwen3Decoder;
use crate::error::{Error, Result};
use crate::linear::Linear;
use crate::load::{LoadedMatrix, Weights};
use crate::ops::{Cpu, Ops};
use crate::portability::dependences;
use crate::preset::Preset;

/// Qwen3 up to its last norm: token ids in, hidden states out.
#[derive(Debug)]
pub struct Qwen3Model {
    decoder: Qwen3Decoder,
    cache: DenseCache,
}

/// How a model is loaded from a checkpoint.
#[derive(Clone)]
pub struct LoadOptions<'a> {
    /// What to compute in, F32 or BF16. Of quantised matrices, what the KV cache is kept in.
    pub dtype: DType,
    /// Where to compute.
    pub device: Device,
    /// The kernels and threads to compute with on the CPU; `None` for [`Cpu::shared`].
    pub cpu: Option<Cpu>,
    /// Quantises the matrices of a checkpoint of plain numbers, in memory of the model's own. On other devices than the CPU they are
    /// widened again.
    pub quantize: Option<Preset>,
    /// Is told of the bytes of the checkpoint that were quantised, a matrix at a time.
    pub progress: &'a dyn Fn(usize),
}

impl LoadOptions<'_> {
    /// As the checkpoint is.
    pub fn new(dtype: DType, device: &Device) -> Self {
        Self { dtype, device: device.clone(), cpu: None, quantize: None, progress: &|_| () }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("dtype", &self.dtype)
            .field("device", &self.device)
            .field("quantize", &self.quantize)
            .finish_non_exhaustive()
    }
}

/// Qwen3 with its language-model head: token ids in, logits out.
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use candle_nn::VarBuilder;
/// use nv_qwen3::Qwen3ForCausalLM;
///
/// let config = serde_json::from_str(
///     r#"{"model_type": "qwen3", "vocab_size": 11, "hidden_size": 8, "intermediate_size": 12,
///         "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}"#,
/// )?;
/// let zeros = nv_qwen3::tensor_shapes(&config)
///     .into_iter()
///     .map(|(name, shape)| Ok((name, Tensor::zeros(shape, DType::F32, &Device::Cpu)?)))
///     .collect::<candle_core::Result<_>>()?;
/// let vb = VarBuilder::from_tensors(zeros, DType::F32, &Device::Cpu);
///
/// let mut model = Qwen3ForCausalLM::new(&config, vb)?;
/// let prompt = Tensor::new(&[[1u32, 2, 3]], &Device::Cpu)?;
/// assert_eq!(model.forward(&prompt, 0)?.dims(), [1, 11]);
/// let next = Tensor::new(&[[4u32]], &Device::Cpu)?;
/// assert_eq!(model.forward(&next, 3)?.dims(), [1, 11]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Qwen3ForCausalLM {
    model: Qwen3Model,
    lm_head: Linear,
    matrices: Arc<[LoadedMatrix]>,
}

impl Qwen3Model {
    /// The hidden states of `input_ids`, which stand at `start_pos` and after.
    ///
    /// A `start_pos` of 0 starts a new sequence (a batch of them); any other continues the cached one, by a
    /// chunk of any length.
    ///
    /// Shapes: `input_ids` `[batch, seq_len]`; returns `[batch, seq_len, hidden_size]`, normed.
    /// Dtypes: `input_ids` U32 or I64; returns F32.
    ///
    /// # Errors
    /// [`Error::InputIds`] and [`Error::TokenId`] for bad ids, [`Error::StartPos`] and [`Error::BatchSize`] if
    /// the call doesn't continue the cache, [`Error::ContextLength`] past `max_position_embeddings`. The
    /// cached sequence survives a failed call, unless it was to be reset.
    pub fn forward(&mut self, input_ids: &Tensor, start_pos: usize) -> Result<Tensor> {
        let (batch, seq_len) = match (input_ids.dims(), input_ids.dtype()) {
            (&[batch, seq_len], DType::U32 | DType::I64) if batch > 0 && seq_len > 0 => {
                (batch, seq_len)
            }
            (shape, dtype) => {
                let (expected, shape) = ("[batch, seq_len]", shape.to_vec());
                return Err(Error::InputIds { expected, shape, dtype });
            }
        };
        self.cache.begin(batch, seq_len, start_pos)?;
        let positions: Vec<usize> =
            (0..batch).flat_map(|_| start_pos..start_pos + seq_len).collect();

        let hidden_states =
            self.decoder.forward(&input_ids.flatten_all()?, &positions, &mut self.cache)?; // [batch * seq_len, hidden_size]
        self.cache.commit();
        Ok(hidden_states.reshape((batch, seq_len, self.config().hidden_size))?)
    }

    /// The graph: hidden states of packed tokens, from any number of sequences that `cache` tells apart.
    ///
    /// Shapes: `input_ids` `[num_tokens]`, `positions` one a token; returns `[num_tokens, hidden_size]`, normed.
    /// Dtypes: `input_ids` U32 or I64; returns F32, the dtype of the residual stream.
    ///
    /// # Errors
    /// As [`Self::forward`] for ids and positions, and whatever `cache` returns.
    pub fn forward_packed(
        &self,
        input_ids: &Tensor,
        positions: &[usize],
        cache: &mut dyn AttentionCache,
    ) -> Result<Tensor> {
        self.decoder.forward(input_ids, positions, cache)
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &Qwen3Config {
        self.decoder.config()
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        self.decoder.ops().device()
    }

    /// What the model computes in, F32 or BF16; its own cache keeps keys and values in it.
    pub fn dtype(&self) -> DType {
        self.cache.dtype()
    }

    /// The kernels and threads that the model computes with; `None` where it computes in candle ops.
    pub fn cpu(&self) -> Option<&Cpu> {
        match self.decoder.ops() {
            Ops::Kernels(cpu, _) => Some(cpu),
            Ops::Candle(_) => None,
        }
    }
}

impl Qwen3ForCausalLM {
    /// Builds the model from `vb`, in its dtype and on its device. As for [`Self::from_checkpoint`], an `lm_head.weight` that is
    /// there is the head.
    ///
    /// # Errors
    /// [`Error::Config`] for a config that is not valid, [`Error::DType`] for a dtype other than F32 and BF16,
    /// [`Error::Tensors`] with every missing and misshapen tensor, and with unexpected ones as far as a
    /// `VarBuilder` tells: biases that the config denies and layers past the last.
    /// [`Self::from_checkpoint`] finds all of them.
    pub fn new(config: &Qwen3Config, vb: VarBuilder) -> Result<Self> {
        config.validate()?;
        let ops = ops_on(vb.device(), vb.dtype(), None)?;
        Ok(Self::build(config, Weights::from_var_builder(config, &vb, ops)?, vb.dtype()))
    }

    /// Builds the model from `checkpoint`, whose tensors must be those that `config` implies and no others, but for those that
    /// [`check_tensors`](crate::check_tensors) names.
    ///
    /// Where `config` ties `lm_head` to the embedding and `checkpoint` holds an `lm_head.weight`, that is the head: it may have
    /// been trained since. If the embedding is missing, it is that, too.
    ///
    /// On the CPU bfloat16 weights are not copied, in either dtype: the kernels read them where the checkpoint maps
    /// them. It computes with [`Cpu::shared`].
    ///
    /// # Errors
    /// As [`Self::new`]; [`Error::Tensors`] lists every unexpected tensor too.
    pub fn from_checkpoint(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        Self::load(config, checkpoint, LoadOptions::new(dtype, device))
    }

    /// As [`Self::from_checkpoint`] on the CPU, with kernels and threads of the caller's choice.
    ///
    /// # Errors
    /// As [`Self::from_checkpoint`].
    pub fn from_checkpoint_on(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        cpu: Cpu,
    ) -> Result<Self> {
        let options = LoadOptions { cpu: Some(cpu), ..LoadOptions::new(dtype, &Device::Cpu) };
        Self::load(config, checkpoint, options)
    }

    /// Builds the model from `checkpoint` as `options` say.
    ///
    /// # Errors
    /// As [`Self::from_checkpoint`]. Where it is to be quantised, [`Error::AlreadyQuantized`] if it is, and [`Error::Quantize`]
    /// with the place of a number that isn't finite or is too large.
    pub fn load(
        config: &Qwen3Config,
        checkpoint: &Arc<Checkpoint>,
        options: LoadOptions<'_>,
    ) -> Result<Self> {
        config.validate()?;
        let LoadOptions { dtype, device, cpu, quantize, progress } = options;
        let ops = ops_on(&device, dtype, cpu)?;
        let weights = match quantize {
            None => Weights::from_checkpoint(config, checkpoint, dtype, &ops)?,
            Some(preset) => Weights::quantized(config, checkpoint, dtype, &ops, preset, progress)?,
        };
        Ok(Self::build(config, weights, dtype))
    }

    fn build(config: &Qwen3Config, mut weights: Weights, dtype: DType) -> Self {
        let matrices = weights.loaded().into();
        let decoder = Qwen3Decoder::load(config, &mut weights);
        let lm_head = if weights.has_head() {
            Linear::load(&mut weights, "lm_head")
        } else {
            Linear::tied(decoder.embed_tokens(), decoder.ops())
        };
        let cache = DenseCache::new(config.num_hidden_layers, dtype, decoder.ops().clone());
        Self { model: Qwen3Model { decoder, cache }, lm_head, matrices }
    }

    /// The logits that follow the last of `input_ids`, which stand at `start_pos` and after.
    ///
    /// Shapes: `input_ids` `[batch, seq_len]`; returns `[batch, vocab_size]`.
    /// Dtypes: `input_ids` U32 or I64; returns F32.
    ///
    /// # Errors
    /// As [`Qwen3Model::forward`].
    pub fn forward(&mut self, input_ids: &Tensor, start_pos: usize) -> Result<Tensor> {
        let hidden_states = self.model.forward(input_ids, start_pos)?; // [batch, seq_len, hidden_size]
        let last = hidden_states.dim(1)? - 1;
        self.compute_logits(&hidden_states.narrow(1, last, 1)?.squeeze(1)?)
    }

    /// The logits that follow each of `input_ids`, which stand at `start_pos` and after.
    ///
    /// Shapes: `input_ids` `[batch, seq_len]`; returns `[batch, seq_len, vocab_size]`.
    /// Dtypes: `input_ids` U32 or I64; returns F32.
    ///
    /// # Errors
    /// As [`Qwen3Model::forward`].
    pub fn forward_all(&mut self, input_ids: &Tensor, start_pos: usize) -> Result<Tensor> {
        let hidden_states = self.model.forward(input_ids, start_pos)?;
        let (batch, seq_len, hidden_size) = hidden_states.dims3()?;
        let logits =
            self.compute_logits(&hidden_states.reshape((batch * seq_len, hidden_size))?)?;
        Ok(logits.reshape((batch, seq_len, self.config().vocab_size))?)
    }

    /// The logits of chosen rows of [`Qwen3Model::forward_packed`].
    ///
    /// Shapes: `hidden_states` `[num_rows, hidden_size]`; returns `[num_rows, vocab_size]`. Dtypes: F32.
    ///
    /// # Errors
    /// [`Error::Shape`] if the shape is another.
    pub fn compute_logits(&self, hidden_states: &Tensor) -> Result<Tensor> {
        let num_rows = hidden_states.dims().first().copied().unwrap_or(1);
        Error::check_shape("hidden_states", hidden_states, &[num_rows, self.config().hidden_size])?;
        self.lm_head.forward(&hidden_states.contiguous()?)
    }

    /// The model under the head.
    pub fn model(&self) -> &Qwen3Model {
        &self.model
    }

    /// The model under the head, for hidden states instead of logits.
    pub fn model_mut(&mut self) -> &mut Qwen3Model {
        &mut self.model
    }

    /// The config that the model was built from.
    pub fn config(&self) -> &Qwen3Config {
        self.model.config()
    }

    /// The matrices as the model multiplies them, in the order of the graph; the head only if it has one of its own.
    pub fn matrices(&self) -> &[LoadedMatrix] {
        &self.matrices
    }

    /// Whether the logits are the same bits on every machine, in whatever tier of kernels. They are if the kernels compute (not
    /// another device), and attend, and every matrix that they multiply is quantised: [`tier_dependences`] says of a checkpoint
    /// what stands in the way.
    ///
    /// [`tier_dependences`]: crate::tier_dependences
    pub fn is_portable(&self) -> bool {
        let matrices = self.matrices.iter().map(|matrix| {
            let is_portable = matrix.format.is_portable();
            (&matrix.spec, is_portable)
        });
        let dependences = dependences(self.config(), &matrices.collect::<Vec<_>>());
        self.model.cpu().is_some() && dependences.is_empty()
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        self.model.device()
    }
}

/// Kernels on the CPU, candle ops elsewhere.
fn ops_on(device: &Device, dtype: DType, cpu: Option<Cpu>) -> Result<Ops> {
    let precision = match dtype {
        DType::F32 => Precision::F32,
        DType::BF16 => Precision::Bf16,
        found => return Err(Error::DType { found }),
    };
    if !device.is_cpu() {
        return Ok(Ops::Candle(device.clone()));
    }
    let cpu = match cpu {
        Some(cpu) => cpu,
        None => Cpu::shared()?,
    };
    Ok(Ops::Kernels(cpu, precision))
}

#[cfg(test)]
mod tests {
    use nv_testing::Random;

    use super::*;
    use crate::spec::tensor_shapes;

    const CONFIG: &str = r#"{"model_type": "qwen3", "vocab_size": 13, "hidden_size": 8,
        "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 16,
        "tie_word_embeddings": false}"#;

    /// A small model with reproducible weights.
    fn model(dtype: DType) -> Qwen3ForCausalLM {
        let config = serde_json::from_str(CONFIG).unwrap();
        let mut random = Random::new(1);
        let tensors = tensor_shapes(&config)
            .into_iter()
            .map(|(name, shape)| {
                let values = (0..shape.iter().product()).map(|_| random.unit() - 0.5);
                let values: Vec<f32> = values.collect();
                (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
            })
            .collect();
        Qwen3ForCausalLM::new(&config, VarBuilder::from_tensors(tensors, dtype, &Device::Cpu))
            .unwrap()
    }

    fn ids(rows: &[&[u32]]) -> Tensor {
        let flat: Vec<u32> = rows.concat();
        Tensor::from_vec(flat, (rows.len(), rows[0].len()), &Device::Cpu).unwrap()
    }

    fn assert_close(a: &Tensor, b: &Tensor, tolerance: f32) {
        assert_eq!(a.dims(), b.dims());
        let difference =
            (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(difference <= tolerance, "differs by {difference}");
    }

    const PROMPT: &[u32] = &[3, 1, 4, 1, 5, 9, 2, 6];

    #[test]
    fn chunks_of_any_length_give_the_bits_of_the_whole_prompt() {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = model(dtype);
            let whole = model.forward_all(&ids(&[PROMPT]), 0).unwrap();
            for chunk in [1, 3, 5] {
                let mut pieces = Vec::new();
                for (i, piece) in PROMPT.chunks(chunk).enumerate() {
                    pieces.push(model.forward_all(&ids(&[piece]), i * chunk).unwrap());
                }
                assert_close(&Tensor::cat(&pieces, 1).unwrap(), &whole, 0.0);
            }
        }
    }

    #[test]
    fn rows_of_a_batch_have_the_bits_that_they_have_alone() {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = model(dtype);
            let other: Vec<u32> = PROMPT.iter().rev().copied().collect();
            let batch = model.forward_all(&ids(&[PROMPT, &other]), 0).unwrap();
            for (row, prompt) in [PROMPT, &other].into_iter().enumerate() {
                let alone = model.forward_all(&ids(&[prompt]), 0).unwrap();
                assert_close(&batch.narrow(0, row, 1).unwrap(), &alone, 0.0);
            }
        }
    }

    #[test]
    fn forward_is_the_last_row_of_forward_all_in_f32_for_either_dtype_of_ids() {
        for dtype in [DType::F32, DType::BF16] {
            let mut model = model(dtype);
            let all = model.forward_all(&ids(&[PROMPT]), 0).unwrap();
            let last = model.forward(&ids(&[PROMPT]).to_dtype(DType::I64).unwrap(), 0).unwrap();
            assert_eq!(last.dtype(), DType::F32);
            assert_close(
                &last,
                &all.narrow(1, PROMPT.len() - 1, 1).unwrap().squeeze(1).unwrap(),
                0.05,
            );
        }
    }

    #[test]
    fn hidden_states_come_before_the_head() {
        let mut model = model(DType::F32);
        let hidden_states = model.model_mut().forward(&ids(&[PROMPT]), 0).unwrap();
        assert_eq!(hidden_states.dims(), [1, PROMPT.len(), 8]);
        let logits = model.compute_logits(&hidden_states.squeeze(0).unwrap()).unwrap();
        assert_close(
            &logits,
            &model.forward_all(&ids(&[PROMPT]), 0).unwrap().squeeze(0).unwrap(),
            0.0,
        );
    }

    #[test]
    fn bad_input_is_an_error_and_keeps_the_sequence() {
        let mut model = model(DType::F32);
        model.forward(&ids(&[PROMPT]), 0).unwrap();
        let check = |model: &mut Qwen3ForCausalLM, input: &Tensor, start_pos, expected: &str| {
            assert_eq!(model.forward(input, start_pos).unwrap_err().to_string(), expected);
        };
        check(
            &mut model,
            &ids(&[&[13]]),
            8,
            "input_ids: token id 13 is outside the vocabulary of 13",
        );
        check(
            &mut model,
            &Tensor::new(&[[-1i64]], &Device::Cpu).unwrap(),
            8,
            "input_ids: token id -1 is outside the vocabulary of 13",
        );
        check(
            &mut model,
            &ids(&[&[1; 9]]),
            8,
            "the sequence would reach 17 positions, more than max_position_embeddings 16",
        );
        check(
            &mut model,
            &Tensor::new(&[[1f32]], &Device::Cpu).unwrap(),
            8,
            "input_ids: expected a non-empty [batch, seq_len] tensor of U32 or I64, found [1, 1] of F32",
        );
        check(
            &mut model,
            &Tensor::new(&[1u32], &Device::Cpu).unwrap(),
            8,
            "input_ids: expected a non-empty [batch, seq_len] tensor of U32 or I64, found [1] of U32",
        );
        check(
            &mut model,
            &ids(&[&[1]]),
            usize::MAX,
            "start_pos: the cache holds 8 positions, so 8 continues it and 0 starts over; \
             found 18446744073709551615",
        );
        model.forward(&ids(&[&[1; 8]]), 8).unwrap();
    }

    #[test]
    fn the_packed_calls_refuse_other_shapes_and_positions() {
        let mut model = model(DType::F32);
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap();
        for (shape, expected) in [(&[2, 9][..], [2, 8]), (&[3, 2, 8], [3, 8]), (&[8], [8, 8])] {
            let error = model.compute_logits(&zeros(shape)).unwrap_err();
            let expected = format!("hidden_states: expected shape {expected:?}, found {shape:?}");
            assert_eq!(error.to_string(), expected);
        }
        assert_eq!(model.compute_logits(&zeros(&[0, 8])).unwrap().dims(), [0, 13]);
        let ids = Tensor::new(&[1u32, 2], &Device::Cpu).unwrap();
        let Qwen3Model { decoder, cache } = model.model_mut();
        let error = decoder.forward(&ids, &[0, usize::MAX], cache).unwrap_err();
        assert!(matches!(error, Error::ContextLength { length: usize::MAX, .. }), "{error:?}");
    }

    #[test]
    fn only_f32_and_bf16_are_computed_in() {
        let config = serde_json::from_str(CONFIG).unwrap();
        let vb = VarBuilder::zeros(DType::F16, &Device::Cpu);
        let error = Qwen3ForCausalLM::new(&config, vb).unwrap_err();
        assert_eq!(error.to_string(), "dtype F16 is not supported; use F32 or BF16");
    }
}
