//! The manifests: which crate may depend on which, one table of versions, the same lints for all.

use super::package::{Dependency, Manifest, Package};
use super::{Finding, Tree};

/// What tests share. Every package may name it as a dev-dependency, and so none that is published needs it.
const FOR_TESTS: &str = "nv-testing";

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
    (FOR_TESTS, &["nv-config", "nv-text", "nv-engine", "nv-server"]),
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
            "nv-synth",
            "nv-engine",
            "nano-vllm-rs",
            FOR_TESTS,
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
            FOR_TESTS,
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
    let (mut packages, mut versions, mut findings) = (Vec::new(), Vec::new(), Vec::new());
    for file in tree.files.iter().filter(|file| Manifest::is_at(&file.path)) {
        match Manifest::read(file) {
            Ok(manifest) => {
                packages.extend(manifest.package);
                // Those of the project; a workspace of its own has some, too.
                if file.path == "Cargo.toml" {
                    versions = manifest.versions;
                }
            }
            Err(finding) => findings.push(finding),
        }
    }
    for package in &packages {
        findings.extend(arrows(package, &packages));
        findings.extend(homes(package));
        findings.extend(inheritance(package));
        findings.extend(unused(package, tree));
    }
    let named = |name: &str| {
        let mut dependencies = packages.iter().flat_map(|package| &package.dependencies);
        dependencies.any(|dependency| dependency.name == name)
    };
    let unused = versions.iter().filter(|version| !named(&version.name));
    findings.extend(unused.map(|Dependency { name, line, .. }| Finding {
        path: "Cargo.toml".into(),
        line: Some(*line),
        message: format!("no crate uses `{name}`; remove it"),
    }));
    findings
}

impl Package<'_> {
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

fn lookup(table: &[(&str, &'static [&'static str])], key: &str) -> Option<&'static [&'static str]> {
    table.iter().find(|(name, _)| *name == key).map(|(_, allowed)| *allowed)
}

fn arrows(package: &Package<'_>, packages: &[Package<'_>]) -> Vec<Finding> {
    let Some(allowed) = lookup(ARROWS, &package.name) else {
        let message = format!(
            "give `{}` its place in the graph: ARCHITECTURE.md and xtask's ARROWS",
            package.name
        );
        return vec![package.manifest.finding(None, message)];
    };
    let is_allowed = |dependency: &Dependency| {
        let name = &*dependency.name;
        allowed.contains(&name)
            || packages.iter().all(|package| package.name != name)
            || is_for_examples(package, dependency)
            || (dependency.is_dev && name == FOR_TESTS)
    };
    let broken = package.dependencies.iter().filter(|dependency| !is_allowed(dependency));
    let finding = |Dependency { name, line, .. }: &Dependency| {
        let message =
            format!("`{}` must not depend on `{name}`: see ARCHITECTURE.md", package.name);
        package.manifest.finding(*line, message)
    };
    broken.map(finding).collect()
}

/// Whether the package itself can't name it, and its examples may.
fn is_for_examples(package: &Package<'_>, dependency: &Dependency) -> bool {
    let allowed = lookup(EXAMPLES, &package.name).unwrap_or_default();
    dependency.is_dev && allowed.contains(&&*dependency.name)
}

fn homes(package: &Package<'_>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for dependency in &package.dependencies {
        let Some(homes) = lookup(HOMES, &dependency.name) else { continue };
        if !homes.contains(&&*package.name) && !is_for_examples(package, dependency) {
            let message = format!("`{}` is for {} only", dependency.name, homes.join(", "));
            findings.push(package.manifest.finding(dependency.line, message));
        }
    }
    findings
}

/// Versions and lints come from the root manifest.
fn inheritance(package: &Package<'_>) -> Vec<Finding> {
    let own = package.dependencies.iter().filter(|dependency| !dependency.inherits);
    let finding = |Dependency { name, line, .. }: &Dependency| {
        let message = format!("take `{name}` from [workspace.dependencies]: `workspace = true`");
        package.manifest.finding(*line, message)
    };
    let mut findings: Vec<Finding> = own.map(finding).collect();
    if !package.inherits_lints {
        findings.push(
            package.manifest.finding(None, "inherit the lints: `[lints]` with `workspace = true`"),
        );
    }
    findings
}

fn unused(package: &Package<'_>, tree: &Tree) -> Vec<Finding> {
    let dependencies = package.dependencies.iter();
    let unused = dependencies.filter(|dependency| !package.uses(&dependency.name, tree));
    let finding = |Dependency { name, line, .. }: &Dependency| {
        package.manifest.finding(*line, format!("`{name}` is not used; remove it"))
    };
    unused.map(finding).collect()
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
    fn only_tests_may_name_what_tests_share() {
        let found = |name: &str, section: &str| {
            let text = manifest(name, &format!("{FOR_TESTS}.workspace = true"));
            let (testing, text) =
                (manifest(FOR_TESTS, ""), text.replace("[dependencies]", section));
            let tree = [
                ("crates/nv-testing/Cargo.toml", &*testing),
                ("crates/a/Cargo.toml", &text),
                ("crates/a/src/lib.rs", "nv_testing::values"),
            ];
            check(&Tree::of(&tree)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(found("nv-text", "[dev-dependencies]"), [""; 0]);
        let message =
            "crates/a/Cargo.toml:2: `nv-text` must not depend on `nv-testing`: see ARCHITECTURE.md";
        assert_eq!(found("nv-text", "[dependencies]"), [message]);
        assert_eq!(found("nv-tests", "[dependencies]"), [""; 0]);
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
