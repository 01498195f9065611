//! `nv quantize` and `--quantize`.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use std::{iter, thread};

use nano_vllm_rs::kernels::Isa;
use nano_vllm_rs::model::Qwen3Config;
use nano_vllm_rs::qwen3::{Preset, TensorSpec, tensor_specs};
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
        "\nlogits: the same bits on every machine\n",
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
    for command in [
        &["generate", PROMPT, "--model", out][..],
        &["chat", out],
        #[cfg(feature = "server")]
        &["serve", out, "--port", "0"],
        &["bench", "--quick", "--only", "load", "--model", out],
        &["eval", out, "--text", str(&demo().join("held-out.txt")), "--windows", "1"],
    ] {
        fails(&[command, &["--quantize", "q8"]].concat(), already);
    }
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

/// What is in a folder.
fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_and_what_is_there_stays() {
    let model = model_with(&[]);
    let dir = tempfile::tempdir().unwrap();
    let before = names(model.path());
    let quantize = |out: &Path, expected: &str| {
        fails(&["quantize", str(model.path()), "--to", "q8", "--out", str(out)], expected);
        assert_eq!(names(model.path()), before);
    };
    let exists = |out: &Path| quantize(out, &format!("{} exists already", out.display()));
    exists(model.path());
    exists(dir.path());
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    exists(&file);
    let below = file.join("q8");
    quantize(&below, &format!("cannot create {}", file.display()));
    quantize(&file.join("new/q8"), &format!("cannot create {}", file.join("new").display()));
    assert_eq!(
        (names(dir.path()), fs::read(&file).unwrap()),
        (vec!["file".into()], b"mine".into())
    );
    #[cfg(unix)]
    {
        // It would be followed to what isn't there yet.
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nothing"), &link).unwrap();
        exists(&link);
        assert_eq!(names(dir.path()), ["file", "link"]);
    }
    // A folder in which nobody may create anything, whatever the user.
    #[cfg(target_os = "linux")]
    quantize(Path::new("/proc/self/q8"), "cannot create /proc/self/q8");
}

#[test]
fn a_model_may_be_written_into_the_folder_of_its_own() {
    let model = model_with(&[]);
    let mut expected = names(model.path());
    for preset in Preset::ALL {
        let out = model.path().join(preset.name());
        stdout(&["quantize", str(model.path()), "--to", preset.name(), "--out", str(&out)]);
        expected.push(preset.name().to_owned());
        let at_load = greedy(&[PROMPT, "--quantize", preset.name(), "--model", str(model.path())]);
        assert_eq!(greedy(&[PROMPT, "--model", str(&out)]), at_load);
    }
    expected.sort();
    assert_eq!(names(model.path()), expected);
}

/// As where a disk is full: some of the file is written, then the system refuses.
#[cfg(unix)]
#[test]
fn a_file_that_the_system_cuts_short_is_told_and_nothing_stays() {
    let dir = tempfile::tempdir().unwrap();
    for preset in Preset::ALL {
        let out = dir.path().join("new").join(preset.name());
        // Half a megabyte in blocks of 512 bytes, or one of 1024.
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -f 1000; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_nv")]);
        command.args(["quantize", str(&demo()), "--to", preset.name(), "--out", str(&out)]);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        let expected = format!("cannot write model.safetensors for {}", out.display());
        assert!(stderr(&output).contains(&expected), "{}", stderr(&output));
        assert!(stderr(&output).contains("caused by: File too large"), "{}", stderr(&output));
        assert!(names(dir.path()).is_empty());
    }
}

/// A model of zeros that takes a while: its file is sparse, and takes no room.
#[cfg(unix)]
fn large(dir: &Path) -> PathBuf {
    let model = dir.join("large");
    fs::create_dir(&model).unwrap();
    let config = r#"{"vocab_size": 150000, "hidden_size": 512, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 16, "tie_word_embeddings": true}"#;
    fs::write(model.join("config.json"), config).unwrap();
    let config: Qwen3Config = serde_json::from_str(config).unwrap();
    let mut end = 0;
    let entries = tensor_specs(&config).into_iter().map(|TensorSpec { name, shape, .. }| {
        let start = end;
        end += 2 * shape.iter().product::<usize>();
        (name, serde_json::json!({ "dtype": "BF16", "shape": shape, "data_offsets": [start, end] }))
    });
    let header = Value::Object(entries.collect()).to_string();
    let mut file = File::create(model.join("model.safetensors")).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    file.set_len((8 + header.len() + end) as u64).unwrap();
    model
}

#[cfg(unix)]
#[test]
fn a_run_that_is_ended_leaves_nothing_that_looks_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out) = (large(dir.path()), dir.path().join("q8"));
    let left = |dir: &Path| names(dir).into_iter().filter(|name| name != "large");
    for (signal, code) in [("-INT", Some(130)), ("-KILL", None)] {
        let args = ["quantize", str(&model), "--to", "q8", "--threads", "1", "--out", str(&out)];
        let child = command(&args).spawn().unwrap();
        // Until it writes weights.
        let writes = || {
            let part = left(dir.path()).next()?;
            let file = dir.path().join(part).join("checkpoint/model.safetensors");
            file.metadata().ok().filter(|file| file.len() > 0)
        };
        let wait = || thread::sleep(Duration::from_millis(1));
        let waited = iter::repeat_with(wait).take(60_000).any(|()| writes().is_some());
        assert!(waited, "it doesn't write");
        let kill = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(kill.success());
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), code, "{}", stderr(&output));
        assert!(!out.exists());
        let left: Vec<_> = left(dir.path()).collect();
        if signal == "-INT" {
            assert!(left.is_empty(), "{left:?}");
            continue;
        }
        // Nobody was there to remove it. It is hidden, and no model.
        let [part] = &*left else { panic!("{left:?}") };
        assert!(part.starts_with(".nv-"), "{part}");
        let part = dir.path().join(part).join("checkpoint");
        fails(&["inspect", str(&part)], "model.safetensors");
    }
    // What is left is in nobody's way.
    stdout(&["quantize", str(&demo()), "--to", "q8", "--out", str(&out)]);
}
