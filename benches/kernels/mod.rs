//! The CPU kernels on the shapes of Qwen3-0.6B in every tier of the machine, and candle's ops: `kernel/shape/tier`.
//!
//! Each has two measures of its work, so that a roofline can be drawn: its elements are floating-point operations, a multiplication and
//! an addition two; its bytes what it has to read from memory and write there at least.
//!
//! Each result is compared with the scalar tier's before it is timed. What a decode step streams from memory, weights
//! and cached keys, is another layer's each time, so that it isn't found in a cache.

mod attention;
mod linear;
mod rows;

use std::hint::black_box;
use std::ops::Range;
use std::time::Duration;

use candle_core::{DType, Tensor};
use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, SamplingMode, Throughput};
use nv_kernels::{Isa, Kernels};

const HIDDEN_SIZE: usize = 1024;
const INTERMEDIATE_SIZE: usize = 3072;
const NUM_HEADS: usize = 16;
const NUM_KV_HEADS: usize = 8;
const HEAD_DIM: usize = 128;
const VOCAB_SIZE: usize = 151_936;

/// The scalar tier is timed, and computes more than one token, up to here: it is slow.
const MAX_SCALAR_TOKENS: usize = 16;

/// How far candle may be off, which rounds its results to bfloat16, relative to the largest value.
const CANDLE_TOLERANCE: f32 = 0.02;

pub(crate) fn benches(criterion: &mut Criterion) {
    linear::benches(criterion);
    rows::benches(criterion);
    attention::benches(criterion);
}

/// `(kernels, layer, tokens, out)`
type Run<'a> = dyn FnMut(&Kernels, usize, Range<usize>, &mut [Vec<f32>]) + 'a;

/// One kernel on one shape. Its result is a matrix `[num_tokens, size]` for each of `row_sizes`.
struct Case<'a> {
    shape: String,
    work: Work,
    num_tokens: usize,
    row_sizes: &'a [usize],
    /// How far a tier may be from the scalar one, relative to the largest value.
    tolerance: f32,
    /// How far candle may be from it.
    candle_tolerance: f32,
    /// Computes some of the tokens in some layer.
    run: &'a mut Run<'a>,
    /// The same matrices for all tokens by candle.
    candle: &'a dyn Fn(usize) -> candle_core::Result<Vec<Tensor>>,
}

/// What a kernel does at least.
#[derive(Clone, Copy)]
struct Work {
    operations: usize,
    bytes: usize,
}

impl Case<'_> {
    fn bench(self, group: &mut BenchmarkGroup<'_, WallTime>) {
        let Self { shape, work, num_tokens, row_sizes, tolerance, candle_tolerance, run, candle } =
            self;
        let [elements, bytes] = [work.operations, work.bytes].map(|count| count as u64);
        group.throughput(Throughput::ElementsAndBytes { elements, bytes });
        let scalar = Kernels::for_isa(Isa::Scalar).expect("every machine has the scalar tier");
        // A token's result is the same alone.
        let mut want = vec![Vec::new(); row_sizes.len()];
        run(scalar, 0, num_tokens - 1..num_tokens, &mut want);
        let want = last_rows(&want, 1, row_sizes);

        let mut out: Vec<Vec<f32>> =
            row_sizes.iter().map(|size| vec![f32::NAN; num_tokens * size]).collect();
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            if kernels.isa() == Isa::Scalar && num_tokens > MAX_SCALAR_TOKENS {
                continue;
            }
            let name = format!("{shape}/{}", kernels.isa());
            // What a tier didn't write would show.
            for matrix in &mut out {
                matrix.fill(f32::NAN);
            }
            run(kernels, 0, 0..num_tokens, &mut out);
            assert_close(&last_rows(&out, num_tokens, row_sizes), &want, tolerance, &name);
            let mut layer = 0;
            group.bench_function(name, |b| {
                b.iter(|| {
                    run(kernels, layer, 0..num_tokens, black_box(&mut out));
                    layer += 1;
                });
            });
        }

        let name = format!("{shape}/candle");
        let theirs: Vec<Vec<f32>> = candle(0).unwrap().iter().map(flat).collect();
        assert_close(&last_rows(&theirs, num_tokens, row_sizes), &want, candle_tolerance, &name);
        let mut layer = 0;
        group.bench_function(name, |b| {
            b.iter(|| {
                layer += 1;
                candle(layer).unwrap()
            });
        });
    }
}

fn group<'a>(criterion: &'a mut Criterion, kernel: &str) -> BenchmarkGroup<'a, WallTime> {
    let mut group = criterion.benchmark_group(kernel);
    group.sample_size(10).sampling_mode(SamplingMode::Flat);
    group.warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
    group
}

/// The last row of each matrix `[num_tokens, size]` of `matrices`.
fn last_rows(matrices: &[Vec<f32>], num_tokens: usize, row_sizes: &[usize]) -> Vec<f32> {
    let rows = matrices.iter().zip(row_sizes).flat_map(|(matrix, size)| {
        assert_eq!(matrix.len(), num_tokens * size);
        &matrix[matrix.len() - size..]
    });
    rows.copied().collect()
}

fn assert_close(got: &[f32], want: &[f32], tolerance: f32, name: &str) {
    let largest = want.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    assert!(largest > 0.0 && got.len() == want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_close = (got - want).abs() <= tolerance * largest;
        assert!(is_close, "{name}: element {i} is {got}, of the scalar tier {want}");
    }
}

fn flat(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}
