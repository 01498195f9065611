//! Rules for source files, one line at a time.

use super::{Finding, SourceFile, Tree};

const MAX_LINES: usize = 600;

/// The files, and the folders, that may hold unsafe code.
const UNSAFE_PLACES: &[&str] = &["crates/nv-weights/src/mapping.rs", "crates/nv-kernels/src/"];

/// Module names that say nothing of what is inside.
const EMPTY_NAMES: &[&str] = &["common", "helpers", "misc", "prelude", "util", "utils"];

// In two halves, so that this file passes its own checks.
const UNSAFE_LINT: &str = concat!("unsafe", "_code");
const IGNORED_TEST: &str = concat!("#[", "ignore");
const MACHINE_PATHS: &[&str] = &[
    concat!("/ho", "me/"),
    concat!("/ro", "ot/"),
    concat!("/Us", "ers/"),
    concat!("/wo", "rk/"),
    concat!("/o", "pt/"),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for file in tree.with_extension("rs") {
        findings.extend(opening(file));
        findings.extend(length(file));
        for rule in [empty_name, ignored_test, unsafety] {
            findings.extend(broken(file, file.lines(), rule));
        }
        findings.extend(broken(file, production(file), glob_import));
    }
    // A vocabulary holds whatever text held.
    for file in tree.files.iter().filter(|file| !file.path.ends_with("tokenizer.json")) {
        findings.extend(broken(file, file.lines(), machine_path));
    }
    findings
}

/// The lines of `file` that break `rule`, which returns what is wrong with a line.
fn broken<'f>(
    file: &'f SourceFile,
    lines: impl Iterator<Item = (usize, &'f str)>,
    rule: fn(&str, &str) -> Option<String>,
) -> impl Iterator<Item = Finding> {
    lines.filter_map(move |(line, text)| {
        rule(&file.path, text.trim_start()).map(|message| file.finding(line, message))
    })
}

/// The lines before the tests: all but those of an inline `mod tests` at the end, none of a file of tests.
fn production(file: &SourceFile) -> impl Iterator<Item = (usize, &str)> {
    let is_test = file.path.split('/').any(|name| name == "tests" || name == "tests.rs");
    let lines: Vec<&str> = file.text.lines().collect();
    let starts_tests =
        |pair: &[&str]| pair[0] == "#[cfg(test)]" && pair[1].ends_with("mod tests {");
    let end = lines.windows(2).position(starts_tests).unwrap_or(lines.len());
    file.lines().take(if is_test { 0 } else { end })
}

fn opening(file: &SourceFile) -> Option<Finding> {
    let opens = file.text.starts_with("//!");
    (!opens).then(|| file.finding(1, "open with `//!`: what it is, and what it must not know"))
}

fn length(file: &SourceFile) -> Option<Finding> {
    let num_lines = production(file).count();
    let message = format!("{num_lines} lines before the tests; the limit is {MAX_LINES}: split it");
    (num_lines > MAX_LINES).then(|| file.finding(MAX_LINES + 1, message))
}

fn empty_name(_path: &str, code: &str) -> Option<String> {
    let module = code.trim_start_matches("pub(crate) ").trim_start_matches("pub ");
    let name = module.strip_prefix("mod ")?.split([';', ' ', '{']).next()?;
    EMPTY_NAMES
        .contains(&name)
        .then(|| format!("`mod {name}` could hold anything: name it for what it holds"))
}

fn ignored_test(_path: &str, code: &str) -> Option<String> {
    code.contains(IGNORED_TEST)
        .then(|| "an ignored test tests nothing: fix it or delete it".to_owned())
}

/// The workspace denies unsafe code, so a file that has some must name the lint.
fn unsafety(path: &str, code: &str) -> Option<String> {
    let allowed = UNSAFE_PLACES.iter().any(|place| path.starts_with(place));
    (code.contains(UNSAFE_LINT) && !allowed)
        .then(|| format!("unsafe code belongs in {}", UNSAFE_PLACES.join(", ")))
}

fn glob_import(_path: &str, code: &str) -> Option<String> {
    let import = code.trim_start_matches("pub ").strip_prefix("use ")?;
    import.contains("::*").then(|| "name what is imported instead of `*`".to_owned())
}

/// Absolute paths of somebody's machine. The same folder name inside a relative path is none.
fn machine_path(_path: &str, text: &str) -> Option<String> {
    let starts_path = |at: usize| {
        let before = text[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/~}".contains(c))
    };
    let found = |path: &&&str| text.match_indices(**path).any(|(at, _)| starts_path(at));
    let path = MACHINE_PATHS.iter().find(found)?;
    Some(format!("`{path}` is a path of one machine: make it relative"))
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_findings;
    use super::*;

    #[test]
    fn a_module_without_an_opening_is_found() {
        let message = "a.rs:1: open with `//!`: what it is, and what it must not know";
        assert_findings(check, &[("a.rs", "use std::fmt;\n//! Late.")], &[message]);
        assert_findings(check, &[("a.rs", "")], &[message]);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let lines = |num: usize| "//! Doc.\n".to_owned() + &"//\n".repeat(num - 1);
        let tests = "#[cfg(test)]\npub(crate) mod tests {\n}\n".replace('}', &"//\n".repeat(900));
        let check_file = |path, text: String, expected: &[&str]| {
            assert_findings(check, &[(path, &text)], expected);
        };
        let message =
            |num| format!("src/a.rs:601: {num} lines before the tests; the limit is 600: split it");
        check_file("src/a.rs", lines(600) + &tests, &[]);
        check_file("src/a.rs", lines(601) + &tests, &[&message(601)]);
        check_file("src/a.rs", lines(601) + "#[cfg(test)]\nmod tests;\n", &[&message(603)]);
        check_file("src/a/tests.rs", lines(900), &[]);
        check_file("crates/a/tests/b.rs", lines(900), &[]);
    }

    /// Asserts that a file with `line` as its second has exactly the finding `message`, or none.
    fn check_line(path: &str, line: &str, message: Option<&str>) {
        let expected: Vec<String> =
            message.map(|message| format!("{path}:2: {message}")).into_iter().collect();
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        assert_findings(check, &[(path, &format!("//! Doc.\n{line}\n"))], &expected);
    }

    #[test]
    fn empty_names_are_found() {
        let message = "`mod utils` could hold anything: name it for what it holds";
        check_line("src/lib.rs", "pub(crate) mod utils;", Some(message));
        check_line("src/lib.rs", "    mod utils {", Some(message));
        check_line("src/lib.rs", "mod utils_of_war;", None);
    }

    #[test]
    fn ignored_tests_are_found() {
        let message = Some("an ignored test tests nothing: fix it or delete it");
        check_line("tests/a.rs", &format!("{IGNORED_TEST}]"), message);
        check_line("src/a.rs", &format!("    {IGNORED_TEST} = \"slow\"]"), message);
    }

    #[test]
    fn unsafety_outside_its_files_is_found() {
        let line = format!("#[expect({UNSAFE_LINT}, reason = \"fast\")]");
        check_line(
            "src/fast.rs",
            &line,
            Some("unsafe code belongs in crates/nv-weights/src/mapping.rs, crates/nv-kernels/src/"),
        );
        for path in [UNSAFE_PLACES[0], "crates/nv-kernels/src/pool.rs"] {
            check_line(path, &line, None);
        }
    }

    #[test]
    fn glob_imports_outside_tests_are_found() {
        check_line(
            "src/a.rs",
            "pub use crate::error::*;",
            Some("name what is imported instead of `*`"),
        );
        check_line("crates/a/tests/a.rs", "use a::*;", None);
        check_line("src/a.rs", "\n#[cfg(test)]\nmod tests {\n    use super::*;\n}", None);
    }

    #[test]
    fn paths_of_a_machine_are_found_in_any_text() {
        for path in MACHINE_PATHS {
            let message = format!("`{path}` is a path of one machine: make it relative");
            check_line("README.md", &format!("see {path}me/models"), Some(&message));
            check_line("a.py", &format!("open(\"{path}x\")"), Some(&message));
            check_line("README.md", &format!("see docs{path}me"), None);
        }
    }
}
