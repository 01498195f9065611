//! Attention over block tables.

use half::bf16;
use nv_kernels::{Kernels, KvLayout, KvMut, Pool, Sequence};
use proptest::prelude::*;

use crate::{all_kernels, tiers, values};

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) num_kv_heads: usize,
    pub(crate) groups: usize,
    pub(crate) head_dim: usize,
    pub(crate) rounded: bool,
}

/// How a sequence is run: its cache's blocks, the chunks that it comes in, and the threads.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) block_size: usize,
    /// Physical blocks are handed out backwards, with holes.
    pub(crate) scattered: bool,
    pub(crate) chunk: usize,
    pub(crate) threads: usize,
    /// Another sequence of this many tokens shares every call.
    pub(crate) neighbour: usize,
}

/// Queries, keys and values of one sequence.
pub(crate) struct Inputs {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
}

impl Shape {
    pub(crate) fn inputs(&self, len: usize, seed: u32) -> Inputs {
        let kv = self.num_kv_heads * self.head_dim;
        let mut q = values(len * kv * self.groups, seed);
        for q in &mut q {
            *q *= 4.0;
        }
        Inputs { q, k: values(len * kv, seed + 1), v: values(len * kv, seed + 2) }
    }

    fn run(&self, kernels: &Kernels, way: &Way, len: usize) -> Vec<f32> {
        self.run_on(&self.inputs(len, 1), kernels, way)
    }

    pub(crate) fn run_on(&self, inputs: &Inputs, kernels: &Kernels, way: &Way) -> Vec<f32> {
        let pool = Pool::new(way.threads).unwrap();
        let layout = KvLayout {
            block_size: way.block_size,
            num_kv_heads: self.num_kv_heads,
            head_dim: self.head_dim,
        };
        let (kv, heads) =
            (self.num_kv_heads * self.head_dim, self.num_kv_heads * self.head_dim * self.groups);
        let len = inputs.k.len() / kv;
        let other = self.inputs(way.neighbour, 100);
        let blocks = |len: usize| u32::try_from(len.div_ceil(way.block_size)).unwrap();
        let num_blocks = 2 * (blocks(len) + blocks(way.neighbour)) + 1;
        let table = |first: u32, count: u32| -> Vec<u32> {
            (first..first + count)
                .map(|i| if way.scattered { num_blocks - 1 - 2 * i } else { i })
                .collect()
        };
        let mine = table(0, blocks(len));
        let others = table(blocks(len), blocks(way.neighbour));

        let elements = num_blocks as usize * layout.block_elements();
        let (mut k16, mut v16) = (vec![0u32; elements / 2], vec![0u32; elements / 2]);
        let (mut k32, mut v32) = (vec![0f32; elements], vec![0f32; elements]);
        let mut out = Vec::new();
        for start_pos in (0..len).step_by(way.chunk) {
            let num_tokens = way.chunk.min(len - start_pos);
            let mut sequences =
                vec![Sequence { first_token: 0, num_tokens, start_pos, block_table: &mine }];
            let (mut q, mut k, mut v) = (
                inputs.q[start_pos * heads..][..num_tokens * heads].to_vec(),
                inputs.k[start_pos * kv..][..num_tokens * kv].to_vec(),
                inputs.v[start_pos * kv..][..num_tokens * kv].to_vec(),
            );
            if way.neighbour > 0 {
                // Computed again from its start in every call.
                let (first_token, num_tokens) = (num_tokens, way.neighbour);
                sequences.push(Sequence {
                    first_token,
                    num_tokens,
                    start_pos: 0,
                    block_table: &others,
                });
                q.extend(&other.q);
                k.extend(&other.k);
                v.extend(&other.v);
            }
            let mut kv = if self.rounded {
                KvMut::Bf16 { k: &mut k16, v: &mut v16 }
            } else {
                KvMut::F32 { k: &mut k32, v: &mut v32 }
            };
            kernels.store_kv(&pool, &layout, &mut kv, &sequences, &k, &v);
            let mut attended = vec![f32::NAN; q.len()];
            kernels.attention(&pool, &layout, &kv, &sequences, &q, &mut attended);
            out.extend(&attended[..num_tokens * heads]);
        }
        out
    }

    /// The definition in f64, with keys and values as the cache rounds them.
    pub(crate) fn defined(&self, len: usize) -> Vec<f64> {
        let Inputs { q, k, v } = self.inputs(len, 1);
        let round = |x: f32| f64::from(if self.rounded { bf16::from_f32(x).to_f32() } else { x });
        let Shape { num_kv_heads, groups, head_dim, .. } = *self;
        let mut out = Vec::new();
        for t in 0..len {
            for h in 0..num_kv_heads * groups {
                let q = &q[(t * num_kv_heads * groups + h) * head_dim..][..head_dim];
                let at = |key: usize| (key * num_kv_heads + h / groups) * head_dim;
                let weights: Vec<f64> = (0..=t)
                    .map(|key| {
                        let dot: f64 =
                            q.iter().zip(&k[at(key)..]).map(|(&q, &k)| round(q) * round(k)).sum();
                        (dot / (head_dim as f64).sqrt()).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                out.extend((0..head_dim).map(|d| {
                    (0..=t).map(|key| weights[key] * round(v[at(key) + d])).sum::<f64>() / total
                }));
            }
        }
        out
    }
}

pub(crate) const PLAIN: Way =
    Way { block_size: 128, scattered: false, chunk: 1, threads: 1, neighbour: 0 };

pub(crate) fn shapes() -> impl Strategy<Value = Shape> {
    (
        1usize..4,
        prop::sample::select(vec![1usize, 2, 5, 8]),
        prop::sample::select(vec![16usize, 64, 80, 96, 128, 256]),
        any::<bool>(),
    )
        .prop_map(|(num_kv_heads, groups, head_dim, rounded)| Shape {
            num_kv_heads,
            groups,
            head_dim,
            rounded,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_tier_follows_the_definition(shape in shapes(), len in 1usize..300) {
        let want = shape.defined(len);
        let tolerance = if shape.rounded { 0.01 } else { 1e-5 };
        for kernels in tiers().into_iter().filter_map(Kernels::for_isa) {
            let got = shape.run(kernels, &Way { chunk: len, threads: 2, block_size: 32, ..PLAIN }, len);
            for (i, (&got, want)) in got.iter().zip(&want).enumerate() {
                prop_assert!((f64::from(got) - want).abs() < tolerance, "{kernels:?} {shape:?} {i}: {got} against {want}");
            }
        }
    }

    #[test]
    fn a_tokens_bits_depend_on_its_sequence_alone(
        shape in shapes(),
        len in 1usize..400,
        block_size in prop::sample::select(vec![8usize, 16, 24, 32, 64]),
        scattered in any::<bool>(),
        chunk in prop::sample::select(vec![1usize, 3, 7, 64, 1000]),
        threads in prop::sample::select(vec![1usize, 2, 3, 8]),
        neighbour in prop::sample::select(vec![0usize, 1, 33]),
    ) {
        let way = Way { block_size, scattered, chunk, threads, neighbour };
        let plain = Way { block_size: 256, ..PLAIN };
        for kernels in tiers().into_iter().filter_map(Kernels::for_isa) {
            let (got, want) = (shape.run(kernels, &way, len), shape.run(kernels, &plain, len));
            prop_assert!(
                got.iter().zip(&want).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{kernels:?} {shape:?} {way:?}"
            );
        }
    }
}

#[test]
fn what_an_earlier_owner_left_in_a_block_is_not_seen() {
    let shape = Shape { num_kv_heads: 1, groups: 1, head_dim: 16, rounded: true };
    let layout = KvLayout { block_size: 8, num_kv_heads: 1, head_dim: 16 };
    let Inputs { q, k, v } = shape.inputs(3, 1);
    let nan = vec![f32::NAN; 8 * 16];
    for kernels in all_kernels() {
        let (mut keys, mut values) = (vec![0u32; 64], vec![0u32; 64]);
        let mut kv = KvMut::Bf16 { k: &mut keys, v: &mut values };
        let owner =
            |num_tokens| [Sequence { first_token: 0, num_tokens, start_pos: 0, block_table: &[0] }];
        let pool = Pool::new(1).unwrap();
        kernels.store_kv(&pool, &layout, &mut kv, &owner(8), &nan, &nan);
        kernels.store_kv(&pool, &layout, &mut kv, &owner(3), &k, &v);
        let mut out = Vec::new();
        kernels.attention(&pool, &layout, &kv, &owner(3), &q, &mut out);
        let clean = shape.run(kernels, &Way { chunk: 3, ..PLAIN }, 3);
        assert_eq!(out, clean, "{kernels:?}");
    }
}

#[test]
fn what_is_not_finite_stays_with_those_who_see_it() {
    let len = 75;
    for (rounded, groups) in [(true, 2), (false, 2), (true, 5), (false, 1)] {
        let shape = Shape { num_kv_heads: 2, groups, head_dim: 16, rounded };
        let (kv, heads) = (shape.num_kv_heads * 16, shape.num_kv_heads * groups * 16);
        // The first or second of a pair, in a tile or its first, with others that are seen behind it.
        for (poisoned, bad) in [(1, f32::NAN), (6, f32::INFINITY), (64, f32::NAN), (71, f32::NAN)] {
            let clean = shape.inputs(len, 1);
            let mut inputs = shape.inputs(len, 1);
            inputs.k[poisoned * kv..][..kv].fill(bad);
            inputs.v[poisoned * kv..][..kv].fill(bad);
            for kernels in all_kernels() {
                let alone = shape.run_on(&clean, kernels, &PLAIN);
                for (chunk, block_size) in [(len, 128), (len, 8), (30, 24)] {
                    let way = Way { chunk, block_size, threads: 2, ..PLAIN };
                    let got = shape.run_on(&inputs, kernels, &way);
                    let (before, after) = got.split_at(poisoned * heads);
                    assert_eq!(before, &alone[..before.len()], "{kernels:?} {shape:?} {poisoned}");
                    assert!(after.iter().all(|x| x.is_nan()), "{kernels:?} {shape:?} {poisoned}");
                }
            }
        }
    }
}

/// Attends one token over a cache of two blocks.
fn attend_one(layout: KvLayout, sequences: &[Sequence<'_>]) {
    let (mut keys, mut values) = (vec![0u32; 128], vec![0u32; 128]);
    let kv = KvMut::Bf16 { k: &mut keys, v: &mut values };
    let (kernels, pool) = (Kernels::best().unwrap(), Pool::new(1).unwrap());
    let q = vec![0.0; 16 * sequences.len()];
    kernels.attention(&pool, &layout, &kv, sequences, &q, &mut Vec::new());
}

const SMALL: KvLayout = KvLayout { block_size: 8, num_kv_heads: 1, head_dim: 16 };
const ONE: Sequence<'_> =
    Sequence { first_token: 0, num_tokens: 1, start_pos: 0, block_table: &[0] };

#[test]
#[should_panic(expected = "packed one after another")]
fn sequences_that_overlap_in_the_batch_are_refused() {
    attend_one(SMALL, &[ONE; 2]);
}

#[test]
#[should_panic(expected = "token 0: block 2 of 2")]
fn a_block_that_the_cache_lacks_is_refused() {
    attend_one(SMALL, &[Sequence { block_table: &[2], ..ONE }]);
}

#[test]
#[should_panic(expected = "token 0: blocks are missing")]
fn a_block_table_that_is_too_short_is_refused() {
    attend_one(SMALL, &[Sequence { start_pos: 8, ..ONE }]);
}

#[test]
#[should_panic(expected = "a block's elements can be counted")]
fn blocks_too_large_for_any_memory_are_refused() {
    attend_one(KvLayout { block_size: 1 << 60, ..SMALL }, &[ONE]);
}

#[test]
#[should_panic(expected = "expected 16 numbers, found 32 of keys and 16 of values")]
fn more_keys_than_tokens_are_refused() {
    let (mut keys, mut values) = (vec![0.0; 128], vec![0.0; 128]);
    let mut kv = KvMut::F32 { k: &mut keys, v: &mut values };
    let (kernels, pool) = (Kernels::best().unwrap(), Pool::new(1).unwrap());
    kernels.store_kv(&pool, &SMALL, &mut kv, &[ONE], &[0.0; 32], &[0.0; 16]);
}
