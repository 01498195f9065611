//! Portable kernels give the same bits in every tier: what they compute here is compared with what plain Rust does.

use nv_kernels::{
    Isa, Kernels, KvLayout, KvMut, Matrix, NormAndRotate, Pool, Precision, Scratch, Sequence,
};
use proptest::prelude::*;

use crate::attention::{PLAIN, Shape, Way, shapes};
use crate::{tiers, values};

/// Numbers that tiers might treat differently: zeros, denormals, the ends of the range, what no sum may contain.
const SPECIAL: [f32; 12] = [
    0.0,
    -0.0,
    1e-40,
    -3e-45,
    f32::MIN_POSITIVE,
    -87.0,
    -87.000_01,
    88.8,
    f32::MAX,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::NAN,
];

/// The portable kernels of every tier of the machine.
fn portable_kernels() -> impl Iterator<Item = &'static Kernels> {
    tiers().into_iter().map(|isa| Kernels::for_isa(isa).unwrap().portable())
}

/// Bits, of which those of all NaN are the same.
fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN } else { *x }.to_bits()).collect()
}

/// Holds what `run` puts out to the same bits in every tier. `what` says what was run.
fn check(what: &dyn std::fmt::Debug, run: impl Fn(&Kernels) -> Vec<f32>) {
    let mut scalar = None;
    for kernels in portable_kernels() {
        let got = bits(&run(kernels));
        let want = scalar.get_or_insert_with(|| got.clone());
        let differing = got.iter().zip(&*want).position(|(got, want)| got != want);
        assert_eq!(got.len(), want.len(), "{kernels:?} {what:?}");
        if let Some(i) = differing {
            let [got, want] = [got[i], want[i]].map(f32::from_bits);
            panic!("{kernels:?} {what:?}: {got:e} at {i}, {want:e} in plain Rust");
        }
    }
}

/// Puts special numbers at some of the places.
fn poison(x: &mut [f32], places: &[(prop::sample::Index, f32)]) {
    for (place, special) in places {
        if !x.is_empty() {
            x[place.index(x.len())] = *special;
        }
    }
}

fn scale_by(x: &mut [f32], scale: f32) {
    for x in x {
        *x *= scale;
    }
}

fn poisoned() -> impl Strategy<Value = Vec<(prop::sample::Index, f32)>> {
    prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(&SPECIAL)), 0..4)
}

#[test]
fn portable_kernels_are_of_their_tier_and_portable_themselves() {
    for isa in tiers() {
        let portable = Kernels::for_isa(isa).unwrap().portable();
        assert_eq!(portable.isa(), isa);
        assert!(std::ptr::eq(portable, portable.portable()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention(
        shape in shapes(),
        len in 1usize..200,
        block_size in prop::sample::select(vec![8usize, 24, 32]),
        chunk in prop::sample::select(vec![1usize, 7, 1000]),
        magnitude in prop::sample::select(vec![1.0f32, 30.0, 1e-20, 1e19]),
        (q, k, v) in (poisoned(), poisoned(), poisoned()),
    ) {
        let mut inputs = shape.inputs(len, 1);
        scale_by(&mut inputs.q, magnitude);
        for (x, places) in [(&mut inputs.q, &q), (&mut inputs.k, &k), (&mut inputs.v, &v)] {
            poison(x, places);
        }
        let way = Way { block_size, chunk, threads: 2, ..PLAIN };
        // Other chunks and blocks than in plain Rust change nothing either.
        check(&(shape, len, &way), |kernels| {
            let plain = Way { chunk: len, block_size: 32, ..PLAIN };
            let way = if kernels.isa() == Isa::Scalar { &plain } else { &way };
            shape.run_on(&inputs, kernels, way)
        });
    }

    #[test]
    fn keys_and_values_that_are_stored(
        head_dim in prop::sample::select(vec![16usize, 80, 128]),
        num_tokens in 1usize..40,
        scale in prop::sample::select(vec![1.0f32, 1e-38, 3e38]),
        (k_places, v_places) in (poisoned(), poisoned()),
    ) {
        let layout = KvLayout { block_size: 8, num_kv_heads: 2, head_dim };
        let blocks: Vec<u32> = (0..5).collect();
        let sequence = Sequence { first_token: 0, num_tokens, start_pos: 0, block_table: &blocks };
        let mut inputs = [1, 2].map(|seed| values(num_tokens * 2 * head_dim, seed));
        let [k, v] = &mut inputs;
        scale_by(k, scale);
        scale_by(v, scale);
        poison(k, &k_places);
        poison(v, &v_places);
        let stored = |kernels: &Kernels| {
            let [mut keys, mut stored] = [(); 2].map(|()| vec![0u32; 5 * layout.block_elements() / 2]);
            let mut kv = KvMut::Bf16 { k: &mut keys, v: &mut stored };
            kernels.store_kv(&Pool::new(2).unwrap(), &layout, &mut kv, &[sequence], k, v);
            // As they are, NaN included: rounding is of integers.
            [keys, stored]
        };
        let scalar = stored(portable_kernels().next().unwrap());
        for kernels in portable_kernels() {
            prop_assert_eq!(&stored(kernels), &scalar, "{:?}", kernels);
        }
    }

    #[test]
    fn norms_rotation_and_sums(
        (num_rows, half) in (1usize..9, 1usize..90),
        scale in prop::sample::select(vec![1.0f32, 1e-23, 1e-38, 1e19, 1e38]),
        (x_places, weight_places) in (poisoned(), poisoned()),
    ) {
        let size = 2 * half;
        let (mut x, mut weight) = (values(num_rows * size, 1), values(size, 2));
        scale_by(&mut x, scale);
        poison(&mut x, &x_places);
        poison(&mut weight, &weight_places);
        let (cos, sin) = (values(num_rows * half, 3), values(num_rows * half, 4));
        let how = NormAndRotate { weight: &weight, eps: 1e-6, cos: &cos, sin: &sin };
        let pool = Pool::new(2).unwrap();
        let run = |run: &dyn Fn(&mut Vec<f32>)| {
            let mut out = Vec::new();
            run(&mut out);
            out
        };
        check(&"norm", |kernels| run(&|out| kernels.rms_norm(&pool, &x, &weight, 1e-6, out)));
        check(&"rotation", |kernels| run(&|out| kernels.norm_and_rotate(&pool, &x, how, out)));
        let y: Vec<f32> = x.iter().rev().copied().collect();
        check(&"sum", |kernels| run(&|out| kernels.add(&pool, &x, &y, out)));
        let table = Matrix::f32(&x, size);
        check(&"lookup", |kernels| run(&|out| kernels.embed(&pool, table, &[0, 0], out)));
    }

    #[test]
    fn silu(
        size in 1usize..70,
        num_tokens in 1usize..5,
        scale in prop::sample::select(vec![1.0f32, 20.0, 90.0, 1e-20, 1e-38, 1e38]),
    ) {
        // Sums with a single term that isn't 0 are exact in any order.
        let mut unit = vec![0.0; size * size];
        unit.iter_mut().step_by(size + 1).for_each(|x| *x = 1.0);
        let reversed: Vec<f32> = unit.iter().rev().copied().collect();
        let mut x = values(num_tokens * size, 1);
        scale_by(&mut x, scale);
        check(&(size, scale), |kernels| {
            let (mut scratch, mut out) = (Scratch::default(), Vec::new());
            let weights = (Matrix::f32(&unit, size), Matrix::f32(&reversed, size));
            let pool = Pool::new(2).unwrap();
            kernels.swiglu(&pool, &x, Precision::F32, &mut scratch, weights, &mut out);
            out
        });
    }
}

#[test]
fn attention_follows_the_definition() {
    for (rounded, tolerance) in [(true, 0.01), (false, 1e-5)] {
        let shape = Shape { num_kv_heads: 2, groups: 2, head_dim: 80, rounded };
        let want = shape.defined(150);
        let way = Way { chunk: 150, ..PLAIN };
        for kernels in portable_kernels() {
            let got = shape.run_on(&shape.inputs(150, 1), kernels, &way);
            assert_eq!(got.len(), want.len());
            for (i, (&got, want)) in got.iter().zip(&want).enumerate() {
                let error = (f64::from(got) - want).abs();
                assert!(error < tolerance, "{kernels:?} {i}: {got} against {want}");
            }
        }
    }
}

#[test]
fn attention_over_long_contexts() {
    for rounded in [true, false] {
        let shape = Shape { num_kv_heads: 1, groups: 2, head_dim: 64, rounded };
        let inputs = shape.inputs(1100, 3);
        let way = Way { chunk: 100, ..PLAIN };
        check(&shape, |kernels| shape.run_on(&inputs, kernels, &way));
    }
}
