//! Sizes of a core's caches, by which loops are blocked. They change how fast a result is computed, never its bits.

use std::sync::OnceLock;

/// Bytes of the caches that a core has for itself, as far as loops use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Caches {
    /// The first-level data cache.
    pub(crate) l1: usize,
    pub(crate) l2: usize,
}

/// Of a Zen 4: what is assumed where the machine doesn't tell, and the most that is used.
///
/// Larger caches don't make blocks larger: where L1 has 48 KiB and L2 2 MiB, panels and segments of such sizes made prefill of 512
/// tokens by products of bfloat16 pairs a fifth slower.
const USUAL: Caches = Caches { l1: 32 * 1024, l2: 1024 * 1024 };

impl Caches {
    /// Those of this machine.
    pub(crate) fn get() -> Self {
        static CACHES: OnceLock<Caches> = OnceLock::new();
        #[cfg(test)]
        if let Some(forced) = forced::get() {
            return forced;
        }
        *CACHES.get_or_init(|| Self::of(&levels()))
    }

    /// The sizes that `levels` tell, but usual ones for those that are larger, or that no core has.
    fn of(levels: &[Level]) -> Self {
        let size = |level: u32, usual: usize, plausible: std::ops::RangeInclusive<usize>| {
            let found = levels.iter().find(|found| found.level == level).map(|found| found.bytes);
            found.filter(|bytes| plausible.contains(bytes)).unwrap_or(usual).min(usual)
        };
        Self {
            l1: size(1, USUAL.l1, 16 * 1024..=256 * 1024),
            // More is the share of several cores, or a hypervisor's invention.
            l2: size(2, USUAL.l2, 128 * 1024..=4 * 1024 * 1024),
        }
    }
}

/// A cache that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Level {
    level: u32,
    bytes: usize,
}

#[cfg(not(target_arch = "x86_64"))]
fn levels() -> Vec<Level> {
    Vec::new()
}

/// What `cpuid` lists, in the leaf of Intel's processors or in that of AMD's: their registers mean the same.
#[cfg(target_arch = "x86_64")]
fn levels() -> Vec<Level> {
    use std::arch::x86_64::{__cpuid, __cpuid_count};

    /// Deterministic cache parameters; on AMD's processors they are zeros.
    const INTEL: u32 = 4;
    /// Cache properties.
    const AMD: u32 = 0x8000_001d;
    /// More levels than there are.
    const MOST: u32 = 16;
    for (first, leaf) in [(0, INTEL), (0x8000_0000, AMD)] {
        if __cpuid(first).eax < leaf {
            continue;
        }
        let registers = (0..MOST).map(|index| {
            let cache = __cpuid_count(leaf, index);
            [cache.eax, cache.ebx, cache.ecx]
        });
        let levels = data_caches(registers);
        if !levels.is_empty() {
            return levels;
        }
    }
    Vec::new()
}

/// The caches for data among those that `cpuid` describes in `eax`, `ebx` and `ecx`, up to the one that is none.
#[cfg(any(test, target_arch = "x86_64"))]
fn data_caches(registers: impl Iterator<Item = [u32; 3]>) -> Vec<Level> {
    const NONE: u32 = 0;
    const INSTRUCTIONS: u32 = 2;
    registers
        .take_while(|[eax, ..]| eax & 0x1f != NONE)
        .filter(|[eax, ..]| eax & 0x1f != INSTRUCTIONS)
        .filter_map(|[eax, ebx, ecx]| {
            // Ways, partitions, bytes of a line, sets: each is stored less one.
            let factors = [ebx >> 22, ebx >> 12 & 0x3ff, ebx & 0xfff, ecx];
            let bytes = factors.into_iter().try_fold(1usize, |bytes, factor| {
                bytes.checked_mul(usize::try_from(factor).ok()?.checked_add(1)?)
            })?;
            Some(Level { level: eax >> 5 & 7, bytes })
        })
        .collect()
}

/// Sizes that tests put in the place of the machine's.
#[cfg(test)]
pub(crate) mod forced {
    use std::sync::Mutex;

    use super::Caches;

    static FORCED: Mutex<Option<Caches>> = Mutex::new(None);

    pub(super) fn get() -> Option<Caches> {
        *FORCED.lock().unwrap()
    }

    /// Other tests of the process may get the same sizes: no bit depends on them.
    pub(crate) fn set(caches: Option<Caches>) {
        *FORCED.lock().unwrap() = caches;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[eax, ebx, ecx]` of a cache: its type, its level, ways, bytes of a line, sets.
    fn registers(kind: u32, level: u32, ways: u32, line: u32, sets: u32) -> [u32; 3] {
        [level << 5 | kind, (ways - 1) << 22 | (line - 1), sets - 1]
    }

    #[test]
    fn sizes_are_those_that_cpuid_describes() {
        let check = |described: &[[u32; 3]], l1, l2| {
            let levels = data_caches(described.iter().copied());
            assert_eq!(Caches::of(&levels), Caches { l1, l2 }, "{described:x?}");
        };
        let instructions = registers(2, 1, 8, 64, 64);
        let end = [0; 3];
        // Sapphire Rapids, as its processors say it themselves.
        let sapphire_rapids =
            [[0xfc00_4121, 0x02c0_003f, 0x3f], instructions, [0xfc01_c143, 0x03c0_003f, 0x7ff]];
        check(&sapphire_rapids, USUAL.l1, USUAL.l2);
        let small = [registers(1, 1, 8, 64, 32), instructions, registers(3, 2, 8, 64, 1024)];
        check(&small, 16 << 10, 512 << 10);
        let zen_4 = [
            registers(1, 1, 8, 64, 64),
            instructions,
            registers(3, 2, 8, 64, 2048),
            registers(3, 3, 16, 64, 32768),
        ];
        check(&zen_4, USUAL.l1, USUAL.l2);
        // What comes after the end is nothing; so is a size that no core has.
        check(&[end, registers(1, 1, 12, 64, 64)], USUAL.l1, USUAL.l2);
        check(&[registers(1, 1, 1, 1, 1), registers(3, 2, 4, 64, 1024)], USUAL.l1, 256 << 10);
        check(&[registers(1, 1, 12, 64, 64), registers(3, 2, 16, 64, 16384)], USUAL.l1, USUAL.l2);
        check(&[[1 << 5 | 1, u32::MAX, u32::MAX]], USUAL.l1, USUAL.l2);
        check(&[], USUAL.l1, USUAL.l2);
    }

    #[test]
    fn a_machine_has_plausible_caches() {
        let Caches { l1, l2 } = Caches::of(&levels());
        assert!((16 << 10..=256 << 10).contains(&l1) && l1 <= l2, "{l1}, {l2}");
    }
}
