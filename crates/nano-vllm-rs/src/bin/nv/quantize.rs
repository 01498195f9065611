//! `nv quantize`: a model in fewer bits, written as the kernels read it.

use std::fs;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use nano_vllm_rs::kernels::Pool;
use nano_vllm_rs::qwen3::{self, Quantizer};

use crate::args::QuantizeArgs;
use crate::format::bytes;
use crate::model::Model;
use crate::{interrupt, progress};

pub(crate) fn run(args: &QuantizeArgs) -> Result<ExitCode> {
    let model = Model::open(&args.model, args.revision.as_deref())?;
    let quantizer = Quantizer::new(&model.config, &model.checkpoint, args.to)?;
    let pool = Pool::new(args.threads.map_or_else(Pool::default_threads, usize::from))?;
    let mut files = model.side_files()?;
    let config = fs::read_to_string(model.config_path())
        .with_context(|| format!("cannot read {}", model.config_path().display()))?;
    files.push(("config.json".into(), quantizer.config_json(&config)?.into_bytes()));

    let interrupted = interrupt::flag()?;
    let bar = progress::bar("quantising", quantizer.num_bytes());
    let written = quantizer.write(&args.out, &files, &pool, |num_bytes| {
        bar.inc(num_bytes as u64);
        !interrupted.load(Ordering::Relaxed)
    });
    drop(bar);
    let paths = match written {
        Err(qwen3::Error::Stopped { .. }) => return Ok(ExitCode::from(interrupt::EXIT_CODE)),
        written => written?,
    };
    let num_bytes = paths.iter().map(|path| Ok(path.metadata()?.len())).sum::<io::Result<u64>>()?;
    let before = model.checkpoint.num_bytes() as u64;
    let mut out = io::stdout().lock();
    writeln!(out, "{}: {}, of {}", args.out.display(), bytes(num_bytes), bytes(before))?;
    Ok(ExitCode::SUCCESS)
}
