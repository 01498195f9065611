//! `nv quantize` and `--quantize`.

use std::fs;

use nano_vllm_rs::kernels::Isa;
use nano_vllm_rs::weights::Checkpoint;
use serde_json::Value;

use crate::demo;
use crate::nv::{PROMPT, command, greedy, model_with, nv, stderr, stdout, str};

/// Asserts that a command fails, and says why.
#[track_caller]
fn fails(args: &[&str], expected: &str) {
    let output = nv(args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
    assert!(stderr(&output).contains(expected), "{args:?}: {}", stderr(&output));
}

#[test]
fn a_quantised_model_is_a_model_and_says_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("new/q8");
    let out = str(&out);
    let said = stdout(&["quantize", str(&demo()), "--to", "q8", "--out", out]);
    assert_eq!(said, format!("{out}: 3.9 MiB, of 7.5 MiB\n"));

    let at_load = greedy(&[PROMPT, "--quantize", "q8"]);
    assert_eq!(greedy(&[PROMPT, "--model", out]), at_load);
    let sample = ["generate", PROMPT, "--model", out, "--max-tokens", "12", "--seed", "3"];
    let sample = [&sample[..], &["--temperature", "0.8"]].concat();
    let sampled = stdout(&sample);
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let output = command(&sample).env("NV_ISA", isa.to_string()).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), sampled, "{isa}");
    }

    let inspected = stdout(&["inspect", out]);
    for row in [
        "  q8        43  3,915,776  3.8 MiB           8.23\n",
        "mlp.down_proj.weight             q8    [256, 480]",
    ] {
        assert!(inspected.contains(row), "{inspected}");
    }
    let verbose = nv(&["generate", PROMPT, "--max-tokens", "1", "-v", "--quantize", "q8"]);
    let expected = "weights quantised in memory: all matrices, to q8\n";
    assert!(stderr(&verbose).contains(expected), "{}", stderr(&verbose));

    let bench = ["bench", "--quick", "--only", "load", "--json", "--model"];
    for args in [&[out][..], &[str(&demo()), "--quantize", "q8"]] {
        let report: Value = serde_json::from_str(&stdout(&[&bench, args].concat())).unwrap();
        assert_eq!(report["model"]["formats"], "q8");
        // Rows of 480 columns are padded to 512. A group of 128 has a scale of 2 bytes.
        let weights = 2048 * 256 + 6 * (256 * 256 * 2 + 2 * 128 * 256 + 2 * 480 * 256 + 256 * 512);
        let report = &report["model"]["bytes_per_step"];
        assert!(report.as_u64().unwrap() >= weights * 130 / 128, "{report}");
        assert!(report.as_u64().unwrap() < weights * 132 / 128, "{report}");
    }
}

#[test]
fn what_cannot_be_quantised_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, other) = (demo(), dir.path().join("q8"), dir.path().join("other"));
    let (model, out, other) = (str(&model), str(&out), str(&other));
    stdout(&["quantize", model, "--to", "q8", "--out", out]);
    let exists = format!("{out} exists already");
    fails(&["quantize", model, "--to", "q8", "--out", out], &exists);
    let already = "the model is quantised already: quantise the one that it was made from";
    fails(&["quantize", out, "--to", "q8", "--out", other], already);
    fails(&["generate", PROMPT, "--model", out, "--quantize", "q8"], already);
    let unknown = nv(&["quantize", model, "--to", "q9", "--out", other]);
    assert_eq!(unknown.status.code(), Some(2), "{}", stderr(&unknown));

    let damaged = model_with(&[]);
    let weights = damaged.path().join("model.safetensors");
    let name = "model.layers.3.mlp.up_proj.weight";
    let checkpoint = Checkpoint::open(std::slice::from_ref(&weights)).unwrap();
    let place = checkpoint.tensor(name).unwrap().bytes().as_ptr().addr();
    let place = place - checkpoint.files()[0].bytes().as_ptr().addr();
    drop(checkpoint);
    let mut bytes = fs::read(&weights).unwrap();
    bytes[place + 2 * (256 * 2 + 5)..][..2].copy_from_slice(&0x7f80u16.to_le_bytes());
    // Under another name first: the file may be mapped.
    let changed = damaged.path().join("changed");
    fs::write(&changed, bytes).unwrap();
    fs::rename(&changed, &weights).unwrap();
    let place = "row 2, column 5: expected a finite value, found inf";
    fails(&["quantize", str(damaged.path()), "--to", "q8", "--out", other], place);
    let generate = ["generate", PROMPT, "--quantize", "q8", "--model"];
    fails(&[&generate[..], &[str(damaged.path())]].concat(), place);
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.collect::<Vec<_>>(), ["q8"]);
}
