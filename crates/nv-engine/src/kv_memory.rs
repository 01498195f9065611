//! The bytes of the KV cache: one anonymous map, on huge pages where the system has them.
//!
//! The system hands out pages as they are first written, zeroed: a large cache costs what it holds.

use std::sync::Arc;

use bytemuck::Pod;
use memmap2::MmapMut;

use crate::error::{Error, Result};

/// Zeroed memory, allocated once.
#[derive(Debug)]
pub(crate) struct KvMemory {
    map: MmapMut,
}

impl KvMemory {
    /// # Errors
    /// [`Error::KvCacheMemory`] if the system refuses so many bytes.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let refused = |source| Error::KvCacheMemory { bytes, source: Arc::new(source) };
        let map = MmapMut::map_anon(bytes).map_err(refused)?;
        // Pages of the usual size do as well, a little slower: a system without huge ones is no error.
        #[cfg(target_os = "linux")]
        let _ = map.advise(memmap2::Advice::HugePage);
        Ok(Self { map })
    }

    /// All of it. A map starts with a page, so it is aligned for any element.
    pub(crate) fn elements<E: Pod>(&mut self) -> &mut [E] {
        bytemuck::cast_slice_mut(&mut self.map)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_zero_and_keeps_what_is_written() {
        let mut memory = KvMemory::new(3 << 20).unwrap();
        let elements = memory.elements::<f32>();
        assert_eq!(elements.len(), 3 << 18);
        assert!(elements.iter().all(|&element| element == 0.0));
        elements[77] = 1.5;
        assert_eq!(memory.elements::<u32>()[77], 1.5_f32.to_bits());
    }

    #[test]
    fn what_no_system_has_is_refused() {
        let error = KvMemory::new(1 << 60).unwrap_err();
        assert_eq!(
            error.to_string(),
            "kv_cache_memory: the system refuses 1152921504606846976 bytes; ask for less"
        );
    }
}
