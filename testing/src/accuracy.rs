//! How far a result may lie from the exact one: the crate's accuracy contract, in one place for examples and tests.
//!
//! With `ref` the exact result on the inputs as they are (already rounded to their type), and `low` the same computation
//! with every step rounded to that type:
//!
//! - `max|out - ref| <= 2 * max|low - ref| + 1e-5`,
//! - `max|out - ref| <= 2e-3 * max|ref|` in f16 and `1.6e-2 * max|ref|` in bf16,
//! - `|lse - ref| <= 1e-3`.

use flash_alibi::Attention;
use flash_alibi::cpu::Element;

/// How far lse may be off.
pub const LSE_LIMIT: f64 = 1e-3;

/// `max|out - ref| / max|ref|` may reach this in type `T`; f32 has the other limit only.
pub fn out_ratio_limit<T: Element>() -> f64 {
    let epsilon = (1..)
        .map(|bits| 2f32.powi(-bits))
        .find(|e| T::from_f32(1.0 + e).to_f32() == 1.0)
        .expect("every type ends somewhere");
    match epsilon {
        e if e >= 2f32.powi(-8) => 1.6e-2, // bf16
        e if e >= 2f32.powi(-11) => 2e-3,  // f16
        _ => f64::INFINITY,
    }
}

/// One sequence alone: no padding, no gaps. Tensors are `[seqlen, heads, head_dim]`.
#[derive(Debug, Clone)]
pub struct Sequence<T> {
    /// Query rows.
    pub seqlen_q: usize,
    /// Key rows.
    pub seqlen_k: usize,
    /// `[seqlen_q, heads_q, head_dim]`.
    pub q: Vec<T>,
    /// `[seqlen_k, heads_k, head_dim]`.
    pub k: Vec<T>,
    /// As `k`.
    pub v: Vec<T>,
    /// One slope per query head.
    pub slopes: Vec<f32>,
}

/// Whether query row `i` sees key `j`.
pub fn sees(attention: &Attention, seqlen_q: usize, seqlen_k: usize, i: usize, j: usize) -> bool {
    // i128: no window is too wide for it.
    let distance = i as i128 + seqlen_k as i128 - seqlen_q as i128 - j as i128;
    let before = |reach: usize| distance <= reach as i128;
    let after = |reach: usize| -distance <= reach as i128;
    attention.window_left().is_none_or(before) && attention.window_right().is_none_or(after)
}

/// Attention with every step rounded to `T`, as an engine without a fused kernel computes it in half precision: each
/// tensor operation rounds its result once; sums within one operation are kept in f32. Returns out,
/// `[seqlen_q, heads_q, head_dim]`.
pub fn low_precision<T: Element>(attention: &Attention, sequence: &Sequence<T>) -> Vec<f32> {
    let round = |x: f32| T::from_f32(x).to_f32();
    let widen = |x: &[T]| -> Vec<f32> { x.iter().map(|x| x.to_f32()).collect() };
    let (d, heads_k) = (attention.head_dim(), attention.heads_k());
    let (seqlen_q, seqlen_k) = (sequence.seqlen_q, sequence.seqlen_k);
    let (q, v) = (widen(&sequence.q), widen(&sequence.v));
    let scaled = |k: &T| round(k.to_f32() * round(attention.scale()));
    let k: Vec<f32> = sequence.k.iter().map(scaled).collect();

    let mut out = vec![0.0; q.len()];
    let mut p = Vec::new();
    for (row, out) in out.chunks_exact_mut(d).enumerate() {
        let (i, head) = (row / attention.heads_q(), row % attention.heads_q());
        let head_k = head / attention.group();
        let at = |j: usize| (j * heads_k + head_k) * d;
        let q = &q[row * d..][..d];

        p.clear();
        p.extend((0..seqlen_k).map(|j| {
            if !sees(attention, seqlen_q, seqlen_k, i, j) {
                return f32::NEG_INFINITY;
            }
            let mut score = round(dot(q, &k[at(j)..][..d]));
            if let Some(cap) = attention.softcap() {
                score = round(cap * round(round(score / cap).tanh()));
            }
            let distance = (i as i64 + seqlen_k as i64 - seqlen_q as i64 - j as i64).abs();
            round(score - round(sequence.slopes[head] * distance as f32))
        }));
        let max = p.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::NEG_INFINITY {
            continue; // No visible key: zero.
        }
        p.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f32 = p.iter().sum();
        for (j, p) in p.iter().enumerate().filter(|(_, p)| **p != 0.0) {
            let p = round(p / sum);
            for (out, v) in out.iter_mut().zip(&v[at(j)..]) {
                *out += p * v;
            }
        }
        out.iter_mut().for_each(|x| *x = round(*x));
    }
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    // Eight sums: the loop vectorises, as any real implementation's does.
    let mut sums = [0.0; 8];
    for (a, b) in a.chunks_exact(8).zip(b.chunks_exact(8)) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

/// The largest errors of a result, gathered element by element, and what the contract says of them.
#[derive(Debug, Clone, Copy)]
pub struct Accuracy {
    /// The largest error of out.
    pub out_error: f64,
    /// The largest error of lse.
    pub lse_error: f64,
    low_error: f64,
    max_reference: f64,
    out_ratio_limit: f64,
}

impl Accuracy {
    /// Of a result in `T`, of which nothing is known yet.
    pub fn new<T: Element>() -> Self {
        Self {
            out_error: 0.0,
            lse_error: 0.0,
            low_error: 0.0,
            max_reference: 0.0,
            out_ratio_limit: out_ratio_limit::<T>(),
        }
    }

    /// An element of out, as it was found, in low precision, and exact.
    pub fn add_out(&mut self, out: f64, low: f64, reference: f64) {
        self.out_error = self.out_error.max(error(out, reference));
        let low_error = error(low, reference);
        // Where the low type overflows it says nothing about how well one can do.
        if low_error.is_finite() {
            self.low_error = self.low_error.max(low_error);
        }
        if reference.is_finite() {
            self.max_reference = self.max_reference.max(reference.abs());
        }
    }

    /// An element of lse, as it was found, and exact.
    pub fn add_lse(&mut self, lse: f64, reference: f64) {
        self.lse_error = self.lse_error.max(error(lse, reference));
    }

    /// The smaller of the contract's two limits.
    pub fn out_limit(&self) -> f64 {
        let ratio_limit = match self.max_reference {
            0.0 => 0.0, // Not 0 * inf.
            max => max * self.out_ratio_limit,
        };
        ratio_limit.min(2.0 * self.low_error + 1e-5)
    }

    /// Whether the contract is kept.
    pub fn passes(&self) -> bool {
        self.out_error <= self.out_limit() && self.lse_error <= LSE_LIMIT
    }
}

/// `|x - reference|`; infinite where one of them is NaN or infinite and the other is not the same.
fn error(x: f64, reference: f64) -> f64 {
    if x.is_finite() && reference.is_finite() {
        (x - reference).abs()
    } else if x == reference || (x.is_nan() && reference.is_nan()) {
        0.0
    } else {
        f64::INFINITY
    }
}
