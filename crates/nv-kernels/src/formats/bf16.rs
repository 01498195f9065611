//! bfloat16, row by row: what Qwen publishes, read in place.

use half::bf16;

use super::{Unencodable, WeightFormat};

pub(super) struct Bf16;

impl WeightFormat for Bf16 {
    const NAME: &'static str = "bf16";
    const ALIGNMENT: usize = align_of::<bf16>();
    const TAKES_BF16_INPUTS: bool = true;

    fn row_bytes(in_features: usize) -> Option<usize> {
        in_features.checked_mul(size_of::<bf16>())
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let row = &bytemuck::cast_slice::<u8, bf16>(data)[row * in_features..][..in_features];
        row.iter().map(|value| value.to_f32())
    }

    fn encode(rows: &[f32], in_features: usize, out: &mut [u8]) -> Result<(), Unencodable> {
        let out: &mut [bf16] = bytemuck::cast_slice_mut(out);
        for (i, (out, &value)) in out.iter_mut().zip(rows).enumerate() {
            *out = bf16::from_f32(value);
            if !out.is_finite() {
                return Err(Unencodable { row: i / in_features, column: i % in_features });
            }
        }
        Ok(())
    }
}
