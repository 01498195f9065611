//! What the bytes of a weight matrix mean: a closed set, each format in a file of its own.

mod bf16;
mod f32;
pub(crate) mod q4;
mod q8;
#[cfg(test)]
mod scaled_bf16;
pub(crate) mod strips;

/// How weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Format {
    /// bfloat16, row by row.
    Bf16,
    /// IEEE 754 binary32, row by row.
    F32,
    /// 8 bits: groups of 128 along K, each an f16 scale and integers from -127 to 127; 16 rows interleaved.
    Q8,
    /// The same with groups of 32, as GGUF's `Q8_0` has them: closer to the original weights, larger and slower.
    Q8Group32,
    /// 4 bits: groups of 128 along K, each an f16 scale, in four parts with a factor and an offset that make its elements integers
    /// as [`Format::Q8`] has them; 16 rows interleaved.
    Q4,
    /// Shows what it takes to add a format.
    #[cfg(test)]
    ScaledBf16,
}

/// A format: where its rows are and what they mean. Tiers may have kernels for it; the scalar tier's follow from this.
pub(crate) trait WeightFormat: Sync + 'static {
    /// What files call it.
    const NAME: &'static str;

    /// What the first byte's address is a multiple of.
    const ALIGNMENT: usize;

    /// Whether inputs may be rounded to bfloat16 for it.
    const TAKES_BF16_INPUTS: bool;

    /// Whether all tiers compute linear layers with the same bits.
    const IS_PORTABLE: bool = false;

    /// Rows that are stored together; a matrix is padded to a multiple of it.
    const ROWS_TOGETHER: usize = 1;

    /// A task's rows are a multiple of it, which the numbers of rows that tiers multiply together divide.
    const ROWS_A_TASK: usize = 24;

    /// Bytes of a row; where rows are stored together, a row's part. `None` if `usize` can't count them.
    fn row_bytes(in_features: usize) -> Option<usize>;

    /// The values of a row in the order of K; `data` are all rows.
    fn values(data: &[u8], in_features: usize, row: usize) -> impl Iterator<Item = f32>;

    /// Stores up to [`Self::ROWS_TOGETHER`] rows of finite values, and zeros for those that are missing, in `out`.
    ///
    /// # Errors
    /// A value that the format can't hold.
    fn encode(rows: &[f32], in_features: usize, out: &mut [u8]) -> Result<(), Unencodable>;

    /// Checks rows that are stored together: `data` are their bytes.
    ///
    /// # Errors
    /// The first number that no encoder writes.
    fn check(_data: &[u8], _in_features: usize) -> Result<(), Flaw> {
        Ok(())
    }
}

/// The place of a value that a format can't hold, in the rows that were to be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unencodable {
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// A number that no encoder writes, in rows that are stored together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Flaw {
    pub(crate) row: usize,
    /// The group along K.
    pub(crate) group: usize,
    pub(crate) scale: f32,
}

/// Something that differs from format to format.
pub(crate) trait FormatVisitor {
    type Output;

    fn visit<F: WeightFormat>(self) -> Self::Output;
}

impl Format {
    /// Every format.
    const ALL: &[Self] = &[Self::Bf16, Self::F32, Self::Q8, Self::Q8Group32, Self::Q4];

    /// What `visitor` has for the format. This is where formats are listed.
    pub(crate) fn visit<V: FormatVisitor>(self, visitor: V) -> V::Output {
        match self {
            Self::Bf16 => visitor.visit::<bf16::Bf16>(),
            Self::F32 => visitor.visit::<f32::F32>(),
            Self::Q8 => visitor.visit::<q8::Q8<32>>(),
            Self::Q8Group32 => visitor.visit::<q8::Q8<8>>(),
            Self::Q4 => visitor.visit::<q4::Q4>(),
            #[cfg(test)]
            Self::ScaledBf16 => visitor.visit::<scaled_bf16::ScaledBf16>(),
        }
    }

    /// What files call the format: `bf16`, `f32`, `q8`, `q8g32`, `q4`.
    pub fn name(self) -> &'static str {
        self.properties().name
    }

    /// The format that [`Self::name`] calls so.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|format| format.name() == name)
    }

    /// Bytes of a matrix `[out_features, in_features]`, padding included; `None` if there are no columns, or if `usize` can't
    /// count the bytes.
    pub fn matrix_bytes(self, out_features: usize, in_features: usize) -> Option<usize> {
        let row_bytes = self.row_bytes(in_features)?;
        out_features.checked_next_multiple_of(self.rows_together())?.checked_mul(row_bytes)
    }

    /// What the address of a matrix's first byte is a multiple of: 64 at most.
    pub fn alignment(self) -> usize {
        self.properties().alignment
    }

    /// Whether linear layers over such weights have the same bits in every tier, so on every machine.
    pub fn is_portable(self) -> bool {
        self.properties().is_portable
    }

    /// Rows that are stored together: a matrix is padded to a multiple of it.
    pub(crate) fn rows_together(self) -> usize {
        self.properties().rows_together
    }

    /// See [`WeightFormat::ROWS_A_TASK`].
    pub(crate) fn rows_a_task(self) -> usize {
        self.properties().rows_a_task
    }

    /// See [`WeightFormat::row_bytes`]; `None` also if there are no columns.
    pub(crate) fn row_bytes(self, in_features: usize) -> Option<usize> {
        struct RowBytes(usize);

        impl FormatVisitor for RowBytes {
            type Output = Option<usize>;

            fn visit<F: WeightFormat>(self) -> Self::Output {
                F::row_bytes(self.0)
            }
        }

        if in_features == 0 { None } else { self.visit(RowBytes(in_features)) }
    }

    fn properties(self) -> Properties {
        struct Of;

        impl FormatVisitor for Of {
            type Output = Properties;

            fn visit<F: WeightFormat>(self) -> Properties {
                Properties {
                    name: F::NAME,
                    alignment: F::ALIGNMENT,
                    is_portable: F::IS_PORTABLE,
                    rows_together: F::ROWS_TOGETHER,
                    rows_a_task: F::ROWS_A_TASK,
                }
            }
        }

        self.visit(Of)
    }
}

/// The constants of a [`WeightFormat`].
struct Properties {
    name: &'static str,
    alignment: usize,
    is_portable: bool,
    rows_together: usize,
    rows_a_task: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_found_by_its_own_name() {
        for &format in Format::ALL {
            assert_eq!(Format::from_name(format.name()), Some(format));
            assert!(format.alignment().is_power_of_two() && format.alignment() <= 64);
        }
        for name in ["", "Q8", "q8 ", "q80", "bfloat16", "scaled_bf16"] {
            assert_eq!(Format::from_name(name), None, "{name:?}");
        }
    }

    #[test]
    fn the_bytes_of_a_matrix_include_its_padding() {
        let check = |format: Format, out_features, in_features, bytes| {
            let got = format.matrix_bytes(out_features, in_features);
            assert_eq!(got, bytes, "{format:?} [{out_features}, {in_features}]");
        };
        check(Format::Bf16, 3, 5, Some(30));
        check(Format::F32, 3, 5, Some(60));
        // 16 rows: a line for the scales of two groups, 2 x 128 values a row.
        check(Format::Q8, 1, 256, Some(64 + 16 * 256));
        check(Format::Q8, 16, 129, Some(64 + 16 * 256));
        check(Format::Q8, 17, 1024, Some(2 * (4 * 64 + 16 * 1024)));
        check(Format::Q8Group32, 16, 33, Some(64 + 16 * 64));
        check(Format::Q8Group32, 16, 96, Some(2 * 64 + 16 * 96));
        // A group of 16 rows: 16 × 128 elements of 4 bits; for each row a scale of 16 bits, 4 factors of 4, 4 offsets of 8.
        check(Format::Q4, 1, 129, Some(2 * 16 * (64 + 2 + 2 + 4)));
        check(Format::Q4, 17, 1024, Some(2 * 8 * 16 * 72));
        for &format in Format::ALL {
            check(format, 0, 7, Some(0));
            check(format, 7, 0, None);
            check(format, 1, usize::MAX, None);
            check(format, usize::MAX, 64, None);
            check(format, usize::MAX / 32, 64, None);
        }
    }
}
