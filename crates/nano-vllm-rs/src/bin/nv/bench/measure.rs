//! The measurements, on one model.

use std::env;
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nano_vllm_rs::engine::{Engine, EngineConfig};
use nano_vllm_rs::kernels::Pool;
use nano_vllm_rs::model::{Cpu, DType, Device, Qwen3ForCausalLM};
use nano_vllm_rs::text::Tokenizer;
use nano_vllm_rs::weights::Checkpoint;

use super::floor::Costs;
use super::limits::{Machine, Products};
use super::memory::peak_private;
use super::patience::{Interrupted, LONGEST_PROMPT, TooSlow, check, within};
use super::report::{Memory, Report, Row, Skipped};
use super::server::Server;
use super::serving::{Served, serve};
use super::timing::{Budget, Timing};
use super::traffic::{Arrivals, plan};
use super::workload::{BATCH_CONTEXT, BATCH_STEPS, DECODE_STEPS, Workload};
use crate::args::{BenchArgs, Section};
use crate::format::{bytes, grouped, seconds};
use crate::model::{Model, formats};
use crate::say;

/// The prompt during which memory is watched, in tokens, unless the model takes only shorter ones.
const MEMORY_PROMPT: usize = 2048;
/// The prompt of a cold start, in tokens: no fewer.
const START_PROMPT: usize = 16;
/// Prompt tokens that a quick run computes for a row, at most.
const QUICK_PROMPT: usize = 2048;

/// Measures what `args` ask for on `model`, which its `name` finds again; on Ctrl-C, what was measured until then.
pub(super) fn measure(
    args: &BenchArgs,
    name: &str,
    model: &Model,
    interrupted: &AtomicBool,
) -> Result<Report> {
    let dtype = model.dtype(args.cpu.dtype);
    let (of_floats, dtype_name) =
        if dtype == DType::BF16 { (Products::Bf16, "bf16") } else { (Products::F32, "f32") };
    let cpu = Cpu::new(args.cpu.threads.map_or_else(Pool::default_threads, usize::from))?;
    let quantize = args.cpu.quantize;
    let load =
        || model.load_on(&model.checkpoint, dtype, &Device::Cpu, Some(cpu.clone()), quantize);
    let qwen3 = load()?;
    let is_quantized = qwen3.matrices().iter().any(|matrix| matrix.format.is_portable());
    let products = if is_quantized { Products::Int8 } else { of_floats };
    let costs = Costs::new(&model.config, qwen3.matrices(), dtype.size_in_bytes());
    let machine = Machine::new(cpu, products, Arc::clone(&model.checkpoint));

    let mut report = Report {
        model: args.synth.map_or_else(|| name.to_owned(), |size| format!("random {size}")),
        num_parameters: model.config.num_parameters(),
        weight_bytes: costs.weight_bytes(),
        dtype: dtype_name,
        formats: formats(&qwen3),
        quantize,
        cpu_name: Machine::cpu_name(),
        isa: machine.cpu.kernels().isa(),
        threads: machine.cpu.pool().threads(),
        products,
        peaks: machine.peaks(),
        memory: None,
        rows: Vec::new(),
        served: None,
        skipped: Vec::new(),
        interrupted: false,
    };
    if let Some(num_requests) = args.requests.requests {
        match requests(args, num_requests, qwen3, &machine, &costs, interrupted) {
            Err(error) if error.is::<Interrupted>() => report.interrupted = true,
            served => report.served = Some(served?),
        }
        return Ok(report);
    }
    let budget = if args.quick { Budget::QUICK } else { Budget::FULL };
    let server = Server::new(qwen3)?;
    let mut bench =
        Bench { args, name, model, dtype, server, machine, costs, budget, interrupted, report };
    match bench.sections() {
        Err(error) if error.is::<Interrupted>() => bench.report.interrupted = true,
        result => result?,
    }
    Ok(bench.report)
}

/// Serves as many requests as are asked for.
fn requests(
    args: &BenchArgs,
    num_requests: usize,
    qwen3: Qwen3ForCausalLM,
    machine: &Machine,
    costs: &Costs,
    interrupted: &AtomicBool,
) -> Result<Served> {
    let arrivals = Arrivals::new(&args.requests, num_requests);
    let planned = plan(&args.requests, num_requests, arrivals, qwen3.config().vocab_size);
    let lens = planned.iter().map(|one| one.prompt.len() + one.num_output_tokens);
    let config = args.engine.config(EngineConfig::default(), &qwen3, lens);
    let mut engine = Engine::new(qwen3, config)?;
    say(engine.kv_cache_size());
    serve(&mut engine, planned, arrivals, machine, costs, interrupted)
}

/// One model under measurement, and what is known of it so far.
struct Bench<'a> {
    args: &'a BenchArgs,
    name: &'a str,
    model: &'a Model,
    dtype: DType,
    server: Server,
    machine: Machine,
    costs: Costs,
    budget: Budget,
    interrupted: &'a AtomicBool,
    report: Report,
}

impl Bench<'_> {
    fn sections(&mut self) -> Result<()> {
        // Memory comes first, while nothing has been freed that an allocator might keep.
        self.memory()?;
        self.load()?;
        self.start()?;
        for workload in Workload::ALL {
            self.workload(workload)?;
        }
        Ok(())
    }

    fn is_wanted(&self, section: Section) -> bool {
        self.args.only.is_empty() || self.args.only.contains(&section)
    }

    fn push(&mut self, row: Row) {
        say(format_args!("{}: {}", row.full_name(), seconds(row.timing.seconds)));
        self.report.rows.push(row);
    }

    fn skip(&mut self, section: Section, name: String, why: String) {
        self.report.skipped.push(Skipped { section, name, why });
    }

    /// Private memory at its peak, while a prompt is computed.
    fn memory(&mut self) -> Result<()> {
        if !self.is_wanted(Section::Memory) {
            return Ok(());
        }
        let num_tokens = MEMORY_PROMPT.min(self.model.config.max_position_embeddings - 1);
        let (computed, peak) = peak_private(|| {
            self.server.begin(1, num_tokens)?;
            self.server.next(self.interrupted)
        });
        computed?;
        match peak {
            None => {
                let why = "this system does not tell private memory from shared".to_owned();
                self.skip(Section::Memory, "peak".to_owned(), why);
            }
            Some(peak_bytes) => {
                say(format_args!("memory: {}", bytes(peak_bytes)));
                let kv_cache_bytes = self.costs.kv_bytes(num_tokens);
                self.report.memory = Some(Memory { num_tokens, peak_bytes, kv_cache_bytes });
            }
        }
        Ok(())
    }

    /// From weight files to a model.
    fn load(&mut self) -> Result<()> {
        if !self.is_wanted(Section::Load) {
            return Ok(());
        }
        let files = self.model.checkpoint.files();
        let paths: Vec<_> = files.iter().map(|file| file.path().to_owned()).collect();
        let timing = self.budget.repeat(&self.machine, || {
            check(self.interrupted)?;
            let start = Instant::now();
            let checkpoint = Arc::new(Checkpoint::open(&paths)?);
            let (cpu, quantize) = (self.machine.cpu.clone(), self.report.quantize);
            let device = &Device::Cpu;
            let qwen3 = self.model.load_on(&checkpoint, self.dtype, device, Some(cpu), quantize)?;
            let time = start.elapsed();
            drop(qwen3);
            Ok(time)
        })?;
        self.push(Row::new(Section::Load, "open and build".to_owned(), timing));
        Ok(())
    }

    /// From starting a process to its first output.
    fn start(&mut self) -> Result<()> {
        if !self.is_wanted(Section::Start) {
            return Ok(());
        }
        let tokenizer = match self.model.tokenizer() {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                self.skip(Section::Start, "first token".to_owned(), error.to_string());
                return Ok(());
            }
        };
        let (prompt, num_tokens) = prompt(&tokenizer)?;
        let timing = self.budget.repeat(&self.machine, || {
            check(self.interrupted)?;
            self.time_start(&prompt)
        })?;
        let name = format!("first token after {num_tokens}");
        self.push(Row::new(Section::Start, name, timing));
        Ok(())
    }

    /// Until `nv generate` in a process of its own has printed something.
    fn time_start(&self, prompt: &str) -> Result<Duration> {
        let mut command = Command::new(env::current_exe().context("cannot find nv itself")?);
        command.args(["generate", "--raw", "--max-tokens", "1", "--temperature", "0"]);
        command.args(["--model", self.name]);
        if let Some(revision) = &self.args.revision {
            command.args(["--revision", revision]);
        }
        command.args(["--dtype", self.report.dtype]);
        if let Some(preset) = self.report.quantize {
            command.args(["--quantize", preset.name()]);
        }
        command.args(["--threads", &self.report.threads.to_string()]);
        command.args(["--", prompt]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());

        let start = Instant::now();
        let mut child = command.spawn().context("cannot start nv itself")?;
        let mut stdout = child.stdout.take().context("a child without stdout")?;
        let printed = stdout.read_exact(&mut [0]);
        let time = start.elapsed();
        // Closing it early would take the rest of the output from the child.
        stdout.read_to_end(&mut Vec::new())?;
        let output = child.wait_with_output()?;
        check(self.interrupted)?;
        if printed.is_err() || !output.status.success() {
            bail!("nv generate failed: {}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
        Ok(time)
    }

    fn workload(&mut self, workload: Workload) -> Result<()> {
        if !self.is_wanted(workload.section()) {
            return Ok(());
        }
        let max_position_embeddings = self.model.config.max_position_embeddings;
        let why_not = if workload.max_len() > max_position_embeddings {
            format!("the model has {} positions", grouped(max_position_embeddings as u64))
        } else if self.args.quick && workload.num_prompt_tokens() > QUICK_PROMPT {
            format!("more than {} prompt tokens, and --quick", grouped(QUICK_PROMPT as u64))
        } else {
            let timing = match workload {
                Workload::Prefill { num_tokens } => self.prefill(num_tokens),
                Workload::Decode { context } => self.decode(1, context, DECODE_STEPS),
                Workload::Batch { num_sequences } => {
                    self.decode(num_sequences, BATCH_CONTEXT, BATCH_STEPS)
                }
            };
            match timing {
                Err(error) if error.is::<TooSlow>() => error.to_string(),
                timing => {
                    let row = Row::new(workload.section(), workload.name(), timing?);
                    self.push(row.with_work(workload.num_tokens(), workload.work(&self.costs)));
                    return Ok(());
                }
            }
        };
        self.skip(workload.section(), workload.name(), why_not);
        Ok(())
    }

    fn prefill(&mut self, num_tokens: usize) -> Result<Timing> {
        self.budget.repeat(&self.machine, || {
            let stop = AtomicBool::new(false);
            self.server.begin(1, num_tokens)?;
            let start = Instant::now();
            prompt_within(self.interrupted, &stop, || self.server.next(&stop))?;
            Ok(start.elapsed())
        })
    }

    fn decode(&mut self, num_sequences: usize, context: usize, num_steps: u32) -> Result<Timing> {
        let stop = AtomicBool::new(false);
        self.server.begin(num_sequences, context)?;
        prompt_within(self.interrupted, &stop, || self.server.next(&stop))?;
        // The first step without prompts.
        self.server.next(self.interrupted)?;
        self.budget.repeat(&self.machine, || {
            let start = Instant::now();
            for _ in 0..num_steps {
                self.server.next(self.interrupted)?;
            }
            Ok(start.elapsed() / num_steps)
        })
    }
}

/// Computes a prompt in `work`, which ends with an error soon after `stop` is raised.
fn prompt_within<T>(
    interrupted: &AtomicBool,
    stop: &AtomicBool,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let result = within(LONGEST_PROMPT, interrupted, stop, work);
    check(interrupted)?;
    if stop.load(Ordering::Relaxed) { Err(TooSlow.into()) } else { result }
}

/// A text of `START_PROMPT` tokens, or the fewest more, and how many it has.
fn prompt(tokenizer: &Tokenizer) -> Result<(String, usize)> {
    let mut text = "In".to_owned();
    loop {
        let num_tokens = tokenizer.encode(&text, true)?.len();
        if num_tokens >= START_PROMPT {
            return Ok((text, num_tokens));
        }
        text += " the";
    }
}
