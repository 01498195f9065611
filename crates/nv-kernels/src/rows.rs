//! Kernels that treat each token, or each head of a token, by itself: norms, rotation, embedding lookup.

use std::mem::MaybeUninit;

use crate::matrix::Matrix;
use crate::pool::Pool;
use crate::results::NewResult;
use crate::table::Kernels;

/// Elements of a task: some microseconds of work.
const TASK_ELEMENTS: usize = 16 * 1024;

/// Makes `out` `[num_rows, row_len]`, in parallel: `work(row, out)` writes a row, all of it.
fn for_each_row(
    pool: &Pool,
    out: &mut Vec<f32>,
    (num_rows, row_len): (usize, usize),
    work: impl Fn(usize, &mut [MaybeUninit<f32>]) + Sync,
) {
    let step = (TASK_ELEMENTS / row_len).max(1);
    let mut result = NewResult::new(out, num_rows, row_len);
    let shared = result.shared();
    pool.run(num_rows.div_ceil(step), |task| {
        let rows = task * step..num_rows.min((task + 1) * step);
        // SAFETY: tasks are disjoint ranges of rows, and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint rows")]
        let mut part = unsafe { shared.part(rows.clone(), 0..row_len) };
        for row in rows.clone() {
            work(row, part.row(row - rows.start));
        }
    });
    // SAFETY: the tasks are all rows, and `work` writes all of a row.
    #[expect(unsafe_code, reason = "what the tasks wrote is the result")]
    unsafe {
        result.written();
    }
}

pub(crate) fn rms_norm(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut Vec<f32>,
) {
    let size = weight.len();
    assert!(size > 0 && x.len().is_multiple_of(size));
    for_each_row(pool, out, (x.len() / size, size), |row, out| {
        let x = &x[row * size..][..size];
        // SAFETY: `kernels` exists only where the machine has its tier.
        #[expect(unsafe_code, reason = "kernels need their instruction set")]
        unsafe {
            (kernels.elementwise.rms_norm)(x, weight, eps, out);
        }
    });
}

/// Norm and rotation of the heads of one kind.
#[derive(Debug, Clone, Copy)]
pub struct NormAndRotate<'a> {
    /// `[head_dim]`.
    pub weight: &'a [f32],
    /// Added to the mean of squares.
    pub eps: f32,
    /// `[num_tokens, head_dim / 2]`.
    pub cos: &'a [f32],
    /// `[num_tokens, head_dim / 2]`.
    pub sin: &'a [f32],
}

pub(crate) fn norm_and_rotate(
    kernels: &Kernels,
    pool: &Pool,
    x: &[f32],
    how: NormAndRotate<'_>,
    out: &mut Vec<f32>,
) {
    let NormAndRotate { weight, eps, cos, sin } = how;
    let head_dim = weight.len();
    let half = head_dim / 2;
    assert!(half > 0 && head_dim.is_multiple_of(2) && cos.len() == sin.len());
    assert!(cos.len().is_multiple_of(half));
    let num_tokens = cos.len() / half;
    if num_tokens == 0 {
        assert!(x.is_empty());
        out.clear();
        return;
    }
    let token_len = x.len() / num_tokens;
    assert!(x.len() == num_tokens * token_len && token_len.is_multiple_of(head_dim));
    for_each_row(pool, out, (num_tokens, token_len), |token, out| {
        let (cos, sin) = (&cos[token * half..][..half], &sin[token * half..][..half]);
        let x = &x[token * token_len..][..token_len];
        for (head, out) in x.chunks(head_dim).zip(out.chunks_mut(head_dim)) {
            // SAFETY: `kernels` exists only where the machine has its tier.
            #[expect(unsafe_code, reason = "kernels need their instruction set")]
            unsafe {
                (kernels.elementwise.norm_and_rotate)(head, weight, eps, (cos, sin), out);
            }
        }
    });
}

pub(crate) fn add(pool: &Pool, x: &[f32], y: &[f32], out: &mut Vec<f32>) {
    let len = x.len();
    assert_eq!(y.len(), len);
    if len == 0 {
        out.clear();
        return;
    }
    let mut result = NewResult::new(out, 1, len);
    let shared = result.shared();
    pool.run(len.div_ceil(TASK_ELEMENTS), |task| {
        let range = task * TASK_ELEMENTS..len.min((task + 1) * TASK_ELEMENTS);
        // SAFETY: tasks are disjoint ranges, and the pool runs a task once.
        #[expect(unsafe_code, reason = "tasks write disjoint columns")]
        let mut part = unsafe { shared.part(0..1, range.clone()) };
        for ((out, x), y) in part.row(0).iter_mut().zip(&x[range.clone()]).zip(&y[range]) {
            out.write(x + y);
        }
    });
    // SAFETY: the tasks are all of `x`, `y` and the result, which have one length.
    #[expect(unsafe_code, reason = "what the tasks wrote is the result")]
    unsafe {
        result.written();
    }
}

pub(crate) fn embed(pool: &Pool, table: Matrix<'_>, ids: &[u32], out: &mut Vec<f32>) {
    for_each_row(pool, out, (ids.len(), table.in_features()), |row, out| {
        table.write_row(ids[row] as usize, out);
    });
}
