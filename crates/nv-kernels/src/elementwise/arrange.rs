//! How the inputs of linear layers are put where a tier's dot products want them: elements of a step in some order, each in
//! some form.
#![expect(clippy::inline_always, reason = "each tier compiles its own copy")]
#![expect(unsafe_code, reason = "kernels need their instruction set")]

use std::marker::PhantomData;

use half::bf16;

use super::bf16::{round_bits, rounded};
use crate::tier::{Compile, Work};

/// `(x, step, out, stride)`: puts `x` into `out` in steps of `step` elements, `stride` apart; the last is padded.
pub(crate) type Arrange<E> = unsafe fn(&[f32], usize, &mut [E], usize);

/// An [`Arrange`] that puts elements in the order `O`, in the form `F`.
///
/// # Safety
/// The machine has the tier.
pub(crate) unsafe fn arrange<C: Compile, O: Order, F: Form>(
    x: &[f32],
    step: usize,
    out: &mut [F::Element],
    stride: usize,
) {
    // SAFETY: says the caller.
    let tier = unsafe { C::new() };
    tier.compile(InSteps::<O, F> { x, step, out, stride, order: PhantomData });
}

/// What an element becomes.
///
/// Methods are `#[inline(always)]`.
pub(crate) trait Form: 'static {
    type Element: Copy + Default;

    fn of(x: f32) -> Self::Element;
}

/// As it is.
pub(crate) struct Unrounded;

impl Form for Unrounded {
    type Element = f32;

    #[inline(always)]
    fn of(x: f32) -> f32 {
        x
    }
}

/// Rounded to bfloat16, and widened again.
pub(crate) struct Rounded;

impl Form for Rounded {
    type Element = f32;

    #[inline(always)]
    fn of(x: f32) -> f32 {
        rounded(x)
    }
}

/// Rounded to bfloat16.
pub(crate) struct Bf16;

impl Form for Bf16 {
    type Element = bf16;

    #[inline(always)]
    fn of(x: f32) -> bf16 {
        bf16::from_bits(round_bits(x))
    }
}

/// The order of a step's elements.
///
/// Methods are `#[inline(always)]`.
pub(crate) trait Order: 'static {
    fn arrange<F: Form>(x: &[f32], step: usize, out: &mut [F::Element], stride: usize);
}

/// Each in its place, in steps of any length.
pub(crate) struct InOrder;

impl Order for InOrder {
    #[inline(always)]
    fn arrange<F: Form>(x: &[f32], step: usize, out: &mut [F::Element], stride: usize) {
        for (x, out) in x.chunks(step).zip(out.chunks_mut(stride)) {
            for (out, &x) in out.iter_mut().zip(x) {
                *out = F::of(x);
            }
            out[x.len()..step].fill(F::Element::default());
        }
    }
}

/// The even ones before the odd ones, in steps of `N`.
pub(crate) struct Split<const N: usize>;

impl<const N: usize> Order for Split<N> {
    #[inline(always)]
    fn arrange<F: Form>(x: &[f32], step: usize, out: &mut [F::Element], stride: usize) {
        permute::<F, N>(x, step, const { &split() }, out, stride);
    }
}

const fn split<const N: usize>() -> [usize; N] {
    let mut order = [0; N];
    let mut i = 0;
    while i < N {
        order[i] = if i < N / 2 { 2 * i } else { 2 * (i - N / 2) + 1 };
        i += 1;
    }
    order
}

/// The even ones of 16 before the odd ones, but by pairs as one shuffle takes them from two vectors of f32.
pub(crate) struct Paired;

impl Order for Paired {
    #[inline(always)]
    fn arrange<F: Form>(x: &[f32], step: usize, out: &mut [F::Element], stride: usize) {
        const ORDER: [usize; 16] = [0, 2, 8, 10, 4, 6, 12, 14, 1, 3, 9, 11, 5, 7, 13, 15];
        permute::<F, 16>(x, step, &ORDER, out, stride);
    }
}

/// Steps of `N` elements; `order` says which of them comes where.
#[inline(always)]
fn permute<F: Form, const N: usize>(
    x: &[f32],
    step: usize,
    order: &[usize; N],
    out: &mut [F::Element],
    stride: usize,
) {
    assert_eq!(step, N);
    let (steps, rest) = x.as_chunks();
    let mut places = out.chunks_mut(stride);
    for (x, out) in steps.iter().zip(&mut places) {
        put::<F, N>(x, order, out);
    }
    if let (false, Some(out)) = (rest.is_empty(), places.next()) {
        let mut padded = [0.0; N];
        padded[..rest.len()].copy_from_slice(rest);
        put::<F, N>(&padded, order, out);
    }
}

/// A step.
#[inline(always)]
fn put<F: Form, const N: usize>(x: &[f32; N], order: &[usize; N], out: &mut [F::Element]) {
    for (out, &i) in out.iter_mut().zip(order) {
        *out = F::of(x[i]);
    }
}

struct InSteps<'a, O, F: Form> {
    x: &'a [f32],
    step: usize,
    out: &'a mut [F::Element],
    stride: usize,
    order: PhantomData<O>,
}

impl<O: Order, F: Form> Work for InSteps<'_, O, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        O::arrange::<F>(self.x, self.step, self.out, self.stride);
    }
}
