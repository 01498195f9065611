//! f32, row by row.

use super::{Unencodable, WeightFormat};

pub(super) struct F32;

impl WeightFormat for F32 {
    const NAME: &'static str = "f32";
    const ALIGNMENT: usize = align_of::<f32>();
    const TAKES_BF16_INPUTS: bool = false;

    fn row_bytes(in_features: usize) -> Option<usize> {
        in_features.checked_mul(size_of::<f32>())
    }

    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32> {
        let row = &bytemuck::cast_slice::<u8, f32>(data)[row * in_features..][..in_features];
        row.iter().copied()
    }

    fn encode(rows: &[f32], _: usize, out: &mut [u8]) -> Result<(), Unencodable> {
        out.copy_from_slice(bytemuck::cast_slice(rows));
        Ok(())
    }
}
