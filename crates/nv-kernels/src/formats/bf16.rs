//! bfloat16, row by row: what Qwen publishes, read in place.

use half::bf16;

use super::WeightFormat;

pub(super) struct Bf16;

impl WeightFormat for Bf16 {
    const ALIGNMENT: usize = align_of::<bf16>();
    const TAKES_BF16_INPUTS: bool = true;

    fn row_bytes(in_features: usize) -> usize {
        in_features * size_of::<bf16>()
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let row = &bytemuck::cast_slice::<u8, bf16>(data)[row * in_features..][..in_features];
        row.iter().map(|value| value.to_f32())
    }
}
