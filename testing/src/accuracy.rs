//! How far a result may lie from the exact one: the crate's accuracy contract, in one place for examples and tests.
//!
//! With `ref` the exact result on the inputs as they are (already rounded to their type), and `low` the same computation
//! with every step rounded to that type:
//!
//! - `max|out - ref| <= max(2 * max|low - ref| + 1e-5, one ulp of the type at max|ref|)`: of a handful of outputs, `low` may have
//!   little error by luck;
//! - `max|out - ref| <= 2e-3 * max|ref|` in f16 and `1.6e-2 * max|ref|` in bf16;
//! - `|lse - ref| <= 1e-3 + 2^-22 |ref|`: an f32 cannot be nearer where lse is beyond 8000 or so.

use flash_alibi::Attention;
use flash_alibi::cpu::Element;

/// How far an lse may be from this one.
pub fn lse_limit(reference: f64) -> f64 {
    match reference.is_finite() {
        true => 1e-3 + 0.5f64.powi(22) * reference.abs(),
        false => 1e-3,
    }
}

/// `max|out - ref| / max|ref|` may reach this in type `T`; f32 has the other limit only.
pub fn out_ratio_limit<T: Element>() -> f64 {
    match precision::<T>() {
        8 => 1.6e-2, // bf16
        11 => 2e-3,  // f16
        _ => f64::INFINITY,
    }
}

/// The distance of neighbours in type `T` at `x`, which is not negative.
fn ulp<T: Element>(x: f64) -> f64 {
    let precision = precision::<T>();
    // Of the smallest normal number.
    let least = if precision == 11 { -14 } else { -126 };
    let exponent = match x {
        0.0 => least,
        x => (x.log2().floor() as i32).max(least),
    };
    2f64.powi(exponent + 1 - precision)
}

/// Binary digits of type `T`, the implied one included.
fn precision<T: Element>() -> i32 {
    (1..)
        .find(|&bits| T::from_f32(1.0 + 0.5f32.powi(bits)).to_f32() == 1.0)
        .expect("every type ends somewhere")
}

/// One sequence alone: no padding, no gaps. Tensors are `[seqlen, heads, head_dim]`.
#[derive(Debug, Clone)]
pub struct Sequence<T> {
    /// Query rows.
    pub seqlen_q: usize,
    /// Key rows.
    pub seqlen_k: usize,
    /// The position of the first query among the keys: `seqlen_k - seqlen_q` unless offsets say otherwise.
    pub offset: i64,
    /// `[seqlen_q, heads_q, head_dim]`.
    pub q: Vec<T>,
    /// `[seqlen_k, heads_k, head_dim]`.
    pub k: Vec<T>,
    /// As `k`.
    pub v: Vec<T>,
    /// One slope per query head.
    pub slopes: Vec<f32>,
}

/// Whether query row `i` of a sequence, whose first query stands at `offset`, sees key `j`.
pub fn sees(attention: &Attention, offset: i64, i: usize, j: usize) -> bool {
    // i128: no window is too wide for it.
    let distance = i128::from(offset) + i as i128 - j as i128;
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
    let (seqlen_k, offset) = (sequence.seqlen_k, sequence.offset);
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
            if !sees(attention, offset, i, j) {
                return f32::NEG_INFINITY;
            }
            let mut score = round(dot(q, &k[at(j)..][..d]));
            if let Some(cap) = attention.softcap() {
                score = round(cap * round(round(score / cap).tanh()));
            }
            let distance = (i as i64 + offset - j as i64).abs();
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
    /// Likewise, in parts of the limit of each lse.
    lse_ratio: f64,
    low_error: f64,
    max_reference: f64,
    out_ratio_limit: f64,
    ulp: fn(f64) -> f64,
}

impl Accuracy {
    /// Of a result in `T`, of which nothing is known yet.
    pub fn new<T: Element>() -> Self {
        Self {
            out_error: 0.0,
            lse_error: 0.0,
            lse_ratio: 0.0,
            low_error: 0.0,
            max_reference: 0.0,
            out_ratio_limit: out_ratio_limit::<T>(),
            ulp: ulp::<T>,
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
        let error = error(lse, reference);
        self.lse_error = self.lse_error.max(error);
        self.lse_ratio = self.lse_ratio.max(error / lse_limit(reference));
    }

    /// The smaller of the contract's two limits.
    pub fn out_limit(&self) -> f64 {
        let ratio_limit = match self.max_reference {
            0.0 => 0.0, // Not 0 * inf.
            max => max * self.out_ratio_limit,
        };
        let as_low = 2.0 * self.low_error + 1e-5;
        ratio_limit.min(as_low.max((self.ulp)(self.max_reference)))
    }

    /// The largest error of out, in parts of its limit.
    pub fn out_ratio(&self) -> f64 {
        match self.out_error {
            0.0 => 0.0, // Not 0 / 0.
            error => error / self.out_limit(),
        }
    }

    /// The largest error of lse, in parts of its limit.
    pub fn lse_ratio(&self) -> f64 {
        self.lse_ratio
    }

    /// Whether the contract is kept.
    pub fn passes(&self) -> bool {
        self.out_ratio() <= 1.0 && self.lse_ratio <= 1.0
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

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;

    /// Of a handful of outputs that `low` happens to have exactly: half of an ulp is allowed, two are not.
    #[test]
    fn an_ulp_is_allowed_where_low_precision_is_right_by_luck() {
        fn passes<T: Element>(out: f64, reference: f64) -> bool {
            let mut accuracy = Accuracy::new::<T>();
            accuracy.add_out(out, reference, reference);
            accuracy.passes()
        }
        assert!(passes::<f16>(1.5 + 0.5f64.powi(10), 1.5));
        assert!(!passes::<f16>(1.5 + 0.5f64.powi(9), 1.5));
        assert!(passes::<bf16>(1.5 + 0.5f64.powi(7), 1.5));
        assert!(!passes::<bf16>(1.5 + 0.5f64.powi(6), 1.5));
        assert!(passes::<f32>(1.5 + 0.9e-5, 1.5));
        assert!(!passes::<f32>(1.5 + 2e-5, 1.5));
        assert!(!passes::<f16>(1e-9, 0.0));
    }

    #[test]
    fn neighbours_of_each_type() {
        for x in [0.0, 1e-6, 6.2e-5, 0.3, 1.0, 1.999, 2.0, 3000.0] {
            let (half, brain) = (f16::from_f64(x), bf16::from_f64(x));
            let next = f16::from_bits(half.to_bits() + 1).to_f64() - half.to_f64();
            assert_eq!(ulp::<f16>(half.to_f64()), next, "{x}");
            let next = bf16::from_bits(brain.to_bits() + 1).to_f64() - brain.to_f64();
            assert_eq!(ulp::<bf16>(brain.to_f64()), next, "{x}");
        }
    }

    #[test]
    fn lse_has_a_relative_limit_too() {
        let passes = |lse, reference| {
            let mut accuracy = Accuracy::new::<f16>();
            accuracy.add_lse(lse, reference);
            accuracy.passes()
        };
        assert!(passes(3.0009, 3.0));
        assert!(!passes(3.0011, 3.0));
        assert!(passes(1e6 + 0.2, 1e6));
        assert!(!passes(1e6 + 0.3, 1e6));
        assert!(passes(f64::NEG_INFINITY, f64::NEG_INFINITY));
        assert!(!passes(-1e30, f64::NEG_INFINITY));
        assert!(!passes(f64::NAN, 3.0));
    }
}
