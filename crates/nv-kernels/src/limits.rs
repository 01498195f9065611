//! The machine's own limits, measured: what the kernels' speed is held against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::dispatch::Kernels;
use crate::linear::Precision;
use crate::pool::Pool;

/// Bytes a second that the pool's threads read together from `bytes`, each its own part from front to back.
pub fn read_bandwidth(pool: &Pool, bytes: &[u8]) -> f64 {
    let part = bytes.len().div_ceil(pool.threads()).max(1);
    let start = Instant::now();
    pool.run(bytes.len().div_ceil(part), |piece| {
        let (vectors, _) =
            bytes[piece * part..bytes.len().min((piece + 1) * part)].as_chunks::<64>();
        let mut sums = [0u64; 8];
        for vector in vectors {
            let (words, _) = vector.as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        }
        black_box(sums);
    });
    bytes.len() as f64 / start.elapsed().as_secs_f64()
}

/// Floating-point operations a second that the pool's threads do together in products of `precision`, with all
/// operands in registers. A multiplication and an addition are two.
///
/// The best of several samples, after some work that lets the processor raise its clock: a twentieth of a second in all.
pub fn product_peak(kernels: &Kernels, pool: &Pool, precision: Precision) -> f64 {
    const STEPS: usize = 500_000;
    const WARM_UP: Duration = Duration::from_millis(10);
    const SAMPLING: Duration = Duration::from_millis(50);
    let products = match (precision, &kernels.bf16_products) {
        (Precision::Bf16, Some(products)) => products,
        _ => &kernels.f32_products,
    };
    let sample = || {
        let start = Instant::now();
        pool.run(pool.threads(), |_| {
            // SAFETY: `kernels` exists only where the machine has its tier.
            #[expect(unsafe_code, reason = "kernels need their instruction set")]
            black_box(unsafe { (products.run)(STEPS) });
        });
        start.elapsed()
    };
    let start = Instant::now();
    let mut shortest = Duration::MAX;
    loop {
        let time = sample();
        if start.elapsed() >= WARM_UP {
            shortest = shortest.min(time);
        }
        if start.elapsed() >= SAMPLING {
            break;
        }
    }
    (pool.threads() * STEPS * products.operations_a_step) as f64 / shortest.as_secs_f64()
}

/// Products of one kind, over and over.
pub(crate) struct Products {
    /// Does a number of steps and returns something that depends on all of them.
    pub(crate) run: unsafe fn(usize) -> f32,
    pub(crate) operations_a_step: usize,
}
