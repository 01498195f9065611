//! What the system refuses: memory beyond a limit, a file that can't be read.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::process::{Command, Output, Stdio};

use crate::nv::{PROMPT, model_with, nv, stderr, str};

/// Runs `nv` in a shell that lets it have 4 GiB of address space.
fn nv_limited(args: &[&str]) -> Output {
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -v 4194304; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_nv")]);
    command.args(args).env("HF_HUB_OFFLINE", "1").env_remove("NV_ISA").stdin(Stdio::null());
    command.output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, expected: &str) {
    let stderr = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains(expected), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}

#[test]
fn weights_that_a_limit_keeps_out_are_told_with_their_size() {
    let model = model_with(&[]);
    let weights = model.path().join("model.safetensors");
    // Sparse: it takes no room on the disk.
    File::options().write(true).open(weights).unwrap().set_len(8 << 30).unwrap();
    let output = nv_limited(&["generate", PROMPT, "--model", str(model.path())]);
    assert_refused(
        &output,
        "model.safetensors into memory: 8589934592 bytes, which `ulimit -v` may limit",
    );
}

#[test]
fn a_kv_cache_that_a_limit_keeps_out_is_told_with_its_size() {
    let output = nv_limited(&["generate", PROMPT, "--kv-cache-memory", "8GiB"]);
    assert_refused(&output, "kv_cache_memory: the system refuses");
    let stderr = stderr(&output);
    let found = stderr.split("refuses ").nth(1).and_then(|rest| rest.split(' ').next());
    let bytes: u64 = found.unwrap().parse().unwrap();
    assert!(bytes <= 8 << 30 && bytes > 7 << 30, "{stderr}");
}

#[test]
fn a_share_of_memory_is_of_what_a_limit_leaves() {
    let args = ["generate", PROMPT, "--max-tokens", "1", "--kv-cache-memory", "50%"];
    let output = nv_limited(&args);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[cfg(target_os = "linux")]
#[test]
fn a_file_that_cannot_be_read_is_told_with_the_systems_words() {
    for file in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    {
        let model = model_with(&[]);
        let path = model.path().join(file);
        let _ = fs::remove_file(&path);
        // A regular file that opens, and whose first byte fails to be read.
        symlink("/proc/self/mem", &path).unwrap();
        let output = nv(&["generate", PROMPT, "--model", str(model.path())]);
        assert_refused(&output, &format!("cannot read {}", path.display()));
        assert!(stderr(&output).contains("Input/output error"), "{}", stderr(&output));
    }
}
