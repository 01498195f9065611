//! One layer's keys and values on the CPU, in the kernels' own layout: a sequence is one block.

use candle_core::{DType, Tensor};
use nv_kernels::{KvLayout, KvMut, Sequence};

use super::Step;
use crate::error::Result;
use crate::ops::Cpu;

/// Keys and values of `batch` sequences, each with room for `layout.block_size` positions.
#[derive(Debug)]
pub(super) struct Buffers {
    layout: KvLayout,
    /// Keys, then values.
    elements: Kv,
    cpu: Cpu,
}

#[derive(Debug)]
enum Kv {
    /// bfloat16 pairs.
    Bf16([Vec<u32>; 2]),
    F32([Vec<f32>; 2]),
}

impl Buffers {
    /// No room yet, for keys of `num_kv_heads` heads.
    pub(super) fn new(dtype: DType, num_kv_heads: usize, head_dim: usize, cpu: Cpu) -> Self {
        let elements = match dtype {
            DType::BF16 => Kv::Bf16([Vec::new(), Vec::new()]),
            _ => Kv::F32([Vec::new(), Vec::new()]),
        };
        Self { layout: KvLayout { block_size: 0, num_kv_heads, head_dim }, elements, cpu }
    }

    /// Stores the step's keys and values and attends its queries. Shapes and dtypes as for
    /// [`AttentionCache::attend`](super::AttentionCache::attend).
    pub(super) fn attend(
        &mut self,
        step: Step,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
    ) -> Result<Tensor> {
        self.make_room(step);
        let tables: Vec<[u32; 1]> = (0..).map(|block| [block]).take(step.batch).collect();
        let sequences: Vec<Sequence<'_>> = tables
            .iter()
            .enumerate()
            .map(|(row, block_table)| Sequence {
                first_token: row * step.seq_len,
                num_tokens: step.seq_len,
                start_pos: step.start_pos,
                block_table,
            })
            .collect();
        let kv = match &mut self.elements {
            Kv::Bf16([k, v]) => KvMut::Bf16 { k, v },
            Kv::F32([k, v]) => KvMut::F32 { k, v },
        };
        self.cpu.attend(&self.layout, kv, &sequences, [q, k, v])
    }

    /// Makes room for the step, at least twice what there was, so that appending costs amortised constant time.
    fn make_room(&mut self, step: Step) {
        /// Positions that a sequence has room for at first.
        const FIRST: usize = 64;
        let old = self.layout.block_size;
        if step.kv_len() <= old {
            return;
        }
        // A group of keys is laid out alike in all sizes that are multiples of 16: growth can move it as it is.
        self.layout.block_size = step.kv_len().max(2 * old).max(FIRST).next_multiple_of(16);
        let regions = step.batch * self.layout.num_kv_heads;
        let (old, new) =
            (old * self.layout.head_dim, self.layout.block_size * self.layout.head_dim);
        match &mut self.elements {
            Kv::Bf16(both) => {
                for pairs in both {
                    *pairs = regrown(pairs, regions, old / 2, new / 2);
                }
            }
            Kv::F32(both) => {
                for numbers in both {
                    *numbers = regrown(numbers, regions, old, new);
                }
            }
        }
    }
}

/// `regions` regions of `new` elements that start with the `old` elements that they had.
fn regrown<E: Copy + Default>(elements: &[E], regions: usize, old: usize, new: usize) -> Vec<E> {
    let mut grown = vec![E::default(); regions * new];
    if old > 0 {
        for (new, old) in grown.chunks_mut(new).zip(elements.chunks(old)) {
            new[..old.len()].copy_from_slice(old);
        }
    }
    grown
}
