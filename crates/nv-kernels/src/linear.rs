//! Linear layers: how their rows are split into pieces, and how their input is prepared.
//!
//! Knows no instruction set: a tier computes a piece.

use std::cell::RefCell;
use std::ops::Range;

use half::bf16;

use crate::block::{Tokens, TokensShape, Weights, aligned, starts_line};
use crate::dispatch::{Kernels, LinearKernel};
use crate::elementwise::Arrange;
use crate::panel::{Elements, Matrix, NewResult, Outputs, Panel, SharedResult};
use crate::pool::Pool;

/// What a linear layer does with its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Rounds it once to bfloat16, as the weights are.
    Bf16,
    /// Takes it as it is; bfloat16 weights are widened.
    F32,
}

/// One weight and the place of its result.
#[derive(Debug)]
pub struct Linear<'a> {
    /// `[out_features, in_features]`.
    pub weight: Matrix<'a>,
    /// Becomes `[num_tokens, out_features]`; its room is used again.
    pub out: &'a mut Vec<f32>,
}

/// Room for prepared inputs, kept between calls.
#[derive(Debug, Default)]
pub struct Scratch {
    bf16: Vec<bf16>,
    widened: Vec<f32>,
    f32: Vec<f32>,
}

/// Bytes of weights in a piece: small enough to share the work evenly and to stay in the second-level cache with the next
/// piece, large enough for a steady stream.
const PIECE_BYTES: usize = 128 * 1024;

/// Inputs that one piece arranges: some microseconds of work.
const ARRANGED_AT_ONCE: usize = 32 * 1024;

/// The inputs as the tier multiplies them, for weights of each dtype that there are. Their tiles are alike.
#[derive(Debug, Clone, Copy)]
struct Inputs<'a> {
    /// For bfloat16 weights, pairs of both.
    pairs: Option<Tokens<'a, bf16>>,
    /// For bfloat16 weights that are widened.
    widened: Option<Tokens<'a, f32>>,
    /// For f32 weights.
    f32: Option<Tokens<'a, f32>>,
}

pub(crate) fn run(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    precision: Precision,
    scratch: &mut Scratch,
    outputs: &mut [Linear<'_>],
) {
    let Some(first) = outputs.first() else { return };
    let k = first.weight.in_features;
    let num_tokens = num_tokens(x, k);
    for Linear { weight, .. } in outputs.iter() {
        assert_eq!(weight.in_features, k, "weights of one region share their input");
    }
    if num_tokens == 0 {
        for output in outputs {
            output.out.clear();
        }
        return;
    }
    let weights = outputs.iter().map(|output| output.weight);
    let x = scratch.prepare(kernels, pool, (x, k), precision, weights);
    let pieces: Vec<(usize, Rows<'_>)> = outputs
        .iter()
        .enumerate()
        .flat_map(|(which, Linear { weight, .. })| {
            pieces(*weight, PIECE_BYTES).map(move |rows| (which, rows))
        })
        .collect();
    let mut results: Vec<NewResult<'_>> = outputs
        .iter_mut()
        .map(|Linear { weight, out }| NewResult::new(out, num_tokens, weight.out_features()))
        .collect();
    let rooms: Vec<SharedResult<'_, _>> = results.iter_mut().map(NewResult::room).collect();
    pool.run(pieces.len(), |piece| {
        let (which, rows) = pieces[piece];
        let next = pieces.get(piece + 1).map(|(_, rows)| *rows);
        // SAFETY: no row is in two of `pieces`, and the pool runs a piece once.
        #[expect(unsafe_code, reason = "pieces write disjoint columns")]
        let mut part = unsafe { rooms[which].part(0..num_tokens, rows.range()) };
        with_room(|Room { copies: [copy, _], .. }| {
            let rows = copy.of(rows, x.shape());
            for tiles in x.shape().parts() {
                let tokens = x.shape().tokens(tiles.clone());
                block(kernels, (rows, next), x, tiles, part.outputs(tokens));
            }
        });
    });
    for result in results {
        // SAFETY: the pieces are all rows of the weights, and a piece writes all tokens.
        #[expect(unsafe_code, reason = "what the pieces wrote is the result")]
        unsafe {
            result.written();
        }
    }
}

pub(crate) fn swiglu(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    precision: Precision,
    scratch: &mut Scratch,
    (gate, up): (Matrix<'_>, Matrix<'_>),
    out: &mut Vec<f32>,
) {
    let (k, size) = (gate.in_features, gate.out_features());
    let num_tokens = num_tokens(x, k);
    assert_eq!((up.in_features, up.out_features()), (k, size), "gate and up are of one shape");
    if num_tokens == 0 {
        out.clear();
        return;
    }
    let x = scratch.prepare(kernels, pool, (x, k), precision, [gate, up].into_iter());
    // The same rows of both, whose elements may differ in size.
    let pieces: Vec<(Rows<'_>, Rows<'_>)> =
        pieces(gate, PIECE_BYTES / 2).map(|rows| (rows, Rows { weight: up, ..rows })).collect();
    let mut result = NewResult::new(out, num_tokens, size);
    let room = result.room();
    pool.run(pieces.len(), |piece| {
        let (gate, up) = pieces[piece];
        let (next_gate, next_up) = pieces.get(piece + 1).copied().unzip();
        // SAFETY: no row is in two of `pieces`, and the pool runs a piece once.
        #[expect(unsafe_code, reason = "pieces write disjoint columns")]
        let mut part = unsafe { room.part(0..num_tokens, gate.range()) };
        with_room(|Room { copies: [copied_gate, copied_up], sums }| {
            // A single part goes from gate to up and on; several go back to gate.
            let is_single = x.shape().parts().len() == 1;
            let after_gate = if is_single { Some(up) } else { next_gate };
            let after_up = if is_single { next_gate } else { next_up };
            let (gate, up) = (copied_gate.of(gate, x.shape()), copied_up.of(up, x.shape()));
            for tiles in x.shape().parts() {
                let tokens = x.shape().tokens(tiles.clone());
                let len = tokens.len() * gate.len;
                let (gates, ups) = aligned(sums, 2 * len).split_at_mut(len);
                let outputs = Outputs::over(gates, gate.len);
                block(kernels, (gate, after_gate), x, tiles.clone(), outputs);
                block(kernels, (up, after_up), x, tiles, Outputs::over(ups, up.len));
                // SAFETY: `kernels` exists only where the machine has its tier.
                #[expect(unsafe_code, reason = "kernels need their instruction set")]
                unsafe {
                    (kernels.elementwise.silu_mul)(gates, ups);
                }
                for (token, activated) in tokens.zip(gates.chunks(gate.len)) {
                    part.row(token).write_copy_of_slice(activated);
                }
            }
        });
    });
    // SAFETY: the pieces are all rows of the weights, and a piece writes all tokens.
    #[expect(unsafe_code, reason = "what the pieces wrote is the result")]
    unsafe {
        result.written();
    }
}

fn num_tokens(x: &[f32], k: usize) -> usize {
    assert!(x.len().is_multiple_of(k), "{} inputs are not rows of {k}", x.len());
    x.len() / k
}

impl Inputs<'_> {
    fn shape(&self) -> &TokensShape {
        let f32 = self.widened.as_ref().or(self.f32.as_ref()).map(Tokens::shape);
        f32.or(self.pairs.as_ref().map(Tokens::shape)).expect("there are weights")
    }
}

/// What a thread keeps between pieces.
#[derive(Debug, Default)]
struct Room {
    /// Copies of rows.
    copies: [Copied; 2],
    /// A part's results, which lie side by side there before they go to their places far apart.
    sums: Vec<f32>,
}

/// Calls `work` with the thread's room.
fn with_room<R>(work: impl FnOnce(&mut Room) -> R) -> R {
    thread_local! {
        static ROOM: RefCell<Room> = RefCell::default();
    }
    ROOM.with_borrow_mut(work)
}

/// Room for a copy of rows.
#[derive(Debug, Default)]
struct Copied {
    bf16: Vec<bf16>,
    f32: Vec<f32>,
}

impl Copied {
    /// `rows`, or a copy of them if their K is no whole number of steps or if that saves time.
    ///
    /// Several parts of several tiles save time: all read the rows, and where they don't start with a cache line, as in most
    /// checkpoints, nearly every load takes two. A single part has its rows copied as they come.
    fn of<'a>(&'a mut self, rows: Rows<'a>, shape: &TokensShape) -> Rows<'a> {
        fn copied<'a, E: Copy + Default>(
            copy: &'a mut Vec<E>,
            rows: Panel<'_, E>,
            shape: &TokensShape,
        ) -> Option<&'a [E]> {
            let (k, padded_k) = (rows.k(), shape.padded_k);
            let is_read_often = shape.tiles_a_part > 1 && shape.parts().len() > 1;
            if k == padded_k && (starts_line(rows.elements()) || !is_read_often) {
                return None;
            }
            let copy = aligned(copy, rows.num_rows() * padded_k);
            for (r, copy) in copy.chunks_exact_mut(padded_k).enumerate() {
                copy[..k].copy_from_slice(rows.row(r));
                copy[k..].fill(E::default());
            }
            Some(copy)
        }
        let padded_k = shape.padded_k;
        let weight = if let Some(bf16) = rows.bf16() {
            copied(&mut self.bf16, bf16, shape).map(|copy| Matrix::bf16(copy, padded_k))
        } else {
            let f32 = rows.f32().expect("they are not bf16");
            copied(&mut self.f32, f32, shape).map(|copy| Matrix::f32(copy, padded_k))
        };
        weight.map_or(rows, |weight| Rows { weight, first: 0, len: rows.len })
    }
}

/// Some rows of a weight.
#[derive(Debug, Clone, Copy)]
struct Rows<'a> {
    weight: Matrix<'a>,
    first: usize,
    len: usize,
}

impl<'a> Rows<'a> {
    fn range(self) -> Range<usize> {
        self.first..self.first + self.len
    }

    /// The rows, if they are bfloat16.
    fn bf16(self) -> Option<Panel<'a, bf16>> {
        match self.weight.data {
            Elements::Bf16(data) => {
                Some(Panel::new(data, self.weight.in_features).rows(self.range()))
            }
            Elements::F32(_) => None,
        }
    }

    /// The rows, if they are f32.
    fn f32(self) -> Option<Panel<'a, f32>> {
        match self.weight.data {
            Elements::F32(data) => {
                Some(Panel::new(data, self.weight.in_features).rows(self.range()))
            }
            Elements::Bf16(_) => None,
        }
    }
}

/// The rows of `weight` in pieces of about so many bytes; no row is in two.
fn pieces(weight: Matrix<'_>, bytes: usize) -> impl Iterator<Item = Rows<'_>> {
    /// What the tiers' numbers of rows multiplied together divide.
    const MULTIPLE: usize = 24;
    let element_bytes = match weight.data {
        Elements::Bf16(_) => size_of::<bf16>(),
        Elements::F32(_) => size_of::<f32>(),
    };
    let step = (bytes / (weight.in_features * element_bytes)).max(1);
    let step = step.next_multiple_of(MULTIPLE);
    let num_rows = weight.out_features();
    let len = move |first| step.min(num_rows - first);
    (0..num_rows).step_by(step).map(move |first| Rows { weight, first, len: len(first) })
}

/// Computes `x @ rowsᵀ` for a part of `x`; `next` are the rows that the thread is likely to want
/// next.
fn block(
    kernels: &Kernels,
    (rows, next): (Rows<'_>, Option<Rows<'_>>),
    x: Inputs<'_>,
    part: Range<usize>,
    out: Outputs<'_>,
) {
    fn call<W: Copy, X: Copy>(
        kernel: &LinearKernel<W, X>,
        (rows, next): (Panel<'_, W>, Option<Panel<'_, W>>),
        x: Tokens<'_, X>,
        part: Range<usize>,
        out: Outputs<'_>,
    ) {
        assert_eq!(x.shape().padded_k, rows.k(), "rows are whole steps");
        let next = next.unwrap_or(rows.rows(0..0));
        // SAFETY: `kernel` is from a `Kernels`, which exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (kernel.block)(Weights { rows, next }, x, part, out);
        }
    }
    let bf16_rows = || (rows.bf16().expect("they are not f32"), next.and_then(Rows::bf16));
    if let Some(w) = rows.f32() {
        let x = x.f32.expect("inputs for f32 weights");
        call(&kernels.linear_f32, (w, next.and_then(Rows::f32)), x, part, out);
    } else if let (Some(x), Some(kernel)) = (x.pairs, &kernels.linear_bf16) {
        call(kernel, bf16_rows(), x, part, out);
    } else {
        let x = x.widened.expect("inputs for bf16 weights");
        call(&kernels.linear_bf16_f32, bf16_rows(), x, part, out);
    }
}

impl Scratch {
    /// `x`, rows of `k`, as `kernels` multiply it by `weights` in `precision`.
    fn prepare<'a, 'w>(
        &'a mut self,
        kernels: &Kernels,
        pool: &Pool,
        (x, k): (&[f32], usize),
        precision: Precision,
        mut weights: impl Iterator<Item = Matrix<'w>> + Clone,
    ) -> Inputs<'a> {
        let is_f32 = |weight: Matrix<'_>| matches!(weight.data, Elements::F32(_));
        let any_f32 = weights.clone().any(is_f32);
        let any_bf16 = weights.any(|weight| !is_f32(weight));
        assert!(
            !any_f32 || precision == Precision::F32,
            "inputs are rounded to bf16 only for bf16 weights"
        );
        let elementwise = kernels.elementwise;
        let mut inputs = Inputs { pairs: None, widened: None, f32: None };
        match (precision, &kernels.linear_bf16) {
            _ if !any_bf16 => {}
            (Precision::Bf16, Some(kernel)) => {
                let arranged = elementwise.arrange_bf16;
                inputs.pairs = Some(arrange(kernel, pool, (x, k), &mut self.bf16, arranged));
            }
            (precision, _) => {
                let kernel = &kernels.linear_bf16_f32;
                let arranged = match precision {
                    Precision::Bf16 => elementwise.arrange_rounded,
                    Precision::F32 => elementwise.arrange_unrounded,
                };
                inputs.widened = Some(arrange(kernel, pool, (x, k), &mut self.widened, arranged));
            }
        }
        if any_f32 {
            let (kernel, arranged) = (&kernels.linear_f32, elementwise.arrange_f32);
            inputs.f32 = Some(arrange(kernel, pool, (x, k), &mut self.f32, arranged));
        }
        if let Inputs { widened: Some(widened), f32: Some(f32), .. } = &inputs {
            assert!(widened.shape().parts().eq(f32.shape().parts()), "tiles are alike");
        }
        inputs
    }
}

/// Lays the rows of `x` out as `kernel` wants them, a tile at a time, each row by `arranged`.
fn arrange<'a, W, E: Copy + Default + Send>(
    kernel: &LinearKernel<W, E>,
    pool: &Pool,
    (x, k): (&[f32], usize),
    buffer: &'a mut Vec<E>,
    arranged: Arrange<E>,
) -> Tokens<'a, E> {
    let num_tokens = x.len() / k;
    let shape = (kernel.shape)(num_tokens, k);
    let len = shape.num_tokens * shape.padded_k;
    let data = aligned(buffer, len);
    let shared = SharedResult::new(data, len);
    let tiles_at_once = (ARRANGED_AT_ONCE * shape.num_tiles / len).max(1);
    pool.run(shape.num_tiles.div_ceil(tiles_at_once), |piece| {
        for tile in piece * tiles_at_once..shape.num_tiles.min((piece + 1) * tiles_at_once) {
            let tokens = shape.tokens(tile..tile + 1);
            // SAFETY: tiles are disjoint ranges of elements, and the pool runs a piece once.
            #[expect(unsafe_code, reason = "pieces write disjoint columns")]
            let mut part = unsafe { shared.part(0..1, shape.elements(tile..tile + 1)) };
            let stride = tokens.len() * shape.step;
            for (i, token) in tokens.enumerate() {
                let row = &x[token * k..(token + 1) * k];
                // SAFETY: `arranged` is from a `Kernels`, which exists only where the machine has its tier.
                #[expect(unsafe_code, reason = "kernels need their instruction set")]
                unsafe {
                    arranged(row, shape.step, &mut part.row(0)[i * shape.step..], stride);
                }
            }
        }
    });
    Tokens::new(data, shape)
}
