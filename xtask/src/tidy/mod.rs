//! `cargo xtask tidy`: the project's habits that no compiler checks.
//!
//! Every check is a pure function of the tree's files, so that its tests can hand it a tree that breaks the rule.

mod architecture;
mod inventory;
mod manifests;
mod package;
mod sources;

use std::fmt;
use std::fs;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use inventory::Inventory;

/// Folders that hold nothing of the project's own.
const SKIPPED: &[&str] = &[".git", ".venv", "__pycache__", "target"];

const MAX_FILE_BYTES: u64 = 9_000_000;
const MAX_TREE_BYTES: u64 = 40 << 20;

/// Something to put right, and where.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Relative to the root, with slashes.
    pub path: String,
    /// Counted from 1; `None` if it's about the file as a whole.
    pub line: Option<usize>,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, message } = self;
        match line {
            Some(line) => write!(f, "{path}:{line}: {message}"),
            None => write!(f, "{path}: {message}"),
        }
    }
}

/// Prints every finding in the repository, and an inventory of its unsafe code.
///
/// # Errors
/// If there is a finding, or the tree can't be read.
pub fn run(out: &mut dyn Write) -> Result<()> {
    let tree = Tree::at(crate::root())?;
    let findings = tree.findings();
    for finding in &findings {
        writeln!(out, "{finding}")?;
    }
    ensure!(findings.is_empty(), "{} things to tidy", findings.len());
    write!(out, "{}", Inventory::of(&tree))?;
    Ok(())
}

/// Every finding in the tree at `root`, by path.
///
/// # Errors
/// If the tree can't be read.
pub fn check(root: &Path) -> Result<Vec<Finding>> {
    Ok(Tree::at(root)?.findings())
}

/// The files of the repository.
struct Tree {
    files: Vec<SourceFile>,
}

struct SourceFile {
    /// Relative to the root, with slashes.
    path: String,
    num_bytes: u64,
    /// Empty if the file isn't text.
    text: String,
}

impl Tree {
    fn at(root: &Path) -> Result<Self> {
        let mut tree = Self { files: Vec::new() };
        tree.read(root, "")
            .with_context(|| format!("cannot read the tree at {}", root.display()))?;
        Ok(tree)
    }

    fn findings(&self) -> Vec<Finding> {
        let checks = [architecture::check, manifests::check, sources::check, sizes];
        let mut findings: Vec<Finding> = checks.into_iter().flat_map(|check| check(self)).collect();
        findings.sort();
        findings
    }

    /// Adds what is below `dir`, whose path relative to the root is `prefix`.
    fn read(&mut self, dir: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            let name = entry.file_name().into_string().ok().context("a file name is not UTF-8")?;
            let path = format!("{prefix}{name}");
            if SKIPPED.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                self.read(&entry.path(), &format!("{path}/"))?;
            } else {
                let bytes = fs::read(entry.path())?;
                let num_bytes = bytes.len() as u64;
                self.files.push(SourceFile {
                    path,
                    num_bytes,
                    text: String::from_utf8(bytes).unwrap_or_default(),
                });
            }
        }
        Ok(())
    }

    fn get(&self, path: &str) -> Option<&SourceFile> {
        self.files.iter().find(|file| file.path == path)
    }

    /// Whether `path` is a file or a folder.
    fn contains(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let below = |file: &SourceFile| {
            file.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
        };
        self.files.iter().any(|file| file.path == path || below(file))
    }

    fn with_extension(&self, extension: &str) -> impl Iterator<Item = &SourceFile> {
        self.files.iter().filter(move |file| {
            file.path.rsplit_once('.').is_some_and(|(_, found)| found == extension)
        })
    }
}

impl SourceFile {
    /// The lines, counted from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(i, line)| (i + 1, line))
    }

    fn finding(&self, line: impl Into<Option<usize>>, message: impl Into<String>) -> Finding {
        Finding { path: self.path.clone(), line: line.into(), message: message.into() }
    }
}

/// A clone stays small: it carries a demo checkpoint and reference logits, not whatever somebody left lying about.
fn sizes(tree: &Tree) -> Vec<Finding> {
    let too_large = tree.files.iter().filter(|file| file.num_bytes > MAX_FILE_BYTES);
    let mut findings: Vec<Finding> = too_large
        .map(|file| {
            file.finding(None, format!("{} bytes; the limit is {MAX_FILE_BYTES}", file.num_bytes))
        })
        .collect();
    let total: u64 = tree.files.iter().map(|file| file.num_bytes).sum();
    if total > MAX_TREE_BYTES {
        let message = format!("the tree has {total} bytes; the limit is {MAX_TREE_BYTES}");
        findings.push(Finding { path: ".".into(), line: None, message });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Tree {
        pub(super) fn of(files: &[(&str, &str)]) -> Self {
            let file = |&(path, text): &(&str, &str)| SourceFile {
                path: path.into(),
                num_bytes: text.len() as u64,
                text: text.into(),
            };
            Self { files: files.iter().map(file).collect() }
        }
    }

    /// Asserts that `check` finds exactly `expected`, in order, in a tree of `files`.
    pub(super) fn assert_findings(
        check: fn(&Tree) -> Vec<Finding>,
        files: &[(&str, &str)],
        expected: &[&str],
    ) {
        let found: Vec<String> = check(&Tree::of(files)).iter().map(Finding::to_string).collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn large_files_and_large_trees_are_found() {
        let mut tree = Tree::of(&[("a", ""), ("b", "")]);
        tree.files[0].num_bytes = MAX_FILE_BYTES;
        assert_eq!(sizes(&tree), []);
        tree.files[1].num_bytes = MAX_FILE_BYTES + 1;
        assert_eq!(sizes(&tree)[0].to_string(), "b: 9000001 bytes; the limit is 9000000");
        tree.files[0].num_bytes = MAX_TREE_BYTES;
        assert_eq!(
            sizes(&tree).last().unwrap().to_string(),
            ".: the tree has 50943041 bytes; the limit is 41943040"
        );
    }

    #[test]
    fn files_are_read_with_their_paths_and_skipped_folders_are_not() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("src/deep")).unwrap();
        fs::create_dir_all(dir.path().join("target")).unwrap();
        fs::write(dir.path().join("src/deep/lib.rs"), "//! Lib.").unwrap();
        fs::write(dir.path().join("src/weights"), [0xff, 0xfe]).unwrap();
        fs::write(dir.path().join("target/built.rs"), "").unwrap();
        let mut tree = Tree { files: Vec::new() };
        tree.read(dir.path(), "").unwrap();
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        let found: Vec<_> =
            tree.files.iter().map(|file| (&*file.path, file.num_bytes, &*file.text)).collect();
        assert_eq!(found, [("src/deep/lib.rs", 8, "//! Lib."), ("src/weights", 2, "")]);
        assert!(
            tree.contains("src/deep/") && tree.contains("src/weights") && !tree.contains("src/dee")
        );
    }
}
