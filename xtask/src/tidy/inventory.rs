//! Where unsafe code is, and how much of it.

use std::fmt;

use super::Tree;

/// What the compiler doesn't check, in its forms.
const FORMS: [&str; 3] = ["unsafe {", "unsafe fn", "unsafe impl"];

/// The unsafe code of a tree, as a table by file. Code that a macro writes several times counts once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Inventory {
    /// Paths, with the number of each of [`FORMS`].
    files: Vec<(String, [usize; FORMS.len()])>,
}

impl Inventory {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut files: Vec<_> = tree
            .with_extension("rs")
            .filter(|file| file.path.starts_with("crates/"))
            .map(|file| (file.path.clone(), FORMS.map(|form| count(&file.text, form))))
            .filter(|(_, counts)| counts.iter().any(|&count| count > 0))
            .collect();
        files.sort();
        Self { files }
    }
}

/// How often `form` is code. A pointer to such a function is not one, and has no name behind it.
fn count(text: &str, form: &str) -> usize {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| line.match_indices(form).map(|(at, _)| &line[at + form.len()..]))
        .filter(|rest| !rest.starts_with('('))
        .count()
}

impl fmt::Display for Inventory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "unsafe code{:>37}{:>12}{:>8}", "blocks", "functions", "impls")?;
        let mut totals = [0; FORMS.len()];
        for (path, counts) in &self.files {
            row(f, path, *counts)?;
            for (total, count) in totals.iter_mut().zip(counts) {
                *total += count;
            }
        }
        row(f, "in all", totals)
    }
}

fn row(
    f: &mut fmt::Formatter<'_>,
    name: &str,
    [blocks, functions, impls]: [usize; 3],
) -> fmt::Result {
    writeln!(f, "  {name:<40}{blocks:>6}{functions:>12}{impls:>8}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_counts_and_talk_does_not() {
        let kernel = "//! unsafe {\nunsafe fn f() {\n    // unsafe { }\n    unsafe { a() }; unsafe { b() }\n}\n\
             unsafe impl Send for A {}\nlet p: unsafe fn(u8);\n";
        let files = [
            ("crates/b/src/lib.rs", "fn f() {}"),
            ("crates/a/src/lib.rs", kernel),
            ("xtask/src/lib.rs", "unsafe {"),
        ];
        let inventory = Inventory::of(&Tree::of(&files));
        assert_eq!(inventory.files, [("crates/a/src/lib.rs".to_owned(), [2, 1, 1])]);
        let table = inventory.to_string();
        assert_eq!(table.lines().count(), 3, "{table}");
        assert!(table.ends_with("2           1       1\n"), "{table}");
    }
}
