//! What a manifest says, as far as the checks need it, and on which line.

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::{Finding, SourceFile};

/// A `Cargo.toml`.
pub(super) struct Manifest<'t> {
    /// `None` if it is only that of a workspace.
    pub(super) package: Option<Package<'t>>,
    /// What `[workspace.dependencies]` lists, by line.
    pub(super) versions: Vec<Dependency>,
}

/// A package of the project.
pub(super) struct Package<'t> {
    pub(super) name: String,
    pub(super) manifest: &'t SourceFile,
    /// Of every kind and for every target, by line.
    pub(super) dependencies: Vec<Dependency>,
    /// Whether its lints are those of the workspace.
    pub(super) inherits_lints: bool,
}

/// A crate that a manifest names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Dependency {
    pub(super) line: usize,
    pub(super) name: String,
    /// Whether only tests, examples and benchmarks can name it.
    pub(super) is_dev: bool,
    /// Whether its version is that of the workspace.
    pub(super) inherits: bool,
}

/// The tables of a package, or of one of its targets, that name crates.
const KINDS: [&str; 3] = ["dependencies", "dev-dependencies", "build-dependencies"];

impl<'t> Manifest<'t> {
    pub(super) fn is_at(path: &str) -> bool {
        path == "Cargo.toml" || path.ends_with("/Cargo.toml")
    }

    /// Reads `file`; where it is no TOML, returns what is to be put right.
    pub(super) fn read(file: &'t SourceFile) -> Result<Self, Finding> {
        let table = DeTable::parse(&file.text).map_err(|error| {
            let line = error.span().map(|span| line_of(file, span.start));
            file.finding(line, format!("this is no TOML: {}", error.message()))
        })?;
        let table = table.get_ref();
        let name =
            get(table, "package").and_then(|package| package.get("name")?.get_ref().as_str());
        let package = name.map(|name| Package {
            name: name.to_owned(),
            manifest: file,
            dependencies: of_all_targets(file, table),
            inherits_lints: table.get("lints").is_some_and(inherits),
        });
        let mut versions = Vec::new();
        if let Some(workspace) = get(table, "workspace") {
            extend(&mut versions, file, workspace, "dependencies");
        }
        versions.sort_by_key(|version| version.line);
        Ok(Self { package, versions })
    }
}

fn of_all_targets(file: &SourceFile, manifest: &DeTable<'_>) -> Vec<Dependency> {
    let targets = get(manifest, "target").into_iter().flat_map(DeTable::values);
    let targets = targets.filter_map(|target| target.get_ref().as_table());
    let mut dependencies = Vec::new();
    for table in [manifest].into_iter().chain(targets) {
        for kind in KINDS {
            extend(&mut dependencies, file, table, kind);
        }
    }
    dependencies.sort_by_key(|dependency| dependency.line);
    dependencies
}

/// Adds what `table.kind` lists.
fn extend(to: &mut Vec<Dependency>, file: &SourceFile, table: &DeTable<'_>, kind: &str) {
    let listed = get(table, kind).into_iter().flatten();
    to.extend(listed.map(|(name, value)| Dependency {
        line: line_of(file, name.span().start),
        name: name.get_ref().to_string(),
        is_dev: kind == "dev-dependencies",
        inherits: inherits(value),
    }));
}

fn get<'a, 'i>(table: &'a DeTable<'i>, key: &str) -> Option<&'a DeTable<'i>> {
    table.get(key)?.get_ref().as_table()
}

/// Whether a table says `workspace = true`.
fn inherits(value: &Spanned<DeValue<'_>>) -> bool {
    let workspace = value.get_ref().get("workspace");
    workspace.and_then(|value| value.get_ref().as_bool()) == Some(true)
}

/// The line that holds the byte `at`, counted from 1.
fn line_of(file: &SourceFile, at: usize) -> usize {
    1 + file.text[..at].matches('\n').count()
}

#[cfg(test)]
mod tests {
    use super::super::Tree;
    use super::*;

    #[test]
    fn every_way_to_name_a_crate_is_read_with_its_line() {
        let text = "[package]\nname = 'a'\n[lints]\nworkspace = true\n\n[dependencies]\nb.workspace = true\n\
            c = { version = \"1\", features = [\n  \"x\",\n] }\n[dev-dependencies.d]\nworkspace = true\n\
            [target.'cfg(unix)'.build-dependencies]\n\"e\" = \"1\" # workspace = true\n";
        let tree = Tree::of(&[("a/Cargo.toml", text)]);
        let package = Manifest::read(&tree.files[0]).ok().unwrap().package.unwrap();
        assert_eq!((&*package.name, package.inherits_lints), ("a", true));
        let expected = [
            (7, "b", false, true),
            (8, "c", false, false),
            (11, "d", true, true),
            (14, "e", false, false),
        ];
        let expected = expected.map(|(line, name, is_dev, inherits)| Dependency {
            line,
            name: name.to_owned(),
            is_dev,
            inherits,
        });
        assert_eq!(package.dependencies, expected);
    }

    #[test]
    fn versions_are_those_of_the_workspace() {
        let text =
            "[workspace.dependencies]\nb = '1'\na.path = 'a'\n[workspace.package]\nversion = '1'\n";
        let tree = Tree::of(&[("Cargo.toml", text)]);
        let manifest = Manifest::read(&tree.files[0]).ok().unwrap();
        assert!(manifest.package.is_none());
        let versions = manifest.versions.iter().map(|version| (version.line, &*version.name));
        assert_eq!(versions.collect::<Vec<_>>(), [(2, "b"), (3, "a")]);
    }

    #[test]
    fn what_is_no_toml_is_found() {
        let tree = Tree::of(&[("a/Cargo.toml", "[package]\nname = \n")]);
        let finding = Manifest::read(&tree.files[0]).err().unwrap().to_string();
        assert!(finding.starts_with("a/Cargo.toml:2: this is no TOML: "), "{finding}");
        assert!(Manifest::is_at("Cargo.toml") && !Manifest::is_at("a/NotCargo.toml"));
    }
}
