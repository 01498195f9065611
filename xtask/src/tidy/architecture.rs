//! ARCHITECTURE.md is short, names every crate, and names nothing that isn't there.

use super::{Finding, SourceFile, Tree};

const FILE: &str = "ARCHITECTURE.md";
const MAX_LINES: usize = 300;

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(file) = tree.get(FILE) else {
        return vec![Finding { path: FILE.into(), line: None, message: "is missing".into() }];
    };
    let mut findings = Vec::new();
    let num_lines = file.text.lines().count();
    if num_lines > MAX_LINES {
        findings.push(
            file.finding(MAX_LINES + 1, format!("{num_lines} lines; the limit is {MAX_LINES}")),
        );
    }
    for (line, path) in paths(file) {
        if !tree.contains(path) {
            findings.push(file.finding(line, format!("`{path}` does not exist")));
        }
    }
    for manifest in tree.files.iter().filter_map(|file| file.path.strip_suffix("/Cargo.toml")) {
        if manifest.starts_with("crates/") && !file.text.contains(&format!("`{manifest}`")) {
            findings.push(file.finding(None, format!("says nothing of `{manifest}`")));
        }
    }
    findings
}

/// What stands in backticks and looks like a path: it has a slash, and only characters of plain paths.
fn paths(file: &SourceFile) -> impl Iterator<Item = (usize, &str)> {
    let is_path = |code: &&str| {
        code.contains('/') && code.chars().all(|c| c.is_ascii_alphanumeric() || "./_-".contains(c))
    };
    file.lines().flat_map(move |(line, text)| {
        text.split('`').skip(1).step_by(2).filter(is_path).map(move |code| (line, code))
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_findings;
    use super::*;

    #[test]
    fn a_path_that_does_not_exist_is_found() {
        let text = "The map is `crates/a/src/map.rs`, the graph\n`crates/a/src/graph.rs` of `crates/a`; `q / k`, `f(x/y)`.";
        let tree = [("crates/a/Cargo.toml", ""), ("crates/a/src/map.rs", ""), (FILE, text)];
        assert_findings(
            check,
            &tree,
            &["ARCHITECTURE.md:2: `crates/a/src/graph.rs` does not exist"],
        );
    }

    #[test]
    fn a_crate_that_is_not_described_is_found() {
        let tree =
            [("crates/a/Cargo.toml", ""), ("crates/ab/Cargo.toml", ""), (FILE, "`crates/ab`")];
        assert_findings(check, &tree, &["ARCHITECTURE.md: says nothing of `crates/a`"]);
    }

    #[test]
    fn it_is_there_and_short() {
        assert_findings(check, &[], &["ARCHITECTURE.md: is missing"]);
        assert_findings(check, &[(FILE, &"\n".repeat(300))], &[]);
        assert_findings(
            check,
            &[(FILE, &"\n".repeat(301))],
            &["ARCHITECTURE.md:301: 301 lines; the limit is 300"],
        );
    }
}
