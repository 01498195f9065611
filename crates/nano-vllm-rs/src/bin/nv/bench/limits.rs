//! The machine's own limits, measured on the threads and on the mapped weights that the model uses.

use std::sync::Arc;

use nano_vllm_rs::kernels::{Isa, Kernels, Precision, product_peak, read_bandwidth};
use nano_vllm_rs::model::Cpu;
use nano_vllm_rs::weights::{Checkpoint, CheckpointFile};

/// What is read to measure bandwidth, at most: far more than any cache holds, and soon done.
const MAX_READ_BYTES: usize = 1 << 30;

/// The limits that a step runs into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes a second.
    pub(crate) read_bandwidth: f64,
    /// Multiplications and additions a second, in the tier and the precision of the model.
    pub(crate) product_peak: f64,
}

/// The product peak of one tier in one precision.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    pub(crate) isa: Isa,
    pub(crate) precision: Precision,
    pub(crate) operations_a_second: f64,
}

/// What limits are measured on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) precision: Precision,
    checkpoint: Arc<Checkpoint>,
}

impl Machine {
    /// The machine as `cpu` uses it, once all of `checkpoint` has been read into memory.
    pub(crate) fn new(cpu: Cpu, precision: Precision, checkpoint: Arc<Checkpoint>) -> Self {
        for file in checkpoint.files() {
            read_bandwidth(cpu.pool(), file.bytes());
        }
        Self { cpu, precision, checkpoint }
    }

    /// The limits at this moment.
    pub(crate) fn limits(&self) -> Limits {
        let files = self.checkpoint.files().iter().map(CheckpointFile::bytes);
        let largest = files.max_by_key(|bytes| bytes.len()).unwrap_or_default();
        let bytes = &largest[..largest.len().min(MAX_READ_BYTES)];
        Limits {
            read_bandwidth: read_bandwidth(self.cpu.pool(), bytes),
            product_peak: product_peak(self.cpu.kernels(), self.cpu.pool(), self.precision),
        }
    }

    /// The product peak of every tier of the machine, in both precisions.
    pub(crate) fn peaks(&self) -> Vec<Peak> {
        let mut peaks = Vec::new();
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            for precision in [Precision::F32, Precision::Bf16] {
                let operations_a_second = product_peak(kernels, self.cpu.pool(), precision);
                peaks.push(Peak { isa: kernels.isa(), precision, operations_a_second });
            }
        }
        peaks
    }

    /// What the system calls its processor, where it says.
    pub(crate) fn cpu_name() -> Option<String> {
        let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
        let line = info.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    }
}
