//! The committed references: our logits are transformers' logits, and a model that differs is found out.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use nv_kernels::Isa;
use nv_weights::ModelFiles;
use serde_json::{Value, json};
use tempfile::TempDir;
use xtask::cases::{CASES, Case, references_dir};
use xtask::reference::Reference;
use xtask::verify::{MODES, Report, deviation, tiers, verify, verify_case};

use crate::copies::{copy_model, demo_with, start_of};

fn case(name: &str) -> &'static Case {
    CASES.iter().find(|case| case.name == name).unwrap()
}

fn reference(case: &Case) -> Reference {
    Reference::read(&case.reference_path()).unwrap()
}

#[test]
fn every_reference_is_met() {
    let best = [Isa::detect()];
    let reports: Vec<Report> = CASES.iter().map(|case| verify_case(case, &best).unwrap()).collect();
    let failed: Vec<String> =
        reports.iter().filter(|report| !report.passed()).map(Report::to_string).collect();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

/// The whole of it is `cargo xtask verify`; here prompts are short.
#[test]
#[expect(clippy::print_stdout, reason = "a run says what it covered")]
fn every_tier_meets_the_references_with_the_same_bits_whatever_the_way() {
    const NUM_TOKENS: usize = 24;
    let tiers = tiers();
    println!("tiers verified: {tiers:?}");
    for name in ["demo", "tied-gqa2"] {
        let case = case(name);
        let scratch = tempfile::tempdir().unwrap();
        let files = ModelFiles::from_dir(case.checkpoint(scratch.path()).unwrap()).unwrap();
        let mut reference = reference(case);
        reference.input_ids.truncate(NUM_TOKENS);
        reference.logits_f32.truncate(NUM_TOKENS * reference.vocab_size);
        reference.logits_bf16.truncate(NUM_TOKENS * reference.vocab_size);
        reference.greedy = None;

        let report = verify(name, &files, &reference, true, &tiers).unwrap();
        assert!(report.passed() && report.why_bits_may_differ.is_none(), "{report}");
        for tier in &report.tiers {
            let others = tier.rows.iter().filter(|row| row.num_other_bits == Some(0)).count();
            assert_eq!(others, 2 * (MODES.len() - 1), "{report}");
        }
    }
}

#[test]
fn bits_that_differ_are_counted_where_they_are_not_promised() {
    let report = verify_case(case("untied-gqa1-narrow-heads"), &[Isa::Scalar]).unwrap();
    let reason = report.why_bits_may_differ.as_deref();
    assert_eq!(reason, Some("head_dim 8 is no multiple of 16, so candle attends"));
    assert!(report.passed(), "{report}");
    let others: usize = report.tiers[0].rows.iter().filter_map(|row| row.num_other_bits).sum();
    assert!(others > 0, "candle's bits stay the same: promise them\n{report}");
}

#[test]
fn the_folder_holds_the_files_of_the_cases_and_no_others() {
    let stem = |path: PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        name.split('.').next().unwrap().to_owned()
    };
    let files = fs::read_dir(references_dir()).unwrap().map(|entry| stem(entry.unwrap().path()));
    let names = CASES.iter().map(|case| case.name.to_owned());
    assert_eq!(files.collect::<BTreeSet<_>>(), names.collect());
}

#[test]
fn tolerances_are_absolute_because_random_logits_have_unit_scale() {
    for case in CASES.iter().filter(|case| case.name != "demo") {
        let scale = deviation(&reference(case).logits_f32);
        assert!((0.8..1.25).contains(&scale), "{}: {scale}", case.name);
    }
}

#[test]
fn the_demo_is_compared_at_length() {
    let reference = reference(case("demo"));
    assert!(reference.input_ids.len() >= 256);
    assert_eq!(reference.greedy.unwrap().1.len(), 128);
}

/// The verdict on `files` by their logits alone.
fn verify_logits(case: &Case, files: &ModelFiles) -> Report {
    let mut reference = reference(case);
    reference.greedy = None;
    verify(case.name, files, &reference, false, &[Isa::detect()]).unwrap()
}

#[test]
fn one_changed_weight_of_the_demo_is_found_by_its_logits() {
    let case = case("demo");
    let (_dir, files) = demo_with(|bytes| {
        let start = start_of("model.layers.3.mlp.up_proj.weight", bytes);
        bytes[start + 1] ^= 0x80; // the sign of the first element
    });
    let report = verify_logits(case, &files);
    assert!(!report.same_checkpoint);
    let f32_rows = report.tiers[0].rows.iter().filter(|row| row.dtype == "f32");
    let verdicts: Vec<bool> = f32_rows.map(|row| row.passed).collect();
    assert_eq!(verdicts, [false; MODES.len()], "{report}");
}

/// A copy of the checkpoint of `case` with `change` made to its config.
fn with_config(case: &Case, change: impl FnOnce(&mut Value)) -> (TempDir, ModelFiles) {
    let dir = tempfile::tempdir().unwrap();
    let copy = dir.path().join("copy");
    fs::create_dir(&copy).unwrap();
    let files = copy_model(&case.checkpoint(dir.path()).unwrap(), &copy);
    let mut config: Value = serde_json::from_slice(&fs::read(&files.config).unwrap()).unwrap();
    change(&mut config);
    fs::write(&files.config, config.to_string()).unwrap();
    (dir, files)
}

/// In transformers 5.24 each of these configs gives the logits of the reference.
#[test]
fn a_config_that_asks_for_the_same_computation_is_met() {
    let check = |name: &str, change: &dyn Fn(&mut Value)| {
        let case = case(name);
        let (_dir, files) = with_config(case, change);
        let report = verify_logits(case, &files);
        assert!(report.passed(), "{report}");
    };
    // A head that is there and differs from the embedding is used, whatever the config says.
    for name in ["untied-gqa1-narrow-heads", "untied-gqa5-sharded"] {
        check(name, &|config| config["tie_word_embeddings"] = true.into());
        check(name, &|config| drop(config.as_object_mut().unwrap().remove("tie_word_embeddings")));
    }
    check("tied-gqa8-yarn", &|config| config["rope_scaling"]["attn_factor"] = 0.5.into());
    check("tied-gqa8-yarn", &|config| config["rope_scaling"]["finetuned"] = true.into());
    check("tied-gqa8-yarn", &|config| {
        let rope = config["rope_scaling"].as_object_mut().unwrap();
        let original = rope.remove("original_max_position_embeddings").unwrap();
        config["original_max_position_embeddings"] = original;
    });
    check("tied-gqa2", &|config| config["rope_scaling"] = json!({"type": "linear", "factor": 1}));
    check("tied-gqa2", &|config| config["rope_scaling"] = json!({"type": "dynamic", "factor": 1}));
    check("tied-gqa2", &|config| config["rope_scaling"] = json!({"factor": 2}));
}

#[test]
fn a_config_that_asks_for_another_computation_is_found_by_its_logits() {
    let check = |name: &str, field: &str, value: Value| {
        let case = case(name);
        let (_dir, files) = with_config(case, |_| ());
        assert!(verify_logits(case, &files).passed(), "{name}");
        let (_dir, files) =
            with_config(case, |config| *config.pointer_mut(field).unwrap() = value.clone());
        let report = verify_logits(case, &files);
        assert!(!report.passed(), "{field} makes no difference\n{report}");
    };
    check("tied-gqa2", "/rope_theta", 10_000.into());
    check("tied-gqa5-bias-odd-sizes", "/rms_norm_eps", 1e-6.into());
    check("tied-gqa8-yarn", "/rope_scaling", Value::Null);
    check("tied-gqa8-yarn", "/rope_scaling/factor", 2.0.into());
    check("tied-gqa8-yarn", "/rope_scaling/original_max_position_embeddings", 32.into());
    let yarn = "untied-gqa1-yarn-odd-vocabulary";
    check(yarn, "/rope_parameters/attention_factor", 1.0.into());
    check(yarn, "/rope_parameters/beta_fast", 3.0.into());
    check(yarn, "/rope_parameters/beta_slow", 0.1.into());
    check(yarn, "/rope_parameters/rope_theta", 1000.0.into());
    check(yarn, "/rope_parameters/truncate", true.into());
}
