//! Instruction-set tiers: which ones this machine has, and which one to use.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};

/// A level of vector instructions that the kernels are written for, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust; the specification of every other tier.
    Scalar,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F.
    Avx512,
    /// AVX-512 F, BW and BF16: bfloat16 dot products in hardware.
    Avx512Bf16,
}

impl Isa {
    /// Every tier, weakest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// The strongest tier of this machine.
    pub fn detect() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Scalar)
    }

    /// Whether this machine can run the tier.
    pub fn is_available(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Scalar => true,
                Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
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

    /// The tier to use: the strongest of the machine, or the one that the variable `NV_ISA` names.
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for a name that is no tier, [`Error::IsaUnavailable`] for a tier that the machine
    /// does not have.
    pub fn from_env() -> Result<Self> {
        match std::env::var("NV_ISA") {
            Ok(name) if !name.is_empty() => {
                let isa: Self = name.parse()?;
                if isa.is_available() {
                    Ok(isa)
                } else {
                    Err(Error::IsaUnavailable { isa, best: Self::detect() })
                }
            }
            _ => Ok(Self::detect()),
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|isa| isa.to_string() == name)
            .ok_or_else(|| Error::UnknownIsa { name: name.to_owned() })
    }
}
