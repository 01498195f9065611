//! What `-v` says of weights that are not read where they are mapped.

use std::collections::BTreeMap;

use nano_vllm_rs::model::{DType, Qwen3Config};
use nano_vllm_rs::qwen3::copied_weights;
use nano_vllm_rs::weights::Checkpoint;

use crate::args::{ComputeArgs, CpuArgs, DeviceArg};
use crate::format::{bytes, plural};
use crate::model::Model;
use crate::table::{Align, Table};
use crate::tensor_names::{ranges, split_at_layer};

/// Which weights a model is computed from copies of, to compute as `compute` says.
pub(crate) fn report(model: &Model, compute: ComputeArgs) -> String {
    match compute.device {
        DeviceArg::Cpu => report_on_cpu(model, compute.cpu),
        DeviceArg::Cuda | DeviceArg::Metal => "weights copied to the device: all".to_owned(),
    }
}

/// As [`report`], on the CPU.
pub(crate) fn report_on_cpu(model: &Model, cpu: CpuArgs) -> String {
    if let Some(preset) = cpu.quantize {
        return format!("weights quantised in memory: all matrices, to {preset}");
    }
    let dtype = model.dtype(cpu.dtype);
    table(&model.config, &model.checkpoint, dtype).to_string().trim_end().to_owned()
}

/// The matrices that a model on the CPU copies to compute in `dtype`, why, and what the copies take; a row for the same
/// tensor of all layers.
pub(crate) fn table(config: &Qwen3Config, checkpoint: &Checkpoint, dtype: DType) -> Table<3> {
    let copied = copied_weights(config, checkpoint, dtype);
    let mut groups = BTreeMap::<_, (Vec<usize>, u64)>::new();
    for weight in &copied {
        let (before, layer, after) = split_at_layer(&weight.name);
        let (layers, num_bytes) =
            groups.entry((before, after, weight.reason.to_string())).or_default();
        layers.extend(layer);
        *num_bytes += weight.num_bytes as u64;
    }
    let total = if copied.is_empty() {
        "none; every matrix is read where its file is mapped".to_owned()
    } else {
        let num_bytes = groups.values().map(|(_, num_bytes)| num_bytes).sum();
        format!("{}, {} in {}", plural(copied.len(), "tensor"), bytes(num_bytes), dtype.as_str())
    };
    let title = format!("weights copied to memory: {total}");
    let mut table = Table::new(title, [Align::Left, Align::Left, Align::Right]);
    for ((before, after, reason), (mut layers, num_bytes)) in groups {
        layers.sort_unstable();
        table.row([&format!("{before}{}{after}", ranges(&layers)), &reason, &bytes(num_bytes)]);
    }
    table
}
