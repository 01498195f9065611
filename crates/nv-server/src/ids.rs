//! Names for answers and requests that no other has.

use std::hash::{BuildHasher, RandomState};

/// `prefix` and 128 random bits. They are unique, not secret.
pub(crate) fn unique_id(prefix: &str) -> String {
    // Each state has keys of its own.
    let random = || RandomState::new().hash_one(prefix);
    format!("{prefix}{:016x}{:016x}", random(), random())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn ids_are_unique() {
        let ids: HashSet<String> = (0..1000).map(|_| unique_id("x-")).collect();
        assert_eq!(ids.len(), 1000);
        assert!(ids.iter().all(|id| id.len() == 34 && id.starts_with("x-")));
    }
}
