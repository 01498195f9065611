//! Instruction-set tiers, and which ones this machine has.

use std::fmt;

/// A level of vector instructions that the kernels are written for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the specification of every other tier.
    Scalar,
    /// AVX2 with FMA and F16C.
    Avx2,
    /// The same with AVX-VNNI: 8-bit dot products in hardware.
    AvxVnni,
    /// AVX-512 F; 8-bit dot products in hardware where the machine has VNNI.
    Avx512,
    /// The same with BW and BF16: bfloat16 dot products in hardware.
    Avx512Bf16,
}

impl Isa {
    /// Every tier, weakest first.
    pub const ALL: [Self; 5] =
        [Self::Scalar, Self::Avx2, Self::AvxVnni, Self::Avx512, Self::Avx512Bf16];

    /// The fastest tier of this machine: the strongest, but for [`Self::Avx512Bf16`] on Intel's processors.
    ///
    /// They multiply bfloat16 pairs at the rate of AVX2's f32 and half of AVX-512's (measured on Emerald Rapids: 190, 191 and
    /// 381 GFLOP/s); AMD's multiply them at twice that of AVX-512's.
    pub fn detect() -> Self {
        Self::fastest(Self::is_available, is_intel())
    }

    /// Whether this machine can run the tier.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Scalar => true,
                Self::Avx2 => {
                    is_x86_feature_detected!("avx2")
                        && is_x86_feature_detected!("fma")
                        && is_x86_feature_detected!("f16c")
                }
                Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
                Self::Avx512 => Self::Avx2.is_available() && is_x86_feature_detected!("avx512f"),
                Self::Avx512Bf16 => {
                    Self::Avx512.is_available()
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512bf16")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Scalar
        }
    }

    fn fastest(is_available: impl Fn(Self) -> bool, is_intel: bool) -> Self {
        match Self::strongest(is_available) {
            Self::Avx512Bf16 if is_intel => Self::Avx512,
            strongest => strongest,
        }
    }

    /// The strongest tier of a machine that has those that `is_available` says.
    pub(crate) fn strongest(is_available: impl Fn(Self) -> bool) -> Self {
        Self::ALL.into_iter().rev().find(|isa| is_available(*isa)).unwrap_or(Self::Scalar)
    }
}

/// Whether the processor is Intel's.
fn is_intel() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        let vendor = std::arch::x86_64::__cpuid(0);
        [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avxvnni",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_detected_that_the_machine_has_and_the_weakest_is_everywhere() {
        assert!(Isa::Scalar.is_available());
        assert!(Isa::detect().is_available());
        let mut others = Isa::ALL.into_iter().filter(|isa| *isa != Isa::Avx512Bf16);
        assert!(others.all(|isa| isa <= Isa::detect() || !isa.is_available()));
    }

    #[test]
    fn the_strongest_tier_is_the_fastest_but_where_bfloat16_is_slower_than_f32() {
        for best in Isa::ALL {
            let machine = |isa| isa <= best;
            assert_eq!(Isa::fastest(machine, false), best);
            assert_eq!(Isa::fastest(machine, true), best.min(Isa::Avx512));
        }
    }
}
