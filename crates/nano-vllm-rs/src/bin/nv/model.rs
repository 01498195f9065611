//! A model by its name or folder, opened as far as every command needs it.

use std::collections::BTreeSet;
use std::fs;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Error, Result, ensure};
use nano_vllm_rs::config::{Dtype, GenerationConfig};
use nano_vllm_rs::engine;
use nano_vllm_rs::model::{
    Cpu, DType, Device, ModelFiles, Qwen3Config, Qwen3ForCausalLM, load_config,
};
use nano_vllm_rs::qwen3::{LoadOptions, Preset, check_tensors, config_warnings};
use nano_vllm_rs::text::{ChatTemplate, Tokenizer};
use nano_vllm_rs::weights::{self, Checkpoint, Hub};

use crate::args::{ComputeArgs, DeviceArg, DtypeArg, ModelArgs, SamplingArgs};
use crate::prompt::Prompt;
use crate::{progress, say};

/// The checkpoint that runs unless another is asked for.
const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo");

/// Prompt tokens that are computed at once: bounds the memory that a long prompt takes, and the wait for Ctrl-C.
pub(crate) const PREFILL_CHUNK: usize = 256;

/// A model whose config is read and whose weights are mapped.
pub(crate) struct Model {
    files: ModelFiles,
    pub(crate) config: Qwen3Config,
    pub(crate) checkpoint: Arc<Checkpoint>,
}

impl Model {
    /// Opens the model in the folder `name`, or of that name on the hub.
    pub(crate) fn open(name: &str, revision: Option<&str>) -> Result<Self> {
        ensure!(
            revision.is_none() || !Path::new(name).is_dir(),
            "--revision is for models of the hub, and {name} is a folder"
        );
        let hub = Hub::from_env()?.with_progress(true);
        // A config that can't be run is refused before its weights are downloaded.
        let read_config = |path: &Path| -> Result<_> { Ok(load_config(path)?) };
        let (files, config) =
            hub.download_model_with(name, revision.unwrap_or("main"), read_config)?;
        let checkpoint = Arc::new(Checkpoint::open(&files.weights)?);
        for warning in config_warnings(&config, &checkpoint) {
            tracing::warn!("{}: {warning}", files.config.display());
        }
        Ok(Self { files, config, checkpoint })
    }

    /// Opens the model that `args` name. Without a name that is the demo checkpoint of the repository: then says how to run a
    /// `larger` one. `option` is what names a model on the command line.
    pub(crate) fn open_or_demo(args: &ModelArgs, option: &str, larger: &str) -> Result<Self> {
        if let Some(name) = &args.name {
            return Self::open(name, args.revision.as_deref());
        }
        ensure!(
            Path::new(DEMO).is_dir(),
            "the demo checkpoint is not at {DEMO}, where it was when nv was built: name a model with {option}"
        );
        say(format_args!(
            "This is the demo checkpoint, a very small model. A larger one: {larger}"
        ));
        Self::open(DEMO, None)
    }

    /// Every reason why a command would refuse to run the model, found by what those commands call themselves. Reads no weight.
    pub(crate) fn problems(&self) -> Vec<Error> {
        let tensors = check_tensors(&self.config, &self.checkpoint).map_err(Error::from);
        let tokenizer = self.tokenizer();
        let template = self.chat_template();
        let prompt = match (&tokenizer, &template) {
            (Ok(tokenizer), Ok(template)) => self.check_prompt(template.as_ref(), tokenizer),
            // That is a problem of its own.
            _ => Ok(()),
        };
        let generation_config = self.generation_config();
        let sampling =
            generation_config.and_then(|config| SamplingArgs::default().params(&config).map(drop));
        let results = [tensors, tokenizer.map(drop), template.map(drop), prompt, sampling];
        let mut problems: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
        // Tokenizer and template read some files alike.
        problems.dedup_by(|a, b| format!("{a:#}") == format!("{b:#}"));
        problems
    }

    /// Whether the model can be asked anything at all.
    fn check_prompt(&self, template: Option<&ChatTemplate>, tokenizer: &Tokenizer) -> Result<()> {
        let prompt = Prompt::Answer("Hello!".to_owned()).encode(template, tokenizer);
        let prompt = prompt.context("cannot turn a message into a prompt")?;
        let num_logits = self.config.vocab_size;
        match prompt.token_ids.into_iter().find(|&token_id| token_id as usize >= num_logits) {
            Some(token_id) => Err(engine::Error::TokenId { token_id, num_logits })
                .context("the tokenizer is not the model's"),
            None => Ok(()),
        }
    }

    /// `config.json`.
    pub(crate) fn config_path(&self) -> &Path {
        &self.files.config
    }

    /// The files that go with a model's weights and config, by their names in its folder.
    pub(crate) fn side_files(&self) -> Result<Vec<(PathBuf, Vec<u8>)>> {
        let paths = self.files.text.iter().chain(&self.files.generation_config);
        let read = |path: &PathBuf| {
            let content =
                fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
            let name = path.strip_prefix(&self.files.dir).context("a file of another folder")?;
            Ok((name.to_owned(), content))
        };
        paths.map(read).collect()
    }

    /// What the makers of the model recommend; if they don't say, greedy with the config's end tokens.
    pub(crate) fn generation_config(&self) -> Result<GenerationConfig> {
        let path = self.files.generation_config.as_deref();
        Ok(GenerationConfig::of_model(path, &self.config)?)
    }

    pub(crate) fn tokenizer(&self) -> Result<Tokenizer> {
        Ok(Tokenizer::from_dir(&self.files.dir)?)
    }

    pub(crate) fn chat_template(&self) -> Result<Option<ChatTemplate>> {
        Ok(ChatTemplate::from_dir(&self.files.dir)?)
    }

    /// What to compute in if the user says `dtype`; else the config says, or what the weights are stored in.
    pub(crate) fn dtype(&self, dtype: Option<DtypeArg>) -> DType {
        let is_stored_in_bf16 = || {
            let names = ["model.embed_tokens.weight", "lm_head.weight"];
            let tensor = names.into_iter().find_map(|name| self.checkpoint.get(name));
            tensor.is_some_and(|tensor| tensor.dtype() == weights::Dtype::BF16)
        };
        let is_bf16 = match (dtype, self.config.dtype) {
            (Some(dtype), _) => matches!(dtype, DtypeArg::Bf16),
            (None, Some(dtype)) => dtype == Dtype::BFloat16,
            (None, None) => is_stored_in_bf16(),
        };
        // float32 holds whatever else a checkpoint is stored in.
        if is_bf16 { DType::BF16 } else { DType::F32 }
    }

    /// As [`load`](Self::load), and prepares text at the same time: parsing a tokenizer takes longer than all the rest.
    pub(crate) fn load_beside<T>(
        &self,
        compute: ComputeArgs,
        text: impl FnOnce() -> Result<T>,
    ) -> (Result<T>, Result<Qwen3ForCausalLM>) {
        let text_is_ready = AtomicBool::new(false);
        thread::scope(|scope| {
            let load = || {
                let qwen3 = self.load(compute);
                // What was quantised isn't read again.
                if compute.cpu.quantize.is_none() {
                    self.checkpoint.prefetch(&text_is_ready);
                }
                qwen3
            };
            let qwen3 = thread::Builder::new().spawn_scoped(scope, load);
            let text = text();
            text_is_ready.store(true, Ordering::Relaxed);
            let qwen3 = match qwen3 {
                Ok(qwen3) => qwen3.join().unwrap_or_else(|panic| resume_unwind(panic)),
                Err(error) => {
                    Err(error).context("the system starts no thread to load the model on")
                }
            };
            (text, qwen3)
        })
    }

    /// Builds the model as `compute` says; on the CPU with so many threads, or one for each physical core.
    pub(crate) fn load(&self, compute: ComputeArgs) -> Result<Qwen3ForCausalLM> {
        let dtype = self.dtype(compute.cpu.dtype);
        let device = open_device(compute.device)?;
        let threads = compute.cpu.threads.filter(|_| device.is_cpu());
        let cpu = threads.map(|threads| Cpu::new(threads.into())).transpose()?;
        self.load_on(&self.checkpoint, dtype, &device, cpu, compute.cpu.quantize)
    }

    /// Builds the model from `checkpoint`, which holds its weights; a bar shows how far they are quantised.
    pub(crate) fn load_on(
        &self,
        checkpoint: &Arc<Checkpoint>,
        dtype: DType,
        device: &Device,
        cpu: Option<Cpu>,
        quantize: Option<Preset>,
    ) -> Result<Qwen3ForCausalLM> {
        let bar = quantize.map(|_| progress::bar("quantising", checkpoint.num_bytes()));
        let progress = |num_bytes| {
            if let Some(bar) = &bar {
                bar.inc(num_bytes as u64);
            }
        };
        let new = LoadOptions::new(dtype, device);
        let options = LoadOptions { cpu, quantize, progress: &progress, ..new };
        Ok(Qwen3ForCausalLM::load(&self.config, checkpoint, options)?)
    }
}

/// What the model's matrices are stored as, each format once.
pub(crate) fn formats(qwen3: &Qwen3ForCausalLM) -> String {
    let names: BTreeSet<_> = qwen3.matrices().iter().map(|matrix| matrix.format.name()).collect();
    names.into_iter().collect::<Vec<_>>().join(", ")
}

fn open_device(device: DeviceArg) -> Result<Device> {
    let (name, feature, is_built_in) = match device {
        DeviceArg::Cpu => return Ok(Device::Cpu),
        DeviceArg::Cuda => ("CUDA", "cuda", cfg!(feature = "cuda")),
        DeviceArg::Metal => ("Metal", "metal", cfg!(feature = "metal")),
    };
    ensure!(is_built_in, "this nv was built without {name}: build it with `--features {feature}`");
    let opened = match device {
        DeviceArg::Cuda => Device::new_cuda(0),
        _ => Device::new_metal(0),
    };
    opened.with_context(|| format!("cannot open the {name} device"))
}
