//! The habits that no compiler checks, held in every test run.

#[test]
fn the_tree_is_tidy() {
    let findings = xtask::tidy::check(xtask::root()).unwrap();
    let lines: Vec<String> = findings.iter().map(ToString::to_string).collect();
    assert!(lines.is_empty(), "\n{}", lines.join("\n"));
}
