//! Every tier against the definition, and the same bits whatever shares the call.

mod attention;
mod linear;

use nv_kernels::Isa;

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

#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn tiers_are_said() {
    let names: Vec<String> = tiers().iter().map(Isa::to_string).collect();
    println!("tiers tested: {}", names.join(", "));
    assert_eq!(names[0], "scalar");
}
