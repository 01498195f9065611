//! Kernels under the roofline of their tier: what the machine allows at their operations a byte.

use nv_kernels::Isa;

use super::plot::{Curve, Look, Plot};
use crate::bench::limits::Limits;
use crate::bench::record::{Record, Row};

/// A kernel on one shape in one tier.
#[derive(Debug, PartialEq)]
pub(super) struct Kernel<'r> {
    pub(super) name: &'r str,
    pub(super) shape: &'r str,
    pub(super) isa: Isa,
    /// Operations for each byte that has to be read or written.
    pub(super) intensity: f64,
    /// Operations a second.
    pub(super) operations: f64,
    /// Bytes a second.
    pub(super) bandwidth: f64,
    /// Operations a second that the machine allows; data that a cache holds may have more.
    pub(super) roof: f64,
}

impl Kernel<'_> {
    /// The kernels of a record, by tier: its rows `kernel/shape/tier` with operations and bytes.
    pub(super) fn of(record: &Record) -> Vec<Kernel<'_>> {
        let mut kernels: Vec<Kernel<'_>> =
            record.rows.iter().filter_map(|row| Kernel::parse(row, &record.limits)).collect();
        kernels.sort_by_key(|kernel| kernel.isa);
        kernels
    }

    fn parse<'r>(row: &'r Row, limits: &Limits) -> Option<Kernel<'r>> {
        let (rest, tier) = row.name.rsplit_once('/')?;
        let (name, shape) = rest.split_once('/')?;
        let isa = tier.parse().ok()?;
        let (operations, bytes) = (row.elements? as f64, row.bytes? as f64);
        let (intensity, seconds) = (operations / bytes, row.median_ns / 1e9);
        let roof = limits.roof(isa, intensity)?;
        let (operations, bandwidth) = (operations / seconds, bytes / seconds);
        Some(Kernel { name, shape, isa, intensity, operations, bandwidth, roof })
    }
}

/// The kernels of one tier under its roof.
pub(super) fn plot(kernels: &[Kernel<'_>], limits: &Limits, isa: Isa) -> Option<Plot> {
    let peak = limits.peak(isa)?;
    let ridge = peak / limits.read_bandwidth;
    let of_tier: Vec<&Kernel<'_>> = kernels.iter().filter(|kernel| kernel.isa == isa).collect();
    let (first, last) = of_tier.iter().fold((ridge, ridge), |(first, last), kernel| {
        (kernel.intensity.min(first), kernel.intensity.max(last))
    });
    let roof = [first / 2.0, ridge, last * 2.0];
    let mut curves = vec![Curve {
        name: "what the machine allows".to_owned(),
        points: roof.map(|at| (at, peak.min(limits.read_bandwidth * at) / 1e9)).to_vec(),
        look: Look::Roof,
    }];
    for kernel in &of_tier {
        let point = (kernel.intensity, kernel.operations / 1e9);
        match curves.iter_mut().find(|curve| curve.name == kernel.name) {
            Some(curve) => curve.points.push(point),
            None => curves.push(Curve {
                name: kernel.name.to_owned(),
                points: vec![point],
                look: Look::Points,
            }),
        }
    }
    (!of_tier.is_empty()).then(|| Plot {
        title: format!("Roofline of {isa}"),
        x: "operations for each byte (FLOP/byte)",
        y: "speed (GFLOP/s)",
        curves,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::RECORD;
    use super::*;

    #[test]
    fn a_kernel_has_both_speeds_and_its_roof() {
        let record = Record::parse(RECORD).unwrap();
        let kernel = |shape, isa, intensity, operations, bandwidth, roof| Kernel {
            name: "qkv_proj",
            shape,
            isa,
            intensity,
            operations,
            bandwidth,
            roof,
        };
        // One operation a byte is bound by memory, 14 a byte by arithmetic.
        let expected = [
            kernel("1 tokens", Isa::Scalar, 1.0, 1e9, 1e9, 2e9),
            kernel("1 tokens", Isa::Avx2, 1.0, 8e9, 8e9, 10e9),
            kernel("16 tokens", Isa::Avx2, 128.0 / 9.0, 25.6e9, 1.8e9, 40e9),
        ];
        let found = Kernel::of(&record);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(
                (found.name, found.shape, found.isa),
                (expected.name, expected.shape, expected.isa)
            );
            let numbers = |kernel: &Kernel<'_>| {
                [kernel.intensity, kernel.operations, kernel.bandwidth, kernel.roof]
            };
            for (found, expected) in numbers(found).into_iter().zip(numbers(expected)) {
                assert!((found / expected - 1.0).abs() < 1e-12, "{found} {expected}");
            }
        }
    }

    #[test]
    fn a_roof_bends_at_the_ridge_and_covers_its_kernels() {
        let record = Record::parse(RECORD).unwrap();
        let kernels = Kernel::of(&record);
        let plot = |isa| plot(&kernels, &record.limits, isa);
        let avx2 = plot(Isa::Avx2).unwrap();
        assert_eq!(avx2.title, "Roofline of avx2");
        let [roof, qkv] = &avx2.curves[..] else { panic!("{:?}", avx2.curves) };
        assert_eq!(roof.points, [(0.5, 5.0), (4.0, 40.0), (2.0 * 128.0 / 9.0, 40.0)]);
        assert_eq!((&*qkv.name, qkv.points[0], qkv.points.len()), ("qkv_proj", (1.0, 8.0), 2));
        assert!(plot(Isa::Avx512).is_none());
    }
}
