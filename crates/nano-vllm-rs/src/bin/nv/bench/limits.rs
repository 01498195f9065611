//! The machine's own limits, measured on the threads and on the mapped weights that the model uses.

use std::sync::Arc;

use nano_vllm_rs::kernels::{
    Isa, Kernels, Pool, Precision, int8_product_peak, product_peak, read_bandwidth,
};
use nano_vllm_rs::model::Cpu;
use nano_vllm_rs::weights::{Checkpoint, CheckpointFile};

/// What is read to measure bandwidth, at most: far more than any cache holds, and soon done.
const MAX_READ_BYTES: usize = 1 << 30;

/// What is multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Products {
    F32,
    Bf16,
    Int8,
}

impl Products {
    const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// The unit of a thousand million operations a second.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::F32 | Self::Bf16 => "GFLOP/s",
            Self::Int8 => "GOP/s",
        }
    }

    fn peak(self, kernels: &Kernels, pool: &Pool) -> f64 {
        match self {
            Self::F32 => product_peak(kernels, pool, Precision::F32),
            Self::Bf16 => product_peak(kernels, pool, Precision::Bf16),
            Self::Int8 => int8_product_peak(kernels, pool),
        }
    }
}

/// The limits that a step runs into.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes a second.
    pub(crate) read_bandwidth: f64,
    /// Multiplications and additions a second, in the tier and of what the model multiplies.
    pub(crate) product_peak: f64,
}

/// The product peak of one tier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peak {
    pub(crate) isa: Isa,
    pub(crate) products: Products,
    pub(crate) operations_a_second: f64,
}

/// What limits are measured on.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) cpu: Cpu,
    pub(crate) products: Products,
    checkpoint: Arc<Checkpoint>,
}

impl Machine {
    /// The machine as `cpu` uses it, once all of `checkpoint` has been read into memory.
    pub(crate) fn new(cpu: Cpu, products: Products, checkpoint: Arc<Checkpoint>) -> Self {
        for file in checkpoint.files() {
            read_bandwidth(cpu.pool(), file.bytes());
        }
        Self { cpu, products, checkpoint }
    }

    /// The limits at this moment.
    pub(crate) fn limits(&self) -> Limits {
        let files = self.checkpoint.files().iter().map(CheckpointFile::bytes);
        let largest = files.max_by_key(|bytes| bytes.len()).unwrap_or_default();
        let bytes = &largest[..largest.len().min(MAX_READ_BYTES)];
        Limits {
            read_bandwidth: read_bandwidth(self.cpu.pool(), bytes),
            product_peak: self.products.peak(self.cpu.kernels(), self.cpu.pool()),
        }
    }

    /// The product peaks of every tier of the machine.
    pub(crate) fn peaks(&self) -> Vec<Peak> {
        let mut peaks = Vec::new();
        for kernels in Isa::ALL.into_iter().filter_map(Kernels::for_isa) {
            for products in Products::ALL {
                let operations_a_second = products.peak(kernels, self.cpu.pool());
                peaks.push(Peak { isa: kernels.isa(), products, operations_a_second });
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
