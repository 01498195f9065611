//! Every tier against the definition, and the same bits whatever shares the call.

mod attention;
mod int8;
mod linear;
mod portable;
mod rows;

use nv_kernels::{Isa, Kernels, Pool};

/// Reproducible values in ±1.
fn values(len: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / f32::from(1u16 << 12) / 2048.0 - 1.0
        })
        .collect()
}

/// The tiers of this machine.
fn tiers() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|isa| isa.is_available()).collect()
}

/// The kernels of these tiers, and the portable ones where they are others.
fn all_kernels() -> Vec<&'static Kernels> {
    let mut all = Vec::new();
    for isa in tiers() {
        let kernels = Kernels::for_isa(isa).unwrap();
        all.push(kernels);
        if !std::ptr::eq(kernels, kernels.portable()) {
            all.push(kernels.portable());
        }
    }
    all
}

fn assert_same_bits(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    assert!(got.iter().zip(want).all(|(got, want)| got.to_bits() == want.to_bits()));
}

/// Holds what `run` puts out to the same bits in every tier, portable or not, with 1, 2 and 8 threads, and returns it.
fn assert_same_in_all_tiers(run: impl Fn(&Kernels, &Pool, &mut Vec<f32>)) -> Vec<f32> {
    let pools = [1, 2, 8].map(|threads| Pool::new(threads).unwrap());
    let mut scalar = Vec::new();
    run(Kernels::for_isa(Isa::Scalar).unwrap(), &pools[0], &mut scalar);
    for kernels in all_kernels() {
        for pool in &pools {
            // What an earlier call left is not seen.
            let mut out = vec![f32::NAN; 5];
            run(kernels, pool, &mut out);
            assert_same_bits(&out, &scalar);
        }
    }
    scalar
}

#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn tiers_are_said() {
    let names: Vec<String> = tiers().iter().map(Isa::to_string).collect();
    println!("tiers tested: {}", names.join(", "));
    assert_eq!(names[0], "scalar");
}
