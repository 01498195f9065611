//! The machine's roofline, measured: read bandwidth and products, which the kernels' speed is held against.

use std::hint::black_box;
use std::time::{Duration, Instant};

use crate::linear::kernel::Precision;
use crate::pool::Pool;
use crate::prefetch::LINE_BYTES;
use crate::table::Kernels;
use crate::tier::Products;

/// Bytes a second that the pool's threads read together from `bytes`, each its own part.
///
/// A thread reads its part in several streams side by side and prefetches what comes next: of a single stream alone some
/// machines read little more than half of what their memory gives.
pub fn read_bandwidth(pool: &Pool, bytes: &[u8]) -> f64 {
    const STREAMS: usize = 4;
    let (lines, _) = bytes.as_chunks::<LINE_BYTES>();
    let part = lines.len().div_ceil(pool.threads()).max(STREAMS);
    let start = Instant::now();
    pool.run(lines.len().div_ceil(part), |piece| {
        let lines = &lines[piece * part..lines.len().min((piece + 1) * part)];
        let mut streams = lines.chunks(lines.len().div_ceil(STREAMS));
        let streams: [&[[u8; LINE_BYTES]]; STREAMS] =
            std::array::from_fn(|_| streams.next().unwrap_or_default());
        let mut sums = [0u64; LINE_BYTES / 8];
        let mut add = |line: &[u8; LINE_BYTES]| {
            let (words, _) = line.as_chunks::<8>();
            for (sum, word) in sums.iter_mut().zip(words) {
                *sum = sum.wrapping_add(u64::from_le_bytes(*word));
            }
        };
        // The last stream is the shortest.
        let [.., last] = streams;
        for i in 0..last.len() {
            for stream in streams {
                prefetch(stream[i].as_ptr().wrapping_add(PREFETCH_DISTANCE));
                add(&stream[i]);
            }
        }
        for stream in streams {
            stream[last.len()..].iter().for_each(&mut add);
        }
        black_box(sums);
    });
    (lines.len() * LINE_BYTES) as f64 / start.elapsed().as_secs_f64()
}

/// Bytes between what is read and what is prefetched.
const PREFETCH_DISTANCE: usize = 1024;

/// Prefetches a line, where there is an instruction for it.
#[inline]
fn prefetch(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: every x86-64 has the instruction, and an address that isn't there does no harm.
        #[expect(unsafe_code, reason = "an intrinsic")]
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.cast());
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// Floating-point operations a second that the pool's threads do together in products of `precision`, with all
/// operands in registers. A multiplication and an addition are two.
///
/// The best of several samples, after some work that lets the processor raise its clock: a twentieth of a second in all.
pub fn product_peak(kernels: &Kernels, pool: &Pool, precision: Precision) -> f64 {
    let products = match (precision, &kernels.bf16_products) {
        (Precision::Bf16, Some(products)) => products,
        _ => &kernels.f32_products,
    };
    peak(pool, products)
}

/// Operations a second in products of 8-bit integers, as [`product_peak`] has them of floating-point numbers.
pub fn int8_product_peak(kernels: &Kernels, pool: &Pool) -> f64 {
    peak(pool, &(kernels.int8_products)())
}

/// See [`product_peak`].
fn peak(pool: &Pool, products: &Products) -> f64 {
    const STEPS: usize = 500_000;
    const WARM_UP: Duration = Duration::from_millis(10);
    const SAMPLING: Duration = Duration::from_millis(50);
    let sample = || {
        let start = Instant::now();
        pool.run(pool.threads(), |_| {
            // SAFETY: the products are of a `Kernels`, which exists only where the machine has its tier.
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
