//! Keys and values in blocks that sequences share: storage, copies, and attention over block tables.
//!
//! Knows nothing of who owns which block, nor of requests.

use candle_core::{DType, Tensor};
use nv_config::Qwen3Config;
use nv_kernels::{KvLayout, KvMut, Sequence};
use nv_qwen3::{AttentionCache, Cpu, Qwen3Model, causal_attention};

use crate::error::Result;
use crate::kv_cache_manager::BlockCopy;
use crate::kv_cache_size::KvCacheSize;
use crate::kv_memory::KvMemory;

/// The KV cache of all layers: memory allocated once, cut into blocks.
///
/// On the CPU in the layout of the kernels, which attend it in place. Where the model computes in candle ops, or the
/// kernels don't take its heads, in tensors: a sequence's blocks are gathered, then attended by candle ops.
#[derive(Debug)]
pub struct PagedCache {
    layout: KvLayout,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Kernels {
        /// For each layer its keys, then its values; for each the blocks in order.
        memory: KvMemory,
        dtype: DType,
        num_layers: usize,
        cpu: Cpu,
    },
    /// For each layer keys and values, `[num_blocks, block_size, num_kv_heads, head_dim]`, written in place.
    Tensors(Vec<[Tensor; 2]>),
}

/// A [`PagedCache`] for the sequences of one step.
#[derive(Debug)]
pub struct PagedAttention<'a> {
    cache: &'a mut PagedCache,
    sequences: &'a [Sequence<'a>],
}

impl PagedCache {
    /// Zeroed blocks for `model`, whose keys and values are rounded to `dtype`, F32 or BF16.
    ///
    /// # Errors
    /// [`Error::KvCacheMemory`](crate::Error::KvCacheMemory) if the system refuses the memory.
    pub fn new(model: &Qwen3Model, dtype: DType, size: &KvCacheSize) -> Result<Self> {
        let &Qwen3Config { num_hidden_layers: num_layers, num_key_value_heads, head_dim, .. } =
            model.config();
        let layout =
            KvLayout { block_size: size.block_size, num_kv_heads: num_key_value_heads, head_dim };
        let store = match model.cpu() {
            // Heads of other sizes are not the kernels'.
            Some(cpu) if head_dim.is_multiple_of(16) => {
                let memory = KvMemory::new(size.bytes())?;
                Store::Kernels { memory, dtype, num_layers, cpu: cpu.clone() }
            }
            _ => {
                let shape =
                    (size.num_blocks as usize, size.block_size, num_key_value_heads, head_dim);
                let zeros = || Tensor::zeros(shape, dtype, model.device());
                let layers = (0..num_layers).map(|_| Ok([zeros()?, zeros()?]));
                Store::Tensors(layers.collect::<candle_core::Result<_>>()?)
            }
        };
        Ok(Self { layout, store })
    }

    /// Copies blocks in all layers, in this order.
    ///
    /// # Errors
    /// If a tensor operation fails.
    ///
    /// # Panics
    /// If there is no such block.
    pub fn copy_blocks(&mut self, copies: &[BlockCopy]) -> Result<()> {
        let block_elements = self.layout.block_elements();
        for &BlockCopy { src, dst } in copies {
            let (src, dst) = (src as usize, dst as usize);
            match &mut self.store {
                Store::Kernels { memory, dtype, num_layers, .. } => {
                    let block_bytes = block_elements * dtype.size_in_bytes();
                    let bytes = memory.elements::<u8>();
                    let region = bytes.len() / (2 * *num_layers);
                    for region in bytes.chunks_exact_mut(region) {
                        let from = src * block_bytes;
                        region.copy_within(from..from + block_bytes, dst * block_bytes);
                    }
                }
                Store::Tensors(layers) => {
                    for blocks in layers.iter().flatten() {
                        // A copy of its own first: a tensor can't be read while it is written to.
                        blocks.slice_set(&blocks.narrow(0, src, 1)?.copy()?, 0, dst)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The cache as the graph sees it in a step of `sequences`, whose blocks must be theirs to write to.
    pub fn attention<'a>(&'a mut self, sequences: &'a [Sequence<'a>]) -> PagedAttention<'a> {
        PagedAttention { cache: self, sequences }
    }
}

impl AttentionCache for PagedAttention<'_> {
    fn attend(
        &mut self,
        layer_idx: usize,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> nv_qwen3::Result<Tensor> {
        let layout = &self.cache.layout;
        match &mut self.cache.store {
            Store::Kernels { memory, dtype: DType::BF16, num_layers, cpu } => {
                let [k_blocks, v_blocks] = layer(memory.elements(), layer_idx, *num_layers);
                let kv = KvMut::Bf16 { k: k_blocks, v: v_blocks };
                cpu.attend(layout, kv, self.sequences, [q, k, v])
            }
            Store::Kernels { memory, num_layers, cpu, .. } => {
                let [k_blocks, v_blocks] = layer(memory.elements(), layer_idx, *num_layers);
                let kv = KvMut::F32 { k: k_blocks, v: v_blocks };
                cpu.attend(layout, kv, self.sequences, [q, k, v])
            }
            Store::Tensors(layers) => {
                attend_tensors(&layers[layer_idx], layout, self.sequences, [q, k, v])
            }
        }
    }
}

/// Keys and values of one layer.
fn layer<E>(elements: &mut [E], layer_idx: usize, num_layers: usize) -> [&mut [E]; 2] {
    let size = elements.len() / num_layers;
    let (k, v) = elements[layer_idx * size..][..size].split_at_mut(size / 2);
    [k, v]
}

/// Stores and attends in candle ops, sequence by sequence. Shapes and dtypes as for [`AttentionCache::attend`].
fn attend_tensors(
    blocks: &[Tensor; 2],
    layout: &KvLayout,
    sequences: &[Sequence<'_>],
    [q, k, v]: [&Tensor; 3],
) -> nv_qwen3::Result<Tensor> {
    let (_, num_heads, head_dim) = q.dims3()?;
    for (blocks, new) in blocks.iter().zip([k, v]) {
        let slots = blocks.flatten(0, 1)?; // [num_blocks * block_size, num_kv_heads, head_dim]
        let new = new.to_dtype(blocks.dtype())?.contiguous()?;
        for sequence in sequences {
            store_tensors(&slots, layout.block_size, sequence, &new)?;
        }
    }
    let attended = sequences.iter().map(|sequence| {
        let kv_len = sequence.start_pos + sequence.num_tokens;
        let table = &sequence.block_table[..kv_len.div_ceil(layout.block_size)];
        let table = Tensor::new(table, q.device())?;
        let gather = |blocks: &Tensor| -> candle_core::Result<Tensor> {
            blocks
                .index_select(&table, 0)?
                .flatten(0, 1)?
                .narrow(0, 0, kv_len)?
                .transpose(0, 1)?
                .contiguous()?
                .unsqueeze(0) // [1, num_kv_heads, kv_len, head_dim]
        };
        let q = q.narrow(0, sequence.first_token, sequence.num_tokens)?.unsqueeze(0)?;
        let attended = causal_attention(&q, &gather(&blocks[0])?, &gather(&blocks[1])?)?; // [1, num_tokens, num_heads, head_dim]
        Ok(attended.reshape((sequence.num_tokens, num_heads * head_dim))?)
    });
    Ok(Tensor::cat(&attended.collect::<nv_qwen3::Result<Vec<_>>>()?, 0)?)
}

/// Puts a sequence's new keys, or values, into its slots, as many at a time as lie in one block.
fn store_tensors(
    slots: &Tensor,
    block_size: usize,
    sequence: &Sequence<'_>,
    new: &Tensor,
) -> candle_core::Result<()> {
    let mut stored = 0;
    while stored < sequence.num_tokens {
        let position = sequence.start_pos + stored;
        let (block, offset) = (sequence.block_table[position / block_size], position % block_size);
        let num_tokens = (block_size - offset).min(sequence.num_tokens - stored);
        let part = new.narrow(0, sequence.first_token + stored, num_tokens)?;
        slots.slice_set(&part, 0, block as usize * block_size + offset)?;
        stored += num_tokens;
    }
    Ok(())
}
