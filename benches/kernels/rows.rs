//! Norms and rotation, which take each token by itself.

use candle_core::{Device, Tensor};
use criterion::Criterion;
use nv_kernels::{Kernels, NormAndRotate, Pool};
use nv_testing::values;

use super::{CANDLE_TOLERANCE, Case, HEAD_DIM, HIDDEN_SIZE, NUM_HEADS, Work, group};

const NUM_TOKENS: [usize; 2] = [1, 512];
const EPS: f32 = 1e-6;

pub(super) fn benches(criterion: &mut Criterion) {
    let pool = Pool::new(Pool::default_threads()).unwrap();
    rms_norm(criterion, &pool);
    norm_and_rotate(criterion, &pool);
}

/// Operations an element: its square and the sum of those, the scale and the weight.
const NORM_OPERATIONS: usize = 4;
/// An element and its partner by cosine and sine, and their sum.
const ROTATE_OPERATIONS: usize = 3;

/// Of f32 elements that are read and written, beside `num_others` that are read.
fn work(num_elements: usize, num_others: usize, operations: usize) -> Work {
    Work {
        operations: operations * num_elements,
        bytes: (2 * num_elements + num_others) * size_of::<f32>(),
    }
}

fn rms_norm(criterion: &mut Criterion, pool: &Pool) {
    let mut group = group(criterion, "rms_norm");
    let weight = values(HIDDEN_SIZE, 1);
    let weight_tensor = Tensor::new(&*weight, &Device::Cpu).unwrap();
    for num_tokens in NUM_TOKENS {
        let x = values(num_tokens * HIDDEN_SIZE, 2);
        let x_tensor = Tensor::from_slice(&x, (num_tokens, HIDDEN_SIZE), &Device::Cpu).unwrap();
        Case {
            shape: format!("{num_tokens} tokens"),
            work: work(x.len(), HIDDEN_SIZE, NORM_OPERATIONS),
            num_tokens,
            row_sizes: &[HIDDEN_SIZE],
            tolerance: 1e-6,
            candle_tolerance: CANDLE_TOLERANCE,
            run: &mut |kernels: &Kernels, _, tokens, out| {
                let x = &x[tokens.start * HIDDEN_SIZE..tokens.end * HIDDEN_SIZE];
                kernels.rms_norm(pool, x, &weight, EPS, &mut out[0]);
            },
            candle: &|_| Ok(vec![candle_nn::ops::rms_norm(&x_tensor, &weight_tensor, EPS)?]),
        }
        .bench(&mut group);
    }
    group.finish();
}

/// The queries' heads.
fn norm_and_rotate(criterion: &mut Criterion, pool: &Pool) {
    const SIZE: usize = NUM_HEADS * HEAD_DIM;
    const HALF: usize = HEAD_DIM / 2;
    let mut group = group(criterion, "norm_and_rotate");
    let weight = values(HEAD_DIM, 1);
    let weight_tensor = Tensor::new(&*weight, &Device::Cpu).unwrap();
    for num_tokens in NUM_TOKENS {
        let x = values(num_tokens * SIZE, 2);
        let (sin, cos): (Vec<f32>, Vec<f32>) =
            values(num_tokens * HALF, 3).into_iter().map(|angle| (3.0 * angle).sin_cos()).unzip();
        let tensor = |x: &[f32], shape: &[usize]| Tensor::from_slice(x, shape, &Device::Cpu);
        let x_tensor = tensor(&x, &[1, num_tokens, NUM_HEADS, HEAD_DIM]).unwrap();
        let [cos_tensor, sin_tensor] =
            [&cos, &sin].map(|x| tensor(x, &[num_tokens, HALF]).unwrap());
        Case {
            shape: format!("{num_tokens} tokens"),
            work: work(x.len(), cos.len() + sin.len(), NORM_OPERATIONS + ROTATE_OPERATIONS),
            num_tokens,
            row_sizes: &[SIZE],
            tolerance: 1e-6,
            candle_tolerance: CANDLE_TOLERANCE,
            run: &mut |kernels: &Kernels, _, tokens, out| {
                let angles = tokens.start * HALF..tokens.end * HALF;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                let how = NormAndRotate { weight: &weight, eps: EPS, cos, sin };
                let x = &x[tokens.start * SIZE..tokens.end * SIZE];
                kernels.norm_and_rotate(pool, x, how, &mut out[0]);
            },
            candle: &|_| {
                let normed = candle_nn::ops::rms_norm(&x_tensor, &weight_tensor, EPS)?;
                Ok(vec![candle_nn::rotary_emb::rope_thd(&normed, &cos_tensor, &sin_tensor)?])
            },
        }
        .bench(&mut group);
    }
    group.finish();
}
