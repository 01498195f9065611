//! Which tier to use: the variable `NV_ISA` may name one.

use std::str::FromStr;

use crate::error::{Error, Result};
use crate::isa::Isa;

impl Isa {
    /// The tier to use: the fastest of the machine, or the one that the variable `NV_ISA` names.
    ///
    /// # Errors
    /// [`Error::UnknownIsa`] for a name that is no tier, [`Error::IsaUnavailable`] for a tier that the machine
    /// does not have.
    pub fn from_env() -> Result<Self> {
        match std::env::var_os("NV_ISA") {
            Some(name) if !name.is_empty() => {
                Self::choose(&name.to_string_lossy(), Self::is_available)
            }
            _ => Ok(Self::detect()),
        }
    }

    /// The tier that is called `name`, on a machine that has the tiers that `is_available` says.
    fn choose(name: &str, is_available: impl Fn(Self) -> bool) -> Result<Self> {
        let isa: Self = name.parse()?;
        if is_available(isa) {
            Ok(isa)
        } else {
            Err(Error::IsaUnavailable { isa, best: Self::strongest(is_available) })
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tier_is_parsed_from_its_own_name() {
        for isa in Isa::ALL {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
    }

    #[test]
    fn other_names_are_refused_with_the_choice_there_is() {
        for name in ["sse9", "AVX2", "avx-512", " avx2", "avx512bf16x", "\u{fffd}"] {
            let error = Isa::choose(name, |_| true).unwrap_err();
            assert_eq!(error, Error::UnknownIsa { name: name.into() });
            assert_eq!(
                error.to_string(),
                format!(
                    "NV_ISA: `{name}` is not an instruction-set tier; use scalar, avx2, avxvnni, avx512 or avx512bf16"
                )
            );
        }
    }

    #[test]
    fn a_tier_that_the_machine_lacks_is_refused_with_the_best_that_it_has() {
        let machine = |isa| isa <= Isa::Avx2;
        assert_eq!(Isa::choose("scalar", machine), Ok(Isa::Scalar));
        assert_eq!(Isa::choose("avx2", machine), Ok(Isa::Avx2));
        let error = Isa::choose("avx512", machine).unwrap_err();
        assert_eq!(error, Error::IsaUnavailable { isa: Isa::Avx512, best: Isa::Avx2 });
        assert_eq!(
            error.to_string(),
            "NV_ISA: this machine does not have avx512; its best tier is avx2"
        );
    }
}
