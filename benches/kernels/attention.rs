//! Attention over a bfloat16 cache in blocks: decode steps after contexts of two lengths, and a prompt.

use candle_core::{DType, Device, Result, Tensor};
use criterion::Criterion;
use nv_kernels::{Kernels, KvLayout, KvMut, Pool, Sequence};
use nv_testing::values;

use super::{CANDLE_TOLERANCE, Case, HEAD_DIM, NUM_HEADS, NUM_KV_HEADS, Work, group};

const QUERY_SIZE: usize = NUM_HEADS * HEAD_DIM;
const KV_SIZE: usize = NUM_KV_HEADS * HEAD_DIM;
const GROUPS: usize = NUM_HEADS / NUM_KV_HEADS;

const BLOCK_SIZE: usize = 32;
const LAYOUT: KvLayout =
    KvLayout { block_size: BLOCK_SIZE, num_kv_heads: NUM_KV_HEADS, head_dim: HEAD_DIM };

/// Keys and values of all layers together: more than any cache holds.
const CACHE_BYTES: usize = 128 << 20;

pub(super) fn benches(criterion: &mut Criterion) {
    let pool = Pool::new(Pool::default_threads()).unwrap();
    let mut group = group(criterion, "attention");
    for (name, kv_len, num_tokens) in
        [("decode at 128", 128, 1), ("decode at 4096", 4096, 1), ("prefill of 512", 512, 512)]
    {
        let mut cache = Cache::new(Kernels::best().unwrap(), &pool, kv_len);
        let start_pos = kv_len - num_tokens;
        let q = values(num_tokens * QUERY_SIZE, 3);
        let candle = Candle::new(&cache, &q);
        let block_table = cache.block_table.clone();
        Case {
            shape: name.to_owned(),
            // Scores and sums of values; all keys and values, queries and outputs.
            work: Work {
                operations: 4 * (start_pos + 1..=kv_len).sum::<usize>() * QUERY_SIZE,
                bytes: cache.layer_bytes() + 2 * num_tokens * QUERY_SIZE * size_of::<f32>(),
            },
            num_tokens,
            row_sizes: &[QUERY_SIZE],
            // Keys come in other orders, and weights that differ in the last bit may be rounded apart.
            tolerance: 0.005,
            candle_tolerance: CANDLE_TOLERANCE,
            run: &mut |kernels: &Kernels, layer, tokens, out| {
                let sequence = Sequence {
                    first_token: 0,
                    num_tokens: tokens.len(),
                    start_pos: start_pos + tokens.start,
                    block_table: &block_table,
                };
                let q = &q[tokens.start * QUERY_SIZE..tokens.end * QUERY_SIZE];
                let kv = cache.layer(layer);
                kernels.attention(&pool, &LAYOUT, &kv, &[sequence], q, &mut out[0]);
            },
            candle: &|layer| Ok(vec![candle.attend(layer)?]),
        }
        .bench(&mut group);
    }
    group.finish();
}

/// Equal keys and values of one sequence in each of many layers.
struct Cache {
    /// As they were before they were stored, `[kv_len, KV_SIZE]`.
    k: Vec<f32>,
    v: Vec<f32>,
    layers: Vec<[Vec<u32>; 2]>,
    block_table: Vec<u32>,
}

impl Cache {
    fn new(kernels: &Kernels, pool: &Pool, kv_len: usize) -> Self {
        let (k, v) = (values(kv_len * KV_SIZE, 1), values(kv_len * KV_SIZE, 2));
        let num_blocks = kv_len.div_ceil(BLOCK_SIZE);
        let pairs = || vec![0; num_blocks * LAYOUT.block_elements() / 2];
        let mut layer = [pairs(), pairs()];
        let block_table: Vec<u32> = (0..).take(num_blocks).collect();
        let sequence = Sequence {
            first_token: 0,
            num_tokens: kv_len,
            start_pos: 0,
            block_table: &block_table,
        };
        kernels.store_kv(pool, &LAYOUT, &mut pairs_of(&mut layer), &[sequence], &k, &v);
        let mut cache = Self { k, v, layers: vec![layer], block_table };
        let num_layers = CACHE_BYTES.div_ceil(cache.layer_bytes());
        cache.layers = vec![cache.layers.remove(0); num_layers];
        cache
    }

    /// What a decode step reads.
    fn layer_bytes(&self) -> usize {
        self.layers[0].iter().map(|pairs| size_of_val(pairs.as_slice())).sum()
    }

    fn layer(&mut self, layer: usize) -> KvMut<'_> {
        let num_layers = self.layers.len();
        pairs_of(&mut self.layers[layer % num_layers])
    }
}

fn pairs_of([k, v]: &mut [Vec<u32>; 2]) -> KvMut<'_> {
    KvMut::Bf16 { k, v }
}

/// The same in candle ops, with the query heads of a KV head side by side, so that no key is repeated.
struct Candle {
    /// `[NUM_KV_HEADS, GROUPS * num_tokens, HEAD_DIM]`
    q: Tensor,
    /// `[NUM_KV_HEADS, HEAD_DIM, kv_len]` and `[NUM_KV_HEADS, kv_len, HEAD_DIM]` of each layer.
    layers: Vec<[Tensor; 2]>,
    /// `[GROUPS * num_tokens, kv_len]`; a decode step needs none.
    mask: Option<Tensor>,
}

impl Candle {
    fn new(cache: &Cache, q: &[f32]) -> Self {
        let num_tokens = q.len() / QUERY_SIZE;
        let kv_len = cache.k.len() / KV_SIZE;
        let bf16 = |x: &[f32], shape: &[usize], order: &[usize]| -> Result<Tensor> {
            Tensor::from_slice(x, shape, &Device::Cpu)?
                .permute(order)?
                .to_dtype(DType::BF16)?
                .contiguous()
        };
        let q = bf16(q, &[num_tokens, NUM_KV_HEADS, GROUPS, HEAD_DIM], &[1, 2, 0, 3])
            .and_then(|q| q.reshape((NUM_KV_HEADS, GROUPS * num_tokens, HEAD_DIM)))
            .unwrap();
        let layer = || {
            let shape = [kv_len, NUM_KV_HEADS, HEAD_DIM];
            [
                bf16(&cache.k, &shape, &[1, 2, 0]).unwrap(),
                bf16(&cache.v, &shape, &[1, 0, 2]).unwrap(),
            ]
        };
        let mask = (num_tokens > 1).then(|| {
            let visible = |row: usize, key: usize| key <= kv_len - num_tokens + row % num_tokens;
            let mask: Vec<f32> = (0..GROUPS * num_tokens)
                .flat_map(|row| (0..kv_len).map(move |key| (row, key)))
                .map(|(row, key)| if visible(row, key) { 0.0 } else { f32::NEG_INFINITY })
                .collect();
            bf16(&mask, &[GROUPS * num_tokens, kv_len], &[0, 1]).unwrap()
        });
        Self { q, layers: (0..cache.layers.len()).map(|_| layer()).collect(), mask }
    }

    /// Returns `[num_tokens, NUM_KV_HEADS, GROUPS, HEAD_DIM]`.
    fn attend(&self, layer: usize) -> Result<Tensor> {
        let [k, v] = &self.layers[layer % self.layers.len()];
        let scores = (self.q.matmul(k)? * (1.0 / (HEAD_DIM as f64).sqrt()))?;
        let scores = match &self.mask {
            Some(mask) => scores.broadcast_add(mask)?,
            None => scores,
        };
        // Sums of bfloat16 would be far off.
        let weights = candle_nn::ops::softmax_last_dim(&scores.to_dtype(DType::F32)?)?;
        let attended = weights.to_dtype(DType::BF16)?.matmul(v)?;
        attended.reshape((NUM_KV_HEADS, GROUPS, (), HEAD_DIM))?.permute([2, 0, 1, 3])
    }
}
