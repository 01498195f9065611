//! Which names from users and servers may become parts of paths and addresses.

use crate::error::{Error, Result};

/// Checks that `model_id` is `name` or `owner/name` as the hub allows them.
pub(super) fn check_model_id(model_id: &str) -> Result<()> {
    const MAX_BYTES: usize = 96;
    let parts: Vec<_> = model_id.split('/').collect();
    let valid = model_id.len() <= MAX_BYTES
        && parts.len() <= 2
        && parts.iter().all(|part| is_plain(part, "-_.") && !part.starts_with(['-', '.']))
        && !model_id.contains("--")
        && !model_id.contains("..");
    if valid { Ok(()) } else { Err(Error::ModelId { model_id: model_id.into() }) }
}

/// Checks that `revision` is a branch, a tag, a commit or a path like `refs/pr/1`.
pub(super) fn check_revision(revision: &str) -> Result<()> {
    const MAX_BYTES: usize = 200;
    let valid = revision.len() <= MAX_BYTES
        && revision.split('/').all(|part| is_plain(part, "-_.+=@~,") && !part.starts_with('.'));
    if valid { Ok(()) } else { Err(Error::Revision { revision: revision.into() }) }
}

/// Whether `text` is the full hash of a commit.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_lower_hex(text)
}

/// Whether `etag`, less its quotes, may name a file.
pub(super) fn is_etag(etag: &str) -> bool {
    const MAX_BYTES: usize = 200;
    etag.len() <= MAX_BYTES && is_plain(etag, "-_")
}

/// Whether an etag is the SHA-256 of the file, as it is for every file that the hub keeps outside git.
pub(super) fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && is_lower_hex(etag)
}

fn is_lower_hex(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn is_plain(text: &str, also: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_ids() {
        let check = |id: &str, valid| assert_eq!(check_model_id(id).is_ok(), valid, "{id:?}");
        for id in ["gpt2", "Qwen/Qwen3-0.6B", "a_b/c.d"] {
            check(id, true);
        }
        let long = "a".repeat(97);
        for id in [
            "", "/", "a/", "/a", "a/b/c", ".", "..", "../a", "a/..", ".a", "a/.b", "-a", "a--b",
            "a b", "a\\b", "a\0", "ä", "a?b", "a#b", "a%2Fb", "C:", &long,
        ] {
            check(id, false);
        }
    }

    #[test]
    fn revisions() {
        let check = |name: &str, valid| assert_eq!(check_revision(name).is_ok(), valid, "{name:?}");
        for name in
            ["main", "v1.0", "refs/pr/12", "0123456789abcdef0123456789abcdef01234567", "a+b"]
        {
            check(name, true);
        }
        let long = "a".repeat(201);
        for name in [
            "", "/", "/main", "main/", "a//b", "..", "../x", "a/../b", ".git", "a b", "a\\b",
            "a\0", "a?b", &long,
        ] {
            check(name, false);
        }
    }

    #[test]
    fn etags() {
        let check = |etag: &str, valid| assert_eq!(is_etag(etag), valid, "{etag:?}");
        let long = "a".repeat(201);
        check("5d41402abc4b2a76b9719d911017c592-3", true);
        for etag in
            ["", ".", "..", "../x", "a/b", "/a", "a\\b", "a.incomplete", "a\0", "a b", &long]
        {
            check(etag, false);
        }
    }

    #[test]
    fn hashes() {
        assert!(is_commit(&"0a".repeat(20)) && !is_commit(&"0A".repeat(20)) && !is_commit("main"));
        assert!(is_sha256(&"0a".repeat(32)) && !is_sha256(&"0g".repeat(32)) && !is_sha256(""));
    }
}
