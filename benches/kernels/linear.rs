//! Linear layers in bfloat16, and in 8 and 4 bits: from one token, which memory limits, to 512, which arithmetic does.

use candle_core::{DType, Device, Tensor};
use criterion::Criterion;
use half::bf16;
use nv_kernels::{Format, Kernels, Linear, Matrix, Pool, Precision, Scratch, quantize};
use nv_testing::values;

use super::{
    CANDLE_TOLERANCE, Case, HEAD_DIM, HIDDEN_SIZE, INTERMEDIATE_SIZE, NUM_HEADS, NUM_KV_HEADS,
    VOCAB_SIZE, Work, group,
};

const NUM_TOKENS: &[usize] = &[1, 4, 16, 128, 512];

const QUERY_SIZE: usize = NUM_HEADS * HEAD_DIM;
const KV_SIZE: usize = NUM_KV_HEADS * HEAD_DIM;

pub(super) fn benches(criterion: &mut Criterion) {
    let weights = Weights::new();
    for (name, in_features, out_features, num_tokens) in [
        ("qkv_proj", HIDDEN_SIZE, &[QUERY_SIZE, KV_SIZE, KV_SIZE][..], NUM_TOKENS),
        ("o_proj", QUERY_SIZE, &[HIDDEN_SIZE], NUM_TOKENS),
        ("down_proj", INTERMEDIATE_SIZE, &[HIDDEN_SIZE], NUM_TOKENS),
        ("lm_head", HIDDEN_SIZE, &[VOCAB_SIZE], &[1]),
    ] {
        let region = Region { weights: &weights, in_features, out_features };
        region.bench_linear(criterion, name, num_tokens);
        for format in [Format::Q8, Format::Q8Group32, Format::Q4] {
            region.bench_quantized(criterion, name, format, num_tokens);
        }
    }
    let gate_and_up = [INTERMEDIATE_SIZE, INTERMEDIATE_SIZE];
    let region = Region { weights: &weights, in_features: HIDDEN_SIZE, out_features: &gate_and_up };
    region.bench_swiglu(criterion);
}

/// More weights than any cache holds: the embedding matrix, or the matrices of many layers.
struct Weights(Vec<bf16>);

impl Weights {
    fn new() -> Self {
        let scale = 1.0 / (HIDDEN_SIZE as f32).sqrt();
        let period: Vec<bf16> =
            values(1_000_003, 1).into_iter().map(|w| bf16::from_f32(w * scale)).collect();
        let mut weights = Vec::with_capacity(VOCAB_SIZE * HIDDEN_SIZE);
        while weights.len() < weights.capacity() {
            let missing = weights.capacity() - weights.len();
            weights.extend_from_slice(&period[..missing.min(period.len())]);
        }
        Self(weights)
    }
}

/// Weights that share their input.
struct Region<'a> {
    weights: &'a Weights,
    in_features: usize,
    out_features: &'a [usize],
}

impl<'a> Region<'a> {
    fn num_elements(&self) -> usize {
        self.out_features.iter().sum::<usize>() * self.in_features
    }

    fn num_layers(&self) -> usize {
        self.weights.0.len() / self.num_elements()
    }

    /// The elements of each of a layer's weights; there is always another layer.
    fn layer(&self, layer: usize) -> impl Iterator<Item = &'a [bf16]> {
        let mut end = layer % self.num_layers() * self.num_elements();
        let Self { weights, in_features, out_features } = *self;
        out_features.iter().map(move |size| {
            let start = end;
            end += size * in_features;
            &weights.0[start..end]
        })
    }

    /// Weights of bfloat16, inputs and `num_outputs` outputs of f32 a token; the products.
    fn work(&self, num_tokens: usize, num_outputs: usize) -> Work {
        let num_weights = self.num_elements();
        let num_activations = num_tokens * (self.in_features + num_outputs);
        Work {
            operations: 2 * num_tokens * num_weights,
            bytes: num_weights * size_of::<bf16>() + num_activations * size_of::<f32>(),
        }
    }

    fn candle_layers(&self) -> Vec<Vec<Tensor>> {
        let tensor = |weight: &[bf16]| {
            let shape = (weight.len() / self.in_features, self.in_features);
            Tensor::from_slice(weight, shape, &Device::Cpu).unwrap()
        };
        (0..self.num_layers()).map(|layer| self.layer(layer).map(tensor).collect()).collect()
    }

    /// Inputs of some tokens, for kernels and for candle.
    fn input(&self, num_tokens: usize) -> (Vec<f32>, Tensor) {
        let x = values(num_tokens * self.in_features, 2);
        let tensor = Tensor::from_slice(&x, (num_tokens, self.in_features), &Device::Cpu).unwrap();
        (x, tensor.to_dtype(DType::BF16).unwrap())
    }

    fn bench_linear(&self, criterion: &mut Criterion, name: &str, num_tokens: &[usize]) {
        let pool = Pool::new(Pool::default_threads()).unwrap();
        let layers = Layers {
            layer: &|layer| self.layer(layer).map(|w| Matrix::bf16(w, self.in_features)).collect(),
            bytes: self.num_elements() * size_of::<bf16>(),
            tolerance: 1e-5,
            candle_tolerance: CANDLE_TOLERANCE,
        };
        self.bench_layers(criterion, name, &pool, num_tokens, layers);
    }

    /// The same over weights that are quantised to `format`, beside candle's in bfloat16.
    fn bench_quantized(
        &self,
        criterion: &mut Criterion,
        name: &str,
        format: Format,
        num_tokens: &[usize],
    ) {
        let pool = Pool::new(Pool::default_threads()).unwrap();
        let packed = Packed::new(&pool, format, self);
        let layers = Layers {
            layer: &|layer| packed.layer(layer).collect(),
            bytes: packed.layer_bytes,
            // The same bits.
            tolerance: 0.0,
            // An error of 4 bits is some 7 % of an output's size; of many outputs one has several times as much.
            candle_tolerance: if format == Format::Q4 { 0.12 } else { CANDLE_TOLERANCE },
        };
        let name = format!("{name}_{}", format.name());
        self.bench_layers(criterion, &name, &pool, num_tokens, layers);
    }

    fn bench_layers(
        &self,
        criterion: &mut Criterion,
        name: &str,
        pool: &Pool,
        num_tokens: &[usize],
        weights: Layers<'_>,
    ) {
        let mut scratch = Scratch::default();
        let layers = self.candle_layers();
        let mut group = group(criterion, name);
        for &num_tokens in num_tokens {
            let (x, x_tensor) = self.input(num_tokens);
            let work = self.work(num_tokens, self.out_features.iter().sum());
            let bytes = work.bytes - self.num_elements() * size_of::<bf16>() + weights.bytes;
            Case {
                shape: format!("{num_tokens} tokens"),
                work: Work { bytes, ..work },
                num_tokens,
                row_sizes: self.out_features,
                tolerance: weights.tolerance,
                candle_tolerance: weights.candle_tolerance,
                run: &mut |kernels: &Kernels, layer, tokens, outs| {
                    let weights = (weights.layer)(layer).into_iter();
                    let mut outputs: Vec<Linear<'_>> =
                        weights.zip(outs).map(|(weight, out)| Linear { weight, out }).collect();
                    let x = &x[tokens.start * self.in_features..tokens.end * self.in_features];
                    kernels.linear(pool, x, Precision::Bf16, &mut scratch, &mut outputs);
                },
                candle: &|layer| {
                    let weights = &layers[layer % layers.len()];
                    weights.iter().map(|weight| x_tensor.matmul(&weight.t()?)).collect()
                },
            }
            .bench(&mut group);
        }
        group.finish();
    }

    fn bench_swiglu(&self, criterion: &mut Criterion) {
        let pool = Pool::new(Pool::default_threads()).unwrap();
        let mut scratch = Scratch::default();
        let layers = self.candle_layers();
        let mut group = group(criterion, "gate_up_swiglu");
        for &num_tokens in NUM_TOKENS {
            let (x, x_tensor) = self.input(num_tokens);
            Case {
                shape: format!("{num_tokens} tokens"),
                work: self.work(num_tokens, INTERMEDIATE_SIZE),
                num_tokens,
                row_sizes: &[INTERMEDIATE_SIZE],
                tolerance: 1e-5,
                candle_tolerance: CANDLE_TOLERANCE,
                run: &mut |kernels: &Kernels, layer, tokens, out| {
                    let mut weights =
                        self.layer(layer).map(|weight| Matrix::bf16(weight, self.in_features));
                    let gate_and_up = (weights.next().unwrap(), weights.next().unwrap());
                    let x = &x[tokens.start * self.in_features..tokens.end * self.in_features];
                    let out = &mut out[0];
                    kernels.swiglu(&pool, x, Precision::Bf16, &mut scratch, gate_and_up, out);
                },
                candle: &|layer| {
                    let weights = &layers[layer % layers.len()];
                    let gate = x_tensor.matmul(&weights[0].t()?)?.silu()?;
                    Ok(vec![(gate * x_tensor.matmul(&weights[1].t()?)?)?])
                },
            }
            .bench(&mut group);
        }
        group.finish();
    }
}

/// The layers of a region as kernels read them.
struct Layers<'a> {
    /// The weights of a layer; there is always another layer.
    layer: &'a dyn Fn(usize) -> Vec<Matrix<'a>>,
    /// Of a layer's weights.
    bytes: usize,
    /// How far a tier may be from the scalar one.
    tolerance: f32,
    /// How far candle may be from it, over weights in bfloat16.
    candle_tolerance: f32,
}

/// All layers of a region, quantised, in bytes that start with a cache line.
struct Packed<'a> {
    format: Format,
    region: &'a Region<'a>,
    lines: Vec<[u8; LINE_BYTES]>,
    start: usize,
    layer_bytes: usize,
}

/// What formats are aligned to at most.
const LINE_BYTES: usize = 64;

impl<'a> Packed<'a> {
    fn new(pool: &Pool, format: Format, region: &'a Region<'a>) -> Self {
        let sizes = region.out_features.iter();
        let layer_bytes: usize =
            sizes.map(|&size| format.matrix_bytes(size, region.in_features).unwrap()).sum();
        let len = region.num_layers() * layer_bytes;
        let lines = vec![[0; LINE_BYTES]; len.div_ceil(LINE_BYTES) + 1];
        let start = lines.as_flattened().as_ptr().align_offset(LINE_BYTES);
        let mut packed = Self { format, region, lines, start, layer_bytes };
        for layer in 0..region.num_layers() {
            let mut start = packed.start + layer * layer_bytes;
            for weight in region.layer(layer) {
                let size = weight.len() / region.in_features;
                let bytes = format.matrix_bytes(size, region.in_features).unwrap();
                let row = |i: usize, out: &mut [f32]| {
                    let row = &weight[i * region.in_features..][..region.in_features];
                    for (out, value) in out.iter_mut().zip(row) {
                        *out = value.to_f32();
                    }
                };
                let out = &mut packed.lines.as_flattened_mut()[start..start + bytes];
                quantize(pool, format, size, region.in_features, &row, out).unwrap();
                start += bytes;
            }
        }
        packed
    }

    /// The weights of a layer; there is always another layer.
    fn layer(&self, layer: usize) -> impl Iterator<Item = Matrix<'_>> {
        let mut end = self.start + layer % self.region.num_layers() * self.layer_bytes;
        let in_features = self.region.in_features;
        self.region.out_features.iter().map(move |&size| {
            let start = end;
            end += self.format.matrix_bytes(size, in_features).unwrap();
            let data = &self.lines.as_flattened()[start..end];
            Matrix::checked(self.format, data, size, in_features).unwrap()
        })
    }
}
