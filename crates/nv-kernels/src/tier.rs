//! What the loops that are written once want of a tier's instructions.

use bytemuck::Pod;

/// Work that a tier compiles: its body, with all that is inlined into it, becomes one function with the tier's instructions.
///
/// `run` and what it calls are `#[inline(always)]`: a function that stays by itself has no instructions but those that every
/// machine has.
pub(crate) trait Work {
    type Output;

    fn run(self) -> Self::Output;
}

/// What compiles plain loops: every tier does. A value of the type is a proof that the machine has the tier.
///
/// Methods are `#[inline(always)]`.
pub(crate) trait Compile: Copy + 'static {
    /// # Safety
    /// The machine has the tier.
    #[expect(unsafe_code, reason = "kernels need their instruction set")]
    unsafe fn new() -> Self;

    /// Calls `work`, compiled with the tier's instructions.
    fn compile<W: Work>(self, work: W) -> W::Output;

    /// `a · b + c`: rounded once, but by the scalar tier outside of its portable kernels.
    fn mul_add(a: f32, b: f32, c: f32) -> f32;
}

/// The instructions of a tier that has vectors.
///
/// Methods are `#[inline(always)]`.
pub(crate) trait Tier: Compile {
    /// A vector of f32.
    type Vector: Pod;

    /// Where such work is that the tier compiled.
    #[cfg(all(test, not(debug_assertions)))]
    fn address_of<W: Work>() -> usize;

    fn zero(self) -> Self::Vector;

    /// `a · b + c`, rounded once.
    fn multiply_add(self, a: Self::Vector, b: Self::Vector, c: Self::Vector) -> Self::Vector;

    /// The sums of the lanes of four vectors, all by the same tree.
    fn reduce(self, sums: [Self::Vector; 4]) -> [f32; 4];

    /// Prefetches a line of weights, to the level of cache that suits the tier's loops.
    fn prefetch(self, line: *const u8);

    /// Prefetches a line to the first-level cache.
    fn prefetch_near(self, line: *const u8);
}

/// Products of one kind, over and over: what the machine could do at best.
#[derive(Clone, Copy)]
pub(crate) struct Products {
    /// Does a number of steps and returns something that depends on all of them.
    pub(crate) run: unsafe fn(usize) -> f32,
    pub(crate) operations_a_step: usize,
}
