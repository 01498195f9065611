//! The memory of running `nv` processes: weights are shared pages, and little else is private.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;

use nano_vllm_rs::model::{Qwen3Config, load_config};
use nv_synth::Recipe;
use serde_json::Value;
use tempfile::TempDir;

use crate::demo;
use crate::nv::{command, str};

/// What a process may have to itself besides the KV cache: the binary's data, the tokenizer, activations, stacks, and what
/// the allocator keeps of all that for later.
const MAX_PRIVATE_BYTES: u64 = 32 << 20;

/// What the system gives at least of memory that may lie on huge pages.
const HUGE_PAGE_BYTES: u64 = 2 << 20;

/// Tokens that a process is told to generate: it is stopped long before.
const MAX_TOKENS: &str = "16000";

/// A model with the demo's tokenizer and random weights of some tens of megabytes, which never ends a text.
fn wide_model() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let config_path = dir.path().join("config.json");
    let config = fs::read(demo().join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config["intermediate_size"] = 14_400.into();
    config["max_position_embeddings"] = 16_384.into();
    config["eos_token_id"] = Value::Null;
    fs::write(&config_path, config.to_string()).unwrap();
    let model = dir.path().join("model");
    let recipe = Recipe { config: config_path, seed: 0, max_shard_bytes: usize::MAX };
    recipe.write(&model).unwrap();
    fs::copy(demo().join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    fs::write(model.join("tokenizer_config.json"), r#"{"eos_token": null}"#).unwrap();
    (dir, model)
}

/// A process that generates for long, until the value is dropped.
struct Running(Child);

impl Running {
    /// Starts it and waits for its first byte: by then it has read every weight.
    fn start(model: &Path, options: &[&str]) -> Self {
        let args =
            ["generate", "In the beginning", "--max-tokens", MAX_TOKENS, "--model", str(model)];
        let mut running =
            Self(command(&[&args[..], &["--threads", "1"], options].concat()).spawn().unwrap());
        running.0.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        running
    }

    fn proc(&self, file: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{file}", self.0.id())).unwrap()
    }

    /// The fields of its mapping of the file at `path`.
    fn mapping(&self, path: &Path) -> String {
        let smaps = self.proc("smaps");
        let (_, mapping) = smaps.split_once(&format!("{}\n", str(path))).unwrap();
        assert!(!mapping.contains(str(path)), "one mapping: {smaps}");
        mapping.split_inclusive('\n').take_while(|line| line.contains(':')).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself, and then a test has failed already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The first field `name` of `text`, in bytes.
#[track_caller]
fn field(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kib.unwrap_or_else(|| panic!("{name} is not in {text}")) * 1024
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn two_processes_on_one_checkpoint_share_its_pages() {
    if !cfg!(target_os = "linux") {
        return println!("skipped: only Linux tells shared from private memory of a process");
    }
    let (_dir, model) = wide_model();
    let weights = model.join("model.safetensors");
    let num_bytes = fs::metadata(&weights).unwrap().len();
    let running = ["bf16", "f32"].map(|dtype| Running::start(&model, &["--dtype", dtype]));
    for process in &running {
        let mapping = process.mapping(&weights);
        let shared = field(&mapping, "Shared_Clean") + field(&mapping, "Shared_Dirty");
        let private = field(&mapping, "Private_Clean") + field(&mapping, "Private_Dirty");
        assert!(shared >= num_bytes / 10 * 9, "{mapping}");
        assert!(private <= num_bytes / 10, "{mapping}");
        // Each is charged with half of what both map.
        assert!(field(&mapping, "Pss") <= num_bytes / 10 * 6, "{mapping}");
    }
}

#[test]
#[expect(clippy::print_stdout, reason = "a test that is skipped says so")]
fn private_memory_besides_the_kv_cache_is_bounded() {
    if !cfg!(target_os = "linux") {
        return println!("skipped: only Linux tells shared from private memory of a process");
    }
    let (_dir, model) = wide_model();
    let config: Qwen3Config = load_config(model.join("config.json")).unwrap();
    let num_bytes = fs::metadata(model.join("model.safetensors")).unwrap().len();
    for (dtype, bytes_an_element) in [("bf16", 2), ("f32", 4)] {
        let process = Running::start(&model, &["--dtype", dtype]);
        let private = field(&process.proc("status"), "RssAnon");
        // What the cache holds, at most: a process that has just begun holds less. Each layer's keys and values lie apart.
        let kv_cache = config.kv_cache_bytes_per_token(bytes_an_element) as u64 * 1024
            + 2 * config.num_hidden_layers as u64 * HUGE_PAGE_BYTES;
        let most = kv_cache + MAX_PRIVATE_BYTES;
        assert!(num_bytes > 2 * most, "a copy of the weights would not be noticed");
        assert!(private <= most, "{dtype}: {private} bytes are private");
    }
}
