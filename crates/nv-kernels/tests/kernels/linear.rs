//! Linear layers.

use half::bf16;
use nv_kernels::{Isa, Kernels, Linear, Matrix, Pool, Precision, Scratch};
use proptest::prelude::*;

use crate::{tiers, values};

struct Case {
    num_tokens: usize,
    out_features: usize,
    in_features: usize,
    bf16_weights: bool,
    precision: Precision,
}

impl Case {
    fn input(&self) -> Vec<f32> {
        values(self.num_tokens * self.in_features, 7)
    }

    fn run(&self, isa: Isa, threads: usize, x: &[f32]) -> Vec<f32> {
        let kernels = Kernels::for_isa(isa).unwrap();
        let w = values(self.out_features * self.in_features, 3);
        let w_bf16: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let weight = if self.bf16_weights {
            Matrix::bf16(&w_bf16, self.in_features)
        } else {
            Matrix::f32(&w, self.in_features)
        };
        let mut out = vec![f32::NAN; x.len() / self.in_features * self.out_features];
        let pool = Pool::new(threads).unwrap();
        let mut linear = [Linear { weight, out: &mut out }];
        kernels.linear(&pool, x, self.precision, &mut Scratch::default(), &mut linear);
        out
    }

    /// Holds the bits of some tokens in the batch to those that they have alone, in every tier.
    fn check_bits(&self, threads: usize, tokens: impl IntoIterator<Item = usize> + Clone) {
        let (k, n) = (self.in_features, self.out_features);
        let x = self.input();
        for isa in tiers() {
            let together = self.run(isa, threads, &x);
            for token in tokens.clone() {
                let alone = self.run(isa, 1, &x[token * k..(token + 1) * k]);
                let row = &together[token * n..(token + 1) * n];
                assert!(
                    row.iter().zip(&alone).all(|(a, b)| a.to_bits() == b.to_bits()),
                    "{isa}: token {token} of {}, {n} rows of {k}",
                    self.num_tokens
                );
            }
        }
    }
}

fn modes() -> impl Strategy<Value = (bool, Precision)> {
    prop_oneof![
        Just((true, Precision::Bf16)),
        Just((true, Precision::F32)),
        Just((false, Precision::F32)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_tier_agrees_with_the_scalar_one(
        num_tokens in 1usize..40,
        out_features in 1usize..70,
        in_features in 1usize..200,
        (bf16_weights, precision) in modes(),
    ) {
        let case = Case { num_tokens, out_features, in_features, bf16_weights, precision };
        let x = case.input();
        let expected = case.run(Isa::Scalar, 1, &x);
        for isa in tiers() {
            for (i, (got, want)) in case.run(isa, 2, &x).iter().zip(&expected).enumerate() {
                prop_assert!((got - want).abs() < 1e-5 * in_features as f32, "{isa} {i}: {got} against {want}");
            }
        }
    }

    #[test]
    fn swiglu_follows_the_definition(
        num_tokens in 1usize..20,
        out_features in 1usize..70,
        in_features in 1usize..200,
    ) {
        let x = values(num_tokens * in_features, 7);
        let weights = [3, 4].map(|seed| -> Vec<bf16> {
            let w = values(out_features * in_features, seed);
            w.into_iter().map(|w| bf16::from_f32(4.0 * w)).collect()
        });
        let [gate, up] = weights.each_ref().map(|w| Matrix::bf16(w, in_features));
        let product = |w: &[bf16], x: &[f32]| -> f64 {
            w.iter().zip(x).map(|(w, &x)| w.to_f64() * f64::from(x)).sum()
        };
        let want: Vec<f64> = x
            .chunks(in_features)
            .flat_map(|x| {
                let [gate, up] = weights
                    .each_ref()
                    .map(|w| w.chunks(in_features).map(|w| product(w, x)).collect::<Vec<_>>());
                gate.into_iter().zip(up).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up)
            })
            .collect();
        for isa in tiers() {
            let (kernels, pool) = (Kernels::for_isa(isa).unwrap(), Pool::new(2).unwrap());
            let (mut scratch, mut out) = (Scratch::default(), Vec::new());
            kernels.swiglu(&pool, &x, Precision::F32, &mut scratch, (gate, up), &mut out);
            prop_assert_eq!(out.len(), want.len());
            for (i, (&got, want)) in out.iter().zip(&want).enumerate() {
                let tolerance = 1e-5 * in_features as f64 * want.abs().max(1.0);
                prop_assert!((f64::from(got) - want).abs() < tolerance, "{isa} {i}: {got} against {want}");
            }
        }
    }

    #[test]
    fn a_tokens_bits_depend_on_the_token_alone(
        num_tokens in 1usize..70,
        out_features in 1usize..70,
        in_features in 1usize..200,
        threads in prop::sample::select(vec![1usize, 2, 3, 8]),
        (bf16_weights, precision) in modes(),
    ) {
        let case = Case { num_tokens, out_features, in_features, bf16_weights, precision };
        case.check_bits(threads, 0..num_tokens);
    }
}

#[test]
fn bits_are_those_of_the_token_where_tiles_come_in_segments_and_tokens_are_far() {
    // Tiles of more than stays in the first-level cache, more tokens than stay in the second-level one.
    let sizes = [(4, 9, 9000), (7, 19, 1030), (50, 11, 2605), (130, 17, 1100), (300, 40, 1024)];
    for (num_tokens, out_features, in_features) in sizes {
        for (bf16_weights, precision) in
            [(true, Precision::Bf16), (true, Precision::F32), (false, Precision::F32)]
        {
            let case = Case { num_tokens, out_features, in_features, bf16_weights, precision };
            case.check_bits(2, [0, num_tokens / 2, num_tokens - 2, num_tokens - 1]);
        }
    }
}

#[test]
fn gate_and_up_need_not_be_stored_alike() {
    // Rows for several tasks, of which f32 has more.
    let (in_features, size, num_tokens) = (1024, 100, 5);
    let x = values(num_tokens * in_features, 7);
    let bf16s = |seed| -> Vec<bf16> {
        values(size * in_features, seed).into_iter().map(bf16::from_f32).collect()
    };
    let (gate, up) = (bf16s(3), bf16s(4));
    let widened = |w: &[bf16]| -> Vec<f32> { w.iter().map(|w| w.to_f32()).collect() };
    let (gate_f32, up_f32) = (widened(&gate), widened(&up));
    let [gate, up] = [&gate, &up].map(|w| Matrix::bf16(w, in_features));
    let [gate_f32, up_f32] = [&gate_f32, &up_f32].map(|w| Matrix::f32(w, in_features));
    for isa in tiers() {
        let (kernels, pool) = (Kernels::for_isa(isa).unwrap(), Pool::new(2).unwrap());
        let swiglu = |weights| {
            let mut out = Vec::new();
            let scratch = &mut Scratch::default();
            kernels.swiglu(&pool, &x, Precision::F32, scratch, weights, &mut out);
            out
        };
        let alike = swiglu((gate, up));
        assert_eq!(alike.len(), num_tokens * size);
        assert_eq!(swiglu((gate_f32, up)), alike, "{isa}");
        assert_eq!(swiglu((gate, up_f32)), alike, "{isa}");
    }
}

#[test]
fn bfloat16_weights_give_the_same_bits_stored_as_f32() {
    // Few tokens and many, with whole steps and without.
    for (num_tokens, in_features) in [(1, 64), (2, 77), (3, 200), (4, 1024), (9, 1030), (13, 17)] {
        let out_features = 21;
        let w: Vec<bf16> =
            values(out_features * in_features, 5).into_iter().map(bf16::from_f32).collect();
        let w_f32: Vec<f32> = w.iter().map(|w| w.to_f32()).collect();
        let x = values(num_tokens * in_features, 6);
        for isa in tiers() {
            let (kernels, pool) = (Kernels::for_isa(isa).unwrap(), Pool::new(2).unwrap());
            // Apart, and in one region.
            let (mut bf16, mut f32, mut both) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
            let (weight, weight_f32) =
                (Matrix::bf16(&w, in_features), Matrix::f32(&w_f32, in_features));
            let scratch = &mut Scratch::default();
            let mut run = |outputs: &mut [Linear<'_>]| {
                kernels.linear(&pool, &x, Precision::F32, scratch, outputs);
            };
            run(&mut [Linear { weight, out: &mut bf16 }]);
            run(&mut [Linear { weight: weight_f32, out: &mut f32 }]);
            let [first, second] = &mut both;
            run(&mut [Linear { weight: weight_f32, out: first }, Linear { weight, out: second }]);
            let bits = |out: &[f32]| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            for out in [&f32, &both[0], &both[1]] {
                assert_eq!(bits(out), bits(&bf16), "{isa}, {num_tokens} by {in_features}");
            }
        }
    }
}
