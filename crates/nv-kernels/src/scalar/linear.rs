//! The specification of linear layers over floating-point weights: products summed in f32 in the order of K, whatever the format.

use std::marker::PhantomData;

use super::Scalar;
use super::int8::Int8;
use crate::elementwise::arrange::{Arrange, InOrder, Rounded, Unrounded, arrange};
use crate::formats::{Format, FormatVisitor, WeightFormat};
use crate::linear::inputs::InputLayout;
use crate::linear::kernel::{InputForm, KernelScratch, LinearKernel, Precision, Task};
use crate::linear::rows::Rows;
use crate::results::Outputs;

/// The tier's linear layers over weights of `format`: it has them for every format.
///
/// # Panics
/// If inputs in bfloat16 would lose what such weights hold.
pub(crate) fn linear(format: Format, precision: Precision) -> &'static dyn LinearKernel {
    match format {
        Format::Q8 | Format::Q4 => &Int8::<32>,
        Format::Q8Group32 => &Int8::<8>,
        _ => format.visit(In(precision)),
    }
}

struct In(Precision);

impl FormatVisitor for In {
    type Output = &'static dyn LinearKernel;

    fn visit<F: WeightFormat>(self) -> Self::Output {
        match self.0 {
            Precision::Bf16 => {
                assert!(F::TAKES_BF16_INPUTS, "inputs are rounded to bf16 only for bf16 weights");
                &Linear::<F>::ROUNDED
            }
            Precision::F32 => &Linear::<F>::UNROUNDED,
        }
    }
}

/// The scalar tier's linear layers over weights of any format. Each token is a tile and a panel, a step one element.
struct Linear<F> {
    form: InputForm,
    arrange: Arrange<f32>,
    format: PhantomData<F>,
}

impl<F> Linear<F> {
    /// Over inputs that are rounded to bfloat16.
    const ROUNDED: Self = Self {
        form: InputForm::Rounded,
        arrange: arrange::<Scalar, InOrder, Rounded>,
        format: PhantomData,
    };

    /// Over inputs as they are.
    const UNROUNDED: Self = Self {
        form: InputForm::Unrounded,
        arrange: arrange::<Scalar, InOrder, Unrounded>,
        format: PhantomData,
    };
}

#[expect(unsafe_code, reason = "tiers that need an instruction set have the same calls")]
impl<F: WeightFormat> LinearKernel for Linear<F> {
    fn input_form(&self) -> InputForm {
        self.form
    }

    fn input_bytes(&self) -> usize {
        size_of::<f32>()
    }

    fn layout(&self, num_tokens: usize, k: usize) -> InputLayout {
        InputLayout::new((num_tokens, k), num_tokens, 1, (1, size_of::<f32>()))
    }

    unsafe fn prepare(&self, tile: &[f32], _: usize, layout: &InputLayout, out: &mut [u8]) {
        // SAFETY: every machine has the scalar tier.
        unsafe { (self.arrange)(tile, layout.step, bytemuck::cast_slice_mut(out), layout.step) };
    }

    unsafe fn stage<'a>(&self, rows: Rows<'a>, _: &InputLayout, _: &'a mut Vec<u8>) -> Rows<'a> {
        rows
    }

    unsafe fn multiply(&self, task: Task<'_>, _: &mut KernelScratch, mut out: Outputs<'_>) {
        let token = task.x.typed::<f32>().tiles(task.panel);
        let (data, k) = (task.rows.matrix.data(), task.rows.matrix.in_features());
        for (i, row) in task.rows.range().enumerate() {
            let products = F::values(data, k, row).zip(token).map(|(w, &x)| w * x);
            out.write((0, i), &[[products.sum()]]);
        }
    }
}
