//! `cargo xtask reference`: has transformers write the logits that ours are compared with, and reads them.
//!
//! The Python script `xtask/python/reference.py` says what is in the file. Only writing needs Python.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use half::bf16;
use nv_weights::download_model;
use safetensors::{Dtype, SafeTensors};
use sha2::{Digest, Sha256};

use crate::cases::{CASES, Request};

/// The arguments of `cargo xtask reference`; without any, every committed reference is made again.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Checkpoint folder, or a model id on the hub
    #[arg(long, value_name = "DIR|ID", requires = "tokens", requires = "out")]
    model: Option<String>,
    /// Revision of a model id
    #[arg(long, default_value = "main", requires = "model")]
    revision: String,
    /// JSON list of token ids, run as one prompt
    #[arg(long, value_name = "FILE", requires = "model")]
    tokens: Option<PathBuf>,
    /// Reference file to write
    #[arg(long, value_name = "FILE", requires = "model")]
    out: Option<PathBuf>,
    /// Also continue a prompt greedily, by at most this many tokens
    #[arg(long, value_name = "M", requires = "greedy_prompt")]
    greedy: Option<usize>,
    /// JSON list of token ids to continue
    #[arg(long, value_name = "FILE", requires = "greedy", requires = "model")]
    greedy_prompt: Option<PathBuf>,
    /// Python interpreter that has the packages of xtask/python/requirements.txt
    #[arg(long, env = "NV_PYTHON", value_name = "PATH", default_value = "python3")]
    python: PathBuf,
}

/// Writes the reference that `args` describe, or every committed one.
///
/// # Errors
/// If Python or a package is missing or of another version, or the script fails.
pub fn run(args: Args, out: &mut dyn Write) -> Result<()> {
    check_python(&args.python)?;
    let (Some(model), Some(tokens), Some(path)) = (args.model, args.tokens, args.out) else {
        for case in CASES {
            let scratch = tempfile::tempdir()?;
            write_reference(&args.python, &case.request(scratch.path())?, out)?;
        }
        return Ok(());
    };
    let config = download_model(&model, &args.revision)?.config;
    let model = config.parent().context("a config.json has no folder")?.to_owned();
    let greedy = args.greedy.zip(args.greedy_prompt);
    write_reference(&args.python, &Request { model, tokens, greedy, out: path }, out)
}

fn write_reference(python: &Path, request: &Request, out: &mut dyn Write) -> Result<()> {
    writeln!(out, "{}", request.out.display())?;
    let mut command = Command::new(python);
    command.arg(crate::root().join("xtask/python/reference.py"));
    for (option, path) in
        [("--model", &request.model), ("--tokens", &request.tokens), ("--out", &request.out)]
    {
        command.arg(option).arg(path);
    }
    if let Some((num_tokens, prompt)) = &request.greedy {
        command.arg("--greedy").arg(num_tokens.to_string()).arg("--greedy-prompt").arg(prompt);
    }
    let status = command.status().with_context(|| format!("cannot run {}", python.display()))?;
    ensure!(status.success(), "reference.py failed for {}: {status}", request.out.display());
    Ok(())
}

/// Checks that `python` has exactly the packages that requirements.txt pins.
fn check_python(python: &Path) -> Result<()> {
    const LIST: &str = "import importlib.metadata as m; [print(d.name + '==' + d.version) for d in m.distributions()]";
    let requirements = fs::read_to_string(crate::root().join("xtask/python/requirements.txt"))?;
    let output = Command::new(python)
        .args(["-c", LIST])
        .output()
        .with_context(|| format!("cannot run {}\n{MAKE_VENV}", python.display()))?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        python.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let missing = missing_requirements(&requirements, &String::from_utf8_lossy(&output.stdout));
    if missing.is_empty() {
        return Ok(());
    }
    bail!("{} lacks {}\n{MAKE_VENV}", python.display(), missing.join(", "))
}

const MAKE_VENV: &str = "make an environment with the pinned packages, and name it:
    python3 -m venv target/python
    target/python/bin/pip install -r xtask/python/requirements.txt
    NV_PYTHON=target/python/bin/python cargo xtask reference";

/// The `name==version` lines of `requirements` that are not among those of `installed`.
///
/// A local version label, as in torch's `2.15.0+cpu`, makes no difference.
fn missing_requirements<'r>(requirements: &'r str, installed: &str) -> Vec<&'r str> {
    let normal =
        |line: &str| line.split('+').next().unwrap_or(line).to_lowercase().replace('_', "-");
    let installed: Vec<String> = installed.lines().map(normal).collect();
    let pins = requirements.lines().filter(|line| line.contains("=="));
    pins.filter(|pin| !installed.contains(&normal(pin))).collect()
}

/// What transformers computed for one checkpoint.
#[derive(Debug)]
pub struct Reference {
    /// The prompt, `[num_tokens]`.
    pub input_ids: Vec<u32>,
    /// Logits per position.
    pub vocab_size: usize,
    /// The logits of float32, `[num_tokens, vocab_size]`.
    pub logits_f32: Vec<f32>,
    /// The logits of transformers' own bfloat16, `[num_tokens, vocab_size]`.
    pub logits_bf16: Vec<f32>,
    /// A prompt and its greedy continuation in float32, if the reference has one.
    pub greedy: Option<(Vec<u32>, Vec<u32>)>,
    metadata: HashMap<String, String>,
}

impl Reference {
    /// Reads a file that `reference.py` wrote.
    ///
    /// # Errors
    /// If the file can't be read, or isn't such a file.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&bytes).with_context(|| format!("{} is not a reference", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let tensors = SafeTensors::deserialize(bytes)?;
        let data = |name: &str, dtype: Dtype| {
            let view = tensors.tensor(name)?;
            ensure!(view.dtype() == dtype, "{name}: expected {dtype:?}, found {:?}", view.dtype());
            Ok(view.data())
        };
        let ids = |name: &str| -> Result<Vec<u32>> {
            let (ids, _) = data(name, Dtype::I64)?.as_chunks();
            ids.iter().map(|&id| Ok(u32::try_from(i64::from_le_bytes(id))?)).collect()
        };

        let input_ids = ids("input_ids")?;
        let shape = tensors.tensor("logits_f32")?.shape().to_vec();
        let [num_tokens, vocab_size] = shape[..] else { bail!("logits_f32 has shape {shape:?}") };
        let bf16_shape = tensors.tensor("logits_bf16")?.shape().to_vec();
        ensure!(bf16_shape == shape, "logits_f32 is {shape:?}, logits_bf16 {bf16_shape:?}");
        ensure!(num_tokens == input_ids.len(), "{} ids have logits {shape:?}", input_ids.len());
        ensure!(num_tokens > 0 && vocab_size > 0, "there are no logits");
        let greedy = match tensors.tensor("greedy_ids") {
            Ok(_) => Some((ids("greedy_prompt")?, ids("greedy_ids")?)),
            Err(_) => None,
        };
        ensure!(greedy.as_ref().is_none_or(|(_, ids)| !ids.is_empty()), "greedy_ids is empty");
        Ok(Self {
            input_ids,
            vocab_size,
            logits_f32: floats(data("logits_f32", Dtype::F32)?, f32::from_le_bytes),
            logits_bf16: floats(data("logits_bf16", Dtype::BF16)?, |bytes| {
                bf16::from_le_bytes(bytes).to_f32()
            }),
            greedy,
            metadata: metadata.metadata().clone().unwrap_or_default(),
        })
    }

    /// What wrote the logits, as in `transformers 5.23.0, torch 2.15.0`.
    pub fn made_by(&self) -> String {
        format!("transformers {}, torch {}", self.label("transformers"), self.label("torch"))
    }

    /// The [`sha256`] of the weights that it was made from.
    pub fn checkpoint_sha256(&self) -> &str {
        self.label("checkpoint_sha256")
    }

    fn label(&self, key: &str) -> &str {
        self.metadata.get(key).map_or("unknown", String::as_str)
    }
}

/// Reads `data`, `N` bytes a number.
fn floats<const N: usize>(data: &[u8], read: fn([u8; N]) -> f32) -> Vec<f32> {
    data.as_chunks().0.iter().map(|&bytes| read(bytes)).collect()
}

/// The SHA-256 of the files' contents, one after the other, in hexadecimal.
///
/// # Errors
/// If a file can't be read.
pub fn sha256(paths: &[PathBuf]) -> Result<String> {
    let mut digest = Sha256::new();
    for path in paths {
        update(&mut digest, path).with_context(|| format!("cannot read {}", path.display()))?;
    }
    Ok(hex(digest))
}

/// The SHA-256 of `bytes`, in hexadecimal.
pub fn sha256_of(bytes: &[u8]) -> String {
    hex(Sha256::new().chain_update(bytes))
}

/// What was digested, in hexadecimal.
pub(crate) fn hex(digest: Sha256) -> String {
    let digits = digest.finalize().into_iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

/// Feeds a file to `digest`, in pieces.
fn update(digest: &mut Sha256, path: &Path) -> io::Result<()> {
    let mut file = BufReader::with_capacity(1 << 20, File::open(path)?);
    loop {
        let piece = file.fill_buf()?;
        if piece.is_empty() {
            return Ok(());
        }
        digest.update(piece);
        let len = piece.len();
        file.consume(len);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_are_compared_by_name_and_version() {
        let check = |installed, missing: &[&str]| {
            assert_eq!(
                missing_requirements("# pinned\nnumpy==2.4.6\ntorch==2.15.0\n", installed),
                missing
            );
        };
        check("numpy==2.4.6\ntorch==2.15.0+cpu\npip==26.0\n", &[]);
        check("NumPy==2.4.6\ntorch==2.15.1\n", &["torch==2.15.0"]);
        check("", &["numpy==2.4.6", "torch==2.15.0"]);
    }

    #[test]
    fn a_file_that_is_no_reference_is_an_error() {
        let error = Reference::parse(b"version https://git-lfs").unwrap_err();
        assert!(error.to_string().contains("header"), "{error}");
    }

    #[test]
    fn the_digest_runs_over_all_files() {
        let dir = tempfile::tempdir().unwrap();
        let paths = [dir.path().join("a"), dir.path().join("b")];
        fs::write(&paths[0], "ab").unwrap();
        fs::write(&paths[1], "c").unwrap();
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&paths).unwrap(), abc);
    }
}
