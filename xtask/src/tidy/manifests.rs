//! The manifests: which crate may depend on which, one table of versions, the same lints for all.

use super::{Finding, SourceFile, Tree};

/// For each package of the workspace, those that it may depend on.
///
/// A new arrow is a change of architecture: it goes into ARCHITECTURE.md in the same commit.
const ARROWS: &[(&str, &[&str])] = &[
    ("nv-config", &[]),
    ("nv-weights", &[]),
    ("nv-kernels", &[]),
    ("nv-text", &[]),
    ("nv-qwen3", &["nv-config", "nv-weights", "nv-kernels"]),
    ("nv-synth", &["nv-config", "nv-weights", "nv-qwen3"]),
    ("nv-engine", &["nv-config", "nv-kernels", "nv-qwen3"]),
    ("nv-server", &["nv-config", "nv-text", "nv-engine"]),
    (
        "nano-vllm-rs",
        &[
            "nv-config",
            "nv-weights",
            "nv-kernels",
            "nv-text",
            "nv-qwen3",
            "nv-synth",
            "nv-engine",
            "nv-server",
        ],
    ),
    ("xtask", &["nv-config", "nv-weights", "nv-kernels", "nv-qwen3", "nv-synth", "nv-engine"]),
    (
        "nv-tests",
        &[
            "nv-config",
            "nv-weights",
            "nv-kernels",
            "nv-text",
            "nv-qwen3",
            "nv-engine",
            "nano-vllm-rs",
            "xtask",
        ],
    ),
    ("nv-fuzz", &["nv-tests"]),
    ("nv-peers", &["nano-vllm-rs"]),
    (
        "nv-benches",
        &[
            "nv-config",
            "nv-weights",
            "nv-kernels",
            "nv-text",
            "nv-qwen3",
            "nv-synth",
            "nv-engine",
            "nv-server",
            "xtask",
        ],
    ),
];

/// For packages whose examples show more than the package knows, what those may name beside it, as dev-dependencies.
const EXAMPLES: &[(&str, &[&str])] = &[("nv-server", &["candle-core", "nv-qwen3", "nv-weights"])];

/// The packages that may name an external crate whose job is theirs alone.
const HOMES: &[(&str, &[&str])] = &[
    ("anyhow", &["nano-vllm-rs", "xtask"]),
    ("axum", &["nv-server", "nv-tests", "nv-benches"]),
    (
        "candle-core",
        &[
            "nv-weights",
            "nv-qwen3",
            "nv-engine",
            "nano-vllm-rs",
            "xtask",
            "nv-tests",
            "nv-benches",
            "nv-peers",
        ],
    ),
    ("candle-nn", &["nv-weights", "nv-qwen3", "nv-benches", "nv-peers"]),
    ("clap", &["nano-vllm-rs", "xtask"]),
    ("hf-hub", &["nv-weights"]),
    ("memmap2", &["nv-weights", "nv-engine"]),
    ("llguidance", &["nv-text"]),
    ("minijinja", &["nv-text"]),
    ("tokenizers", &["nv-text"]),
    ("tokio", &["nv-engine", "nv-server", "nv-tests", "nv-benches"]),
];

pub(super) fn check(tree: &Tree) -> Vec<Finding> {
    let packages: Vec<Package<'_>> = tree.files.iter().filter_map(Package::parse).collect();
    let mut findings = Vec::new();
    for package in &packages {
        findings.extend(arrows(package, &packages));
        findings.extend(homes(package));
        findings.extend(inheritance(package));
        findings.extend(unused(package, tree));
    }
    findings.extend(unused_versions(&packages, tree));
    findings
}

/// The manifest of a member of the workspace.
struct Package<'t> {
    name: &'t str,
    manifest: &'t SourceFile,
}

/// A `key = value` line of a manifest.
struct Entry<'t> {
    line: usize,
    section: &'t str,
    key: &'t str,
    value: &'t str,
}

/// The entries of a manifest, as far as the checks need TOML. `[dependencies.name]` is an entry without a value.
fn entries(manifest: &SourceFile) -> Vec<Entry<'_>> {
    let mut section = "";
    let mut entries = Vec::new();
    for (line, text) in manifest.lines() {
        if let Some(header) = text.strip_prefix('[') {
            section = header.split(']').next().unwrap_or(header);
            if let Some((parent, key)) = section.split_once("dependencies.")
                && !key.contains('.')
            {
                let section = &section[..parent.len() + "dependencies".len()];
                entries.push(Entry { line, section, key, value: "" });
            }
        } else if let Some((key, value)) = text.split_once('=') {
            entries.push(Entry { line, section, key: key.trim(), value: value.trim() });
        }
    }
    entries
}

impl<'t> Package<'t> {
    fn parse(manifest: &'t SourceFile) -> Option<Self> {
        manifest.path.strip_suffix("/Cargo.toml")?;
        let name = entries(manifest)
            .into_iter()
            .find(|entry| entry.section == "package" && entry.key == "name")?;
        Some(Self { name: name.value.trim_matches('"'), manifest })
    }

    /// Dependencies of every kind, but for the table of a package that is a workspace of its own.
    fn dependencies(&self) -> impl Iterator<Item = Entry<'t>> {
        entries(self.manifest).into_iter().filter(|Entry { section, .. }| {
            section.ends_with("dependencies") && !section.starts_with("workspace")
        })
    }

    /// Whether one of the package's Rust files has a path into `dependency`, or re-exports it.
    fn uses(&self, dependency: &str, tree: &Tree) -> bool {
        let name = dependency.replace('-', "_");
        let forms = [format!("{name}::"), format!("use {name} as"), format!("use {name};")];
        let dir = self.manifest.path.trim_end_matches("Cargo.toml");
        tree.with_extension("rs").any(|file| {
            file.path.starts_with(dir) && forms.iter().any(|form| file.text.contains(form))
        })
    }
}

impl<'t> Entry<'t> {
    /// The crate that a dependency entry names.
    fn dependency(&self) -> &'t str {
        self.key.split('.').next().unwrap_or(self.key)
    }

    fn inherits(&self) -> bool {
        (self.key.ends_with("workspace") && self.value == "true")
            || self.value.contains("workspace = true")
    }
}

fn lookup(table: &[(&str, &'static [&'static str])], key: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(name, _)| *name == key).map(|(_, allowed)| *allowed)
}

fn arrows(package: &Package<'_>, packages: &[Package<'_>]) -> Vec<Finding> {
    let Some(allowed) = lookup(ARROWS, package.name) else {
        let message = format!(
            "give `{}` its place in the graph: ARCHITECTURE.md and xtask's ARROWS",
            package.name
        );
        return vec![package.manifest.finding(None, message)];
    };
    let mut findings = Vec::new();
    for entry in package.dependencies() {
        let to = entry.dependency();
        if is_for_examples(package, &entry) {
            continue;
        }
        if packages.iter().any(|package| package.name == to) && !allowed.contains(&to) {
            let message =
                format!("`{}` must not depend on `{to}`: see ARCHITECTURE.md", package.name);
            findings.push(package.manifest.finding(entry.line, message));
        }
    }
    findings
}

/// Whether the package itself can't name it, and its examples may.
fn is_for_examples(package: &Package<'_>, entry: &Entry<'_>) -> bool {
    let allowed = lookup(EXAMPLES, package.name).unwrap_or_default();
    entry.section == "dev-dependencies" && allowed.contains(&entry.dependency())
}

fn homes(package: &Package<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for entry in package.dependencies() {
        let Some(homes) = lookup(HOMES, entry.dependency()) else { continue };
        if !homes.contains(&package.name) && !is_for_examples(package, &entry) {
            let message = format!("`{}` is for {} only", entry.dependency(), homes.join(", "));
            findings.push(package.manifest.finding(entry.line, message));
        }
    }
    findings
}

/// Versions and lints come from the root manifest.
fn inheritance(package: &Package<'_>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = package
        .dependencies()
        .filter(|entry| !entry.inherits())
        .map(|entry| {
            let message = format!(
                "take `{}` from [workspace.dependencies]: `workspace = true`",
                entry.dependency()
            );
            package.manifest.finding(entry.line, message)
        })
        .collect();
    if !entries(package.manifest).iter().any(|entry| entry.section == "lints" && entry.inherits()) {
        findings.push(
            package.manifest.finding(None, "inherit the lints: `[lints]` with `workspace = true`"),
        );
    }
    findings
}

fn unused(package: &Package<'_>, tree: &Tree) -> Vec<Finding> {
    let unused = package.dependencies().filter(|entry| !package.uses(entry.dependency(), tree));
    unused
        .map(|entry| {
            package
                .manifest
                .finding(entry.line, format!("`{}` is not used; remove it", entry.dependency()))
        })
        .collect()
}

fn unused_versions(packages: &[Package<'_>], tree: &Tree) -> Vec<Finding> {
    let Some(root) = tree.get("Cargo.toml") else { return Vec::new() };
    let named = |name: &str| {
        packages
            .iter()
            .any(|package| package.dependencies().any(|entry| entry.dependency() == name))
    };
    let versions =
        entries(root).into_iter().filter(|entry| entry.section == "workspace.dependencies");
    versions
        .filter(|entry| !named(entry.dependency()))
        .map(|entry| {
            root.finding(entry.line, format!("no crate uses `{}`; remove it", entry.dependency()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::tests::assert_findings;
    use super::*;

    /// A manifest of `name` with `dependencies`, one a line, from line 2 on.
    fn manifest(name: &str, dependencies: &str) -> String {
        let package = format!("[package]\nname = \"{name}\"\n[lints]\nworkspace = true\n");
        format!("[dependencies]\n{dependencies}\n{package}")
    }

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let config = manifest("nv-config", "nv-qwen3.workspace = true");
        let qwen3 = manifest("nv-qwen3", "nv-config = { workspace = true }");
        let tree = [
            ("crates/nv-config/Cargo.toml", &*config),
            ("crates/nv-config/src/lib.rs", "use nv_qwen3::Model;"),
            ("crates/nv-qwen3/Cargo.toml", &qwen3),
            ("crates/nv-qwen3/src/lib.rs", "use nv_config::Qwen3Config;"),
        ];
        assert_findings(
            check,
            &tree,
            &[
                "crates/nv-config/Cargo.toml:2: `nv-config` must not depend on `nv-qwen3`: see ARCHITECTURE.md",
            ],
        );
    }

    #[test]
    fn a_package_without_a_place_in_the_graph_is_found() {
        assert_findings(
            check,
            &[("crates/nv-new/Cargo.toml", &manifest("nv-new", ""))],
            &[
                "crates/nv-new/Cargo.toml: give `nv-new` its place in the graph: ARCHITECTURE.md and xtask's ARROWS",
            ],
        );
    }

    #[test]
    fn a_crate_outside_its_home_is_found_in_any_section() {
        let text = manifest("nv-text", "")
            + "[target.'cfg(unix)'.dev-dependencies]\nhf-hub.workspace = true\n";
        assert_findings(
            check,
            &[("crates/nv-text/Cargo.toml", &text), ("crates/nv-text/src/lib.rs", "hf_hub::Api")],
            &["crates/nv-text/Cargo.toml:8: `hf-hub` is for nv-weights only"],
        );
    }

    #[test]
    fn what_examples_may_name_the_package_may_not() {
        let dependencies = "candle-core.workspace = true\nnv-qwen3.workspace = true";
        let outside = manifest("nv-server", dependencies);
        let found = |text: &str| {
            let qwen3 = manifest("nv-qwen3", "");
            let tree = [
                ("crates/nv-qwen3/Cargo.toml", &*qwen3),
                ("crates/nv-server/Cargo.toml", text),
                ("crates/nv-server/examples/a.rs", "nv_qwen3::a candle_core::b"),
            ];
            check(&Tree::of(&tree)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found(&outside.replace("[dep", "[dev-dep")), [""; 0]);
        assert_eq!(found(&outside).len(), 2);
    }

    #[test]
    fn a_version_or_a_lint_table_of_its_own_is_found() {
        let text = "[package]\nname = \"nv-text\"\n[dependencies]\nserde = \"1\"\n[dev-dependencies.half]\nversion = \"2\"\n";
        assert_findings(
            check,
            &[
                ("crates/nv-text/Cargo.toml", text),
                ("crates/nv-text/src/lib.rs", "serde::de half::bf16"),
            ],
            &[
                "crates/nv-text/Cargo.toml:4: take `serde` from [workspace.dependencies]: `workspace = true`",
                "crates/nv-text/Cargo.toml:5: take `half` from [workspace.dependencies]: `workspace = true`",
                "crates/nv-text/Cargo.toml: inherit the lints: `[lints]` with `workspace = true`",
            ],
        );
    }

    #[test]
    fn what_nothing_uses_is_found() {
        let root = "[workspace.dependencies]\nserde_json = \"1\"\nhalf = \"2\"\n";
        let text = manifest("nv-text", "serde_json.workspace = true");
        assert_findings(
            check,
            &[
                ("Cargo.toml", root),
                ("crates/nv-text/Cargo.toml", &text),
                ("crates/nv-config/src/lib.rs", "serde_json::json"),
            ],
            &[
                "crates/nv-text/Cargo.toml:2: `serde_json` is not used; remove it",
                "Cargo.toml:3: no crate uses `half`; remove it",
            ],
        );
    }
}
