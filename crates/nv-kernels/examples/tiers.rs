//! Every tier that this machine has, and how fast it multiplies: `cargo run --release -p nv-kernels --example tiers`.
#![expect(clippy::print_stdout, reason = "this is what the example is for")]

use std::error::Error;
use std::time::Instant;

use nv_kernels::{Isa, Kernels, Linear, Matrix, Pool, Precision, Scratch, product_peak};

const NUM_TOKENS: usize = 64;
const IN_FEATURES: usize = 1024;
const OUT_FEATURES: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let pool = Pool::new(Pool::default_threads())?;
    let weight: Vec<f32> =
        (0_u8..251).map(f32::from).cycle().take(OUT_FEATURES * IN_FEATURES).collect();
    let x = vec![0.5; NUM_TOKENS * IN_FEATURES];
    let mut out = Vec::new();
    let operations = (2 * NUM_TOKENS * IN_FEATURES * OUT_FEATURES) as f64;
    for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
        let mut scratch = Scratch::default();
        let mut multiply = || {
            let weight = Matrix::f32(&weight, IN_FEATURES);
            let mut outputs = [Linear { weight, out: &mut out }];
            let start = Instant::now();
            kernels.linear(&pool, &x, Precision::F32, &mut scratch, &mut outputs);
            start.elapsed().as_secs_f64()
        };
        let fastest = (0..5).map(|_| multiply()).fold(f64::INFINITY, f64::min);
        println!(
            "{:<10}  f32: {:>6.1} GFLOP/s of {:>6.1}",
            kernels.isa().to_string(),
            operations / fastest / 1e9,
            product_peak(kernels, &pool, Precision::F32) / 1e9,
        );
    }
    Ok(())
}
