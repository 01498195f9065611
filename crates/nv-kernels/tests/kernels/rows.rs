//! What is computed row by row: norms, rotation, sums, lookups.

use half::bf16;
use nv_kernels::{Kernels, Matrix, NormAndRotate, Pool};
use proptest::prelude::*;

use crate::{assert_same_bits, assert_same_in_all_tiers, tiers, values};

const EPS: f32 = 1e-6;

/// In f64, with `x` and `weight` as they are.
fn rms_norm(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let squares: f64 = x.iter().map(|&x| f64::from(x).powi(2)).sum();
    let scale = (squares / x.len() as f64 + f64::from(EPS)).sqrt().recip();
    x.iter().zip(weight).map(|(&x, &w)| f64::from(x) * scale * f64::from(w)).collect()
}

fn assert_close(got: &[f32], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, want)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(got) - want).abs() < 1e-5, "{i}: {got} against {want}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn rms_norm_follows_the_definition_with_the_same_bits_in_every_tier(
        num_rows in 0usize..40,
        size in prop_oneof![1usize..300, Just(5120)],
    ) {
        let (x, weight) = (values(num_rows * size, 1), values(size, 2));
        let got = assert_same_in_all_tiers(|kernels, pool, out| {
            kernels.rms_norm(pool, &x, &weight, EPS, out);
        });
        let want: Vec<f64> = x.chunks(size).flat_map(|x| rms_norm(x, &weight)).collect();
        assert_close(&got, &want);
    }

    #[test]
    fn norm_and_rotation_follow_the_definition_with_the_same_bits_in_every_tier(
        num_tokens in 0usize..40,
        num_heads in 1usize..9,
        half in prop_oneof![1usize..150, Just(64)],
    ) {
        let head_dim = 2 * half;
        let (x, weight) = (values(num_tokens * num_heads * head_dim, 1), values(head_dim, 2));
        let (cos, sin) = (values(num_tokens * half, 3), values(num_tokens * half, 4));
        let how = NormAndRotate { weight: &weight, eps: EPS, cos: &cos, sin: &sin };
        let got = assert_same_in_all_tiers(|kernels, pool, out| {
            kernels.norm_and_rotate(pool, &x, how, out);
        });
        let mut want = Vec::new();
        for (i, head) in x.chunks(head_dim).enumerate() {
            let normed = rms_norm(head, &weight);
            let at = |table: &[f32], d: usize| f64::from(table[i / num_heads * half + d % half]);
            want.extend((0..head_dim).map(|d| {
                // The first half turns against the second, the second with the first.
                let other = if d < half { -normed[d + half] } else { normed[d - half] };
                normed[d] * at(&cos, d) + other * at(&sin, d)
            }));
        }
        assert_close(&got, &want);
    }

    #[test]
    fn sums_and_lookups_are_exact(
        len in prop_oneof![0usize..300, Just(16 * 1024 + 1), Just(70_000)],
        size in 1usize..300,
        ids in prop::collection::vec(0u32..7, 0..100),
    ) {
        let (x, y) = (values(len, 1), values(len, 2));
        let sum = assert_same_in_all_tiers(|kernels, pool, out| kernels.add(pool, &x, &y, out));
        assert_same_bits(&sum, &x.iter().zip(&y).map(|(x, y)| x + y).collect::<Vec<_>>());

        let table: Vec<bf16> = values(7 * size, 3).into_iter().map(bf16::from_f32).collect();
        let widened: Vec<f32> = table.iter().map(|x| x.to_f32()).collect();
        let want: Vec<f32> =
            ids.iter().flat_map(|&id| &widened[id as usize * size..][..size]).copied().collect();
        for table in [Matrix::bf16(&table, size), Matrix::f32(&widened, size)] {
            let got = assert_same_in_all_tiers(|kernels, pool, out| {
                kernels.embed(pool, table, &ids, out);
            });
            assert_same_bits(&got, &want);
        }
    }
}

#[test]
fn an_id_that_is_no_row_is_refused() {
    let table = values(3 * 16, 1);
    for isa in tiers() {
        let (kernels, pool) = (Kernels::for_isa(isa).unwrap(), Pool::new(2).unwrap());
        for bad in [3, u32::MAX] {
            let look_up =
                || kernels.embed(&pool, Matrix::f32(&table, 16), &[0, bad], &mut Vec::new());
            assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(look_up)).is_err());
        }
    }
}
