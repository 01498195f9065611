//! Elements of a cache, and what queries and weights become to be multiplied by them.

use crate::elementwise::Elementwise;

/// An element of a cache: a number, or two of them.
pub(super) trait Element: Copy {
    fn is_finite(self) -> bool;

    /// Only the first of two numbers.
    fn first(self) -> Self;
}

/// A pair of bfloat16.
impl Element for u32 {
    fn is_finite(self) -> bool {
        [0x7f80_u32, 0x7f80_0000].iter().all(|exponent| self & exponent != *exponent)
    }

    fn first(self) -> Self {
        self & 0xffff
    }
}

impl Element for f32 {
    fn is_finite(self) -> bool {
        f32::is_finite(self)
    }

    fn first(self) -> Self {
        self
    }
}

/// What queries and weights are multiplied as: some numbers at once, by as many of an element of the cache.
pub(super) trait Operand: Copy + Default {
    /// Numbers at once.
    const NUMBERS: usize;

    /// Rounds `numbers` to the precision that they are multiplied in.
    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [Self]);

    /// Numbers that have that precision: where they are, or in `buffer` if they are packed.
    fn of_rounded<'a>(
        elementwise: &Elementwise,
        numbers: &'a [f32],
        buffer: &'a mut Vec<Self>,
    ) -> &'a [Self];
}

/// A pair of bfloat16.
impl Operand for u32 {
    const NUMBERS: usize = 2;

    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [u32]) {
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.pack_pairs)(numbers, out);
        }
    }

    fn of_rounded<'a>(
        elementwise: &Elementwise,
        numbers: &'a [f32],
        buffer: &'a mut Vec<u32>,
    ) -> &'a [u32] {
        buffer.resize(numbers.len() / 2, 0);
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.pack_rounded)(numbers, buffer);
        }
        buffer
    }
}

/// A pair of bfloat16, widened.
impl Operand for [f32; 2] {
    const NUMBERS: usize = 2;

    fn round(elementwise: &Elementwise, numbers: &[f32], out: &mut [Self]) {
        // SAFETY: `elementwise` is of a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (elementwise.round)(numbers, out.as_flattened_mut());
        }
    }

    fn of_rounded<'a>(_: &Elementwise, numbers: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        numbers.as_chunks().0
    }
}

/// One f32.
impl Operand for [f32; 1] {
    const NUMBERS: usize = 1;

    fn round(_: &Elementwise, numbers: &[f32], out: &mut [Self]) {
        out.as_flattened_mut().copy_from_slice(numbers);
    }

    fn of_rounded<'a>(_: &Elementwise, numbers: &'a [f32], _: &'a mut Vec<Self>) -> &'a [Self] {
        numbers.as_chunks().0
    }
}
