//! The corpora of the fuzz targets, replayed: what libFuzzer once found stays found.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use nv_tests::targets::{TARGETS, Target};
use xtask::root;

#[test]
fn every_input_of_every_corpus_is_taken_or_refused() {
    for (name, target) in TARGETS {
        replay(target, &root().join("tests/fuzz/corpus").join(name));
    }
}

fn replay(target: Target, corpus: &Path) {
    let files: Vec<_> = fs::read_dir(corpus)
        .unwrap_or_else(|error| panic!("{}: {error}", corpus.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(!files.is_empty(), "{} is empty", corpus.display());
    for file in files {
        #[expect(clippy::print_stdout, reason = "shown only if the test fails")]
        {
            println!("{}", file.display());
        }
        target(&fs::read(&file).unwrap());
    }
}

#[test]
fn the_fuzz_package_has_each_target_and_no_other() {
    let names = |dir: &str| -> BTreeSet<String> {
        let entries = fs::read_dir(root().join("tests/fuzz").join(dir)).unwrap();
        let stem = |path: &Path| path.file_stem().and_then(OsStr::to_str).map(str::to_owned);
        entries.map(|entry| stem(&entry.unwrap().path()).unwrap()).collect()
    };
    let expected: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(names("corpus"), expected);
    assert_eq!(names("fuzz_targets"), expected);
}
