//! Linear layers: how their rows are split into tasks, and how their input is prepared.
//!
//! Knows no format and no instruction set: a tier's kernel computes a task.

pub(crate) mod gemm;
pub(crate) mod gemv;
pub(crate) mod inputs;
pub(crate) mod int8;
pub(crate) mod kernel;
pub(crate) mod micro_kernel;
pub(crate) mod rows;
pub(crate) mod unpacked;

use std::cell::RefCell;
use std::ops::Range;

use self::inputs::{InputLayout, Inputs, aligned};
use self::kernel::{InputForm, KernelScratch, LinearKernel, Precision, Task};
use self::rows::Rows;
use crate::caches::Caches;
use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::results::{NewResult, Outputs, SharedResult};
use crate::table::Kernels;

/// One weight and the place of its result.
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[out_features, in_features]`.
    pub weight: Matrix<'a>,
    /// Becomes `[num_tokens, out_features]`; its capacity is used again.
    pub out: &'a mut Vec<f32>,
}

/// Memory for prepared inputs, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    /// A buffer for each form that a call's inputs are prepared in.
    inputs: Vec<Vec<u8>>,
}

/// Bytes of weights in a task: an eighth of the second-level cache, so that they stay there beside what they unpack to, the next
/// task and the inputs.
fn task_bytes() -> usize {
    Caches::get().l2 / 8
}

/// Inputs that are prepared in one task: some microseconds of work.
const PREPARED_AT_ONCE: usize = 32 * 1024;

/// See [`Kernels::linear`].
pub(crate) fn linear(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    precision: Precision,
    scratch: &mut Scratch,
    outputs: &mut [Linear<'_>],
) {
    let Some(first) = outputs.first() else { return };
    let k = first.weight.in_features();
    for Linear { weight, .. } in outputs.iter() {
        assert_eq!(weight.in_features(), k, "weights of one region share their input");
    }
    if num_tokens(x, k) == 0 {
        for output in outputs {
            output.out.clear();
        }
        return;
    }
    let weights: Vec<_> = outputs.iter().map(|output| output.weight).collect();
    let x = scratch.prepare(kernels, pool, (x, k), precision, &weights);
    let tasks: Vec<(usize, Rows<'_>)> = weights
        .iter()
        .enumerate()
        .flat_map(|(which, weight)| tasks(*weight, task_bytes(), 1).map(move |rows| (which, rows)))
        .collect();
    let mut results: Vec<NewResult<'_>> = outputs
        .iter_mut()
        .zip(&x)
        .map(|(Linear { weight, out }, x)| {
            NewResult::new(out, x.num_tokens(), weight.out_features())
        })
        .collect();
    let shared: Vec<SharedResult<'_, _>> = results.iter_mut().map(NewResult::shared).collect();
    pool.run(tasks.len(), |task| {
        let (which, rows) = tasks[task];
        let x = x[which];
        let next = tasks.get(task + 1).and_then(|(_, next)| next.if_as(rows));
        // SAFETY: no row is in two of `tasks`, and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint columns")]
        let mut part = unsafe { shared[which].part(0..x.num_tokens(), rows.range()) };
        with_scratch(|ThreadScratch { copies: [copy, _], kernel, .. }| {
            let rows = x.stage(rows, copy);
            for (tokens, panel) in x.panels() {
                x.multiply((rows, next), panel, kernel, part.outputs(tokens));
            }
        });
    });
    for result in results {
        // SAFETY: the tasks are all rows of the weights, and a task writes all tokens.
        #[expect(unsafe_code, reason = "what the tasks wrote is the result")]
        unsafe {
            result.written();
        }
    }
}

/// See [`Kernels::swiglu`].
pub(crate) fn swiglu(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    precision: Precision,
    scratch: &mut Scratch,
    (gate, up): (Matrix<'_>, Matrix<'_>),
    out: &mut Vec<f32>,
) {
    let (k, size) = (gate.in_features(), gate.out_features());
    assert_eq!((up.in_features(), up.out_features()), (k, size), "gate and up are of one shape");
    let num_tokens = num_tokens(x, k);
    if num_tokens == 0 {
        out.clear();
        return;
    }
    let x = scratch.prepare(kernels, pool, (x, k), precision, &[gate, up]);
    // Tokens that gate and up go through together: a panel, or all where their panels differ.
    let panels = |x: &Prepared<'_>| x.panels().map(|(tokens, _)| tokens).collect::<Vec<_>>();
    let mut parts = panels(&x[0]);
    if parts != panels(&x[1]) {
        parts = std::iter::once(0..num_tokens).collect();
    }
    // The same rows of both, whose bytes may differ.
    let tasks: Vec<[Rows<'_>; 2]> = tasks(gate, task_bytes() / 2, up.format().rows_a_task())
        .map(|rows| [rows, Rows { matrix: up, ..rows }])
        .collect();
    let mut result = NewResult::new(out, num_tokens, size);
    let shared = result.shared();
    pool.run(tasks.len(), |task| {
        let [gate, up] = tasks[task];
        let [next_gate, next_up] = tasks.get(task + 1).map_or([None; 2], |next| next.map(Some));
        // A single part goes from gate to up and on; several go back to gate.
        let is_single = parts.len() == 1;
        let after_gate = if is_single { up.if_as(gate) } else { next_gate };
        let after_up = if is_single { next_gate.and_then(|next| next.if_as(up)) } else { next_up };
        // SAFETY: no row is in two of `tasks`, and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint columns")]
        let mut part = unsafe { shared.part(0..num_tokens, gate.range()) };
        with_scratch(|ThreadScratch { copies: [gate_copy, up_copy], kernel, sums }| {
            let gate = x[0].stage(gate, gate_copy);
            let up = x[1].stage(up, up_copy);
            for tokens in &parts {
                let len = tokens.len() * gate.len;
                let (gates, ups) = aligned(sums, 2 * len).split_at_mut(len);
                x[0].multiply_tokens((gate, after_gate), tokens, kernel, gates);
                x[1].multiply_tokens((up, after_up), tokens, kernel, ups);
                // SAFETY: `kernels` exists only where the machine has its tier.
                #[expect(unsafe_code, reason = "kernels need their instruction set")]
                unsafe {
                    (kernels.elementwise.silu_mul)(gates, ups);
                }
                for (token, activated) in tokens.clone().zip(gates.chunks(gate.len)) {
                    part.row(token).write_copy_of_slice(activated);
                }
            }
        });
    });
    // SAFETY: the tasks are all rows of the weights, and a task writes all tokens.
    #[expect(unsafe_code, reason = "what the tasks wrote is the result")]
    unsafe {
        result.written();
    }
}

fn num_tokens(x: &[f32], k: usize) -> usize {
    assert!(x.len().is_multiple_of(k), "{} inputs are not rows of {k}", x.len());
    x.len() / k
}

/// The rows of `weight` in tasks of about so many bytes; no row is in two. But for the last one, a task has as many as the format
/// asks for, and a multiple of `multiple`.
fn tasks(weight: Matrix<'_>, bytes: usize, multiple: usize) -> impl Iterator<Item = Rows<'_>> {
    let of_format = weight.format().rows_a_task();
    let multiple =
        if of_format.is_multiple_of(multiple) { of_format } else { of_format * multiple };
    let step = (bytes / weight.row_bytes()).max(1).next_multiple_of(multiple);
    let num_rows = weight.out_features();
    let len = move |first| step.min(num_rows - first);
    (0..num_rows).step_by(step).map(move |first| Rows { matrix: weight, first, len: len(first) })
}

impl Rows<'_> {
    /// The rows, if they are stored as `others` are.
    fn if_as(self, others: Rows<'_>) -> Option<Self> {
        (self.matrix.format() == others.matrix.format()).then_some(self)
    }
}

/// What a thread keeps between tasks.
#[derive(Debug, Default)]
struct ThreadScratch {
    /// Copies of rows.
    copies: [Vec<u8>; 2],
    /// The results of two weights for a panel, which lie side by side there before they become one.
    sums: Vec<f32>,
    kernel: KernelScratch,
}

/// Calls `work` with the thread's scratch.
fn with_scratch<R>(work: impl FnOnce(&mut ThreadScratch) -> R) -> R {
    thread_local! {
        static SCRATCH: RefCell<ThreadScratch> = RefCell::default();
    }
    SCRATCH.with_borrow_mut(work)
}

/// A weight's kernel, and the inputs as it multiplies them.
#[derive(Clone, Copy)]
struct Prepared<'a> {
    kernel: &'static dyn LinearKernel,
    inputs: Inputs<'a, u8>,
}

impl Prepared<'_> {
    fn layout(&self) -> &InputLayout {
        self.inputs.layout()
    }

    fn num_tokens(&self) -> usize {
        self.layout().num_tokens
    }

    /// The panels: their tokens and their tiles.
    fn panels(&self) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
        self.layout().panels().map(|panel| (self.layout().tokens(panel.clone()), panel))
    }

    /// `rows` as [`Self::multiply`] takes them.
    fn stage<'a>(&self, rows: Rows<'a>, copy: &'a mut Vec<u8>) -> Rows<'a> {
        // SAFETY: the kernel is from a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            self.kernel.stage(rows, self.layout(), copy)
        }
    }

    /// [`Self::multiply`] for the panels of `tokens`, into rows of `out`.
    fn multiply_tokens(
        &self,
        (rows, next): (Rows<'_>, Option<Rows<'_>>),
        tokens: &Range<usize>,
        scratch: &mut KernelScratch,
        out: &mut [f32],
    ) {
        let panels = self.panels().filter(|(of_panel, _)| tokens.contains(&of_panel.start));
        let mut out = out;
        for (of_panel, panel) in panels {
            let of_panel = out.split_off_mut(..of_panel.len() * rows.len).expect("rows of tokens");
            self.multiply((rows, next), panel, scratch, Outputs::over(of_panel, rows.len));
        }
    }

    /// Computes `x @ rowsᵀ` for a panel of the tokens; `next` are rows of the same format that the thread is likely to want
    /// next.
    fn multiply(
        &self,
        (rows, next): (Rows<'_>, Option<Rows<'_>>),
        panel: Range<usize>,
        scratch: &mut KernelScratch,
        out: Outputs<'_>,
    ) {
        let task = Task { rows, next, x: self.inputs, panel };
        // SAFETY: the kernel is from a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            self.kernel.multiply(task, scratch, out);
        }
    }
}

impl Scratch {
    /// `x`, rows of `k`, as `kernels` multiply it by each of `weights` in `precision`. What takes the same form is prepared once.
    fn prepare<'a>(
        &'a mut self,
        kernels: &Kernels,
        pool: &Pool,
        (x, k): (&[f32], usize),
        precision: Precision,
        weights: &[Matrix<'_>],
    ) -> Vec<Prepared<'a>> {
        let of_weights: Vec<_> = weights
            .iter()
            .map(|weight| kernels.linear_kernel(weight.format(), precision))
            .collect();
        let mut forms: Vec<(InputForm, &dyn LinearKernel)> = Vec::new();
        for kernel in &of_weights {
            let form = kernel.input_form();
            if forms.iter().all(|(known, _)| *known != form) {
                forms.push((form, *kernel));
            }
        }
        if self.inputs.len() < forms.len() {
            self.inputs.resize_with(forms.len(), Vec::new);
        }
        let prepared: Vec<(InputForm, Inputs<'a, u8>)> = forms
            .into_iter()
            .zip(&mut self.inputs)
            .map(|((form, kernel), buffer)| (form, prepare(kernel, pool, (x, k), buffer)))
            .collect();
        let inputs = |kernel: &dyn LinearKernel| {
            let form = kernel.input_form();
            prepared.iter().find(|(known, _)| *known == form).expect("each form is prepared").1
        };
        of_weights.into_iter().map(|kernel| Prepared { kernel, inputs: inputs(kernel) }).collect()
    }
}

/// Lays the rows of `x` out as `kernel` wants them, a tile at a time.
fn prepare<'a>(
    kernel: &dyn LinearKernel,
    pool: &Pool,
    (x, k): (&[f32], usize),
    buffer: &'a mut Vec<u8>,
) -> Inputs<'a, u8> {
    let layout = kernel.layout(x.len() / k, k);
    let (len, element_bytes) = (layout.len(), kernel.input_bytes());
    let data = aligned(buffer, len * element_bytes);
    let shared = SharedResult::new(data, len * element_bytes);
    let tiles_at_once = (PREPARED_AT_ONCE * layout.num_tiles / len).max(1);
    pool.run(layout.num_tiles.div_ceil(tiles_at_once), |task| {
        for tile in task * tiles_at_once..layout.num_tiles.min((task + 1) * tiles_at_once) {
            let tokens = layout.tokens(tile..tile + 1);
            let elements = layout.elements(tile..tile + 1);
            let bytes = elements.start * element_bytes..elements.end * element_bytes;
            // SAFETY: tiles are disjoint ranges of elements, and the pool runs a task once.
            #[expect(unsafe_code, reason = "tasks write disjoint columns")]
            let mut part = unsafe { shared.part(0..1, bytes) };
            let x = &x[tokens.start * k..tokens.end * k];
            // SAFETY: the kernel is from a `Kernels`, which exists only where the machine has its tier.
            #[expect(unsafe_code, reason = "kernels need their instruction set")]
            unsafe {
                kernel.prepare(x, k, &layout, part.row(0));
            }
        }
    });
    Inputs::of_bytes(data, layout)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::caches::forced;
    use crate::isa::Isa;

    /// The results of both calls in every tier and format of floating point, as bits.
    fn results(
        (num_tokens, out_features, in_features): (usize, usize, usize),
    ) -> Vec<(String, Vec<u32>)> {
        let values = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|i| ((i * 7919 + seed) % 1021) as f32 / 1021.0 - 0.5).collect()
        };
        let x = values(num_tokens * in_features, 1);
        let w = values(out_features * in_features, 2);
        let w_bf16: Vec<bf16> = w.iter().map(|&w| bf16::from_f32(w)).collect();
        let modes = [
            (Matrix::bf16(&w_bf16, in_features), Precision::Bf16),
            (Matrix::bf16(&w_bf16, in_features), Precision::F32),
            (Matrix::f32(&w, in_features), Precision::F32),
        ];
        let pool = Pool::new(2).unwrap();
        let mut results = Vec::new();
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            let kernels = Kernels::for_isa(isa).unwrap();
            for (weight, precision) in modes {
                let scratch = &mut Scratch::default();
                let (mut out, mut activated) = (Vec::new(), Vec::new());
                let mut outputs = [Linear { weight, out: &mut out }];
                linear(kernels, &pool, &x, precision, scratch, &mut outputs);
                swiglu(kernels, &pool, &x, precision, scratch, (weight, weight), &mut activated);
                let name = format!("{isa}, {:?}, {precision:?}", weight.format());
                let bits = out.iter().chain(&activated).map(|x| x.to_bits()).collect();
                results.push((name, bits));
            }
        }
        results
    }

    #[test]
    fn no_bit_depends_on_the_sizes_of_caches() {
        // Few tokens, some and many, several segments and tasks, steps that aren't whole.
        for sizes in [(2, 60, 1500), (9, 61, 2040), (70, 50, 1030), (130, 49, 1100)] {
            let usual = results(sizes);
            for (l1, l2) in
                [(1_000, 9_000), (5_000, 130_000), (100_000, 700_001), (1 << 24, 1 << 28)]
            {
                forced::set(Some(Caches { l1, l2 }));
                let forced = results(sizes);
                forced::set(None);
                for ((name, got), (_, want)) in forced.iter().zip(&usual) {
                    assert!(got == want, "{name}: {sizes:?} with caches of {l1} and {l2} bytes");
                }
            }
        }
    }
}
