//! Floating-point rules of PTX that differ from the host's: rounding modes, flushing, NaNs.

/// Rounding of a result to its format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Round {
    /// To nearest, ties to even.
    Near,
    /// To nearest, ties away from zero.
    NearAway,
    Zero,
    Down,
    Up,
}

/// Results that are NaN have one encoding in single and half precision.
pub(crate) const NAN32: u32 = 0x7fff_ffff;
pub(crate) const NAN16: u16 = 0x7fff;

#[inline(always)]
pub(crate) fn f(x: u32) -> f32 {
    f32::from_bits(x)
}

/// The bits of a result, NaN made canonical.
#[inline(always)]
pub(crate) fn canon(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

/// Subnormals become zeros of their sign.
#[inline(always)]
pub(crate) fn flush(x: u32) -> u32 {
    if x & 0x7f80_0000 == 0 {
        x & 0x8000_0000
    } else {
        x
    }
}

/// `.sat`: to `[0, 1]`, NaN to 0.
#[inline(always)]
pub(crate) fn saturate(x: f32) -> f32 {
    // The sum makes -0 into +0.
    if x.is_nan() {
        0.0
    } else {
        x.clamp(0.0, 1.0) + 0.0
    }
}

/// Sum and its exact rounding error.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// `s` plus an error of at most half its unit, rounded so that a second rounding to far fewer bits
/// is exact: truncated, with the last bit set if anything was lost.
fn to_odd(s: f64, error: f64) -> f64 {
    if error == 0.0 || !s.is_finite() {
        return s;
    }
    if s == 0.0 {
        return error;
    }
    let bits = s.to_bits();
    let truncated = if (error > 0.0) == (s > 0.0) {
        bits
    } else {
        bits - 1
    };
    f64::from_bits(truncated | 1)
}

/// `a + b` ready for one more rounding to single precision or less.
pub(crate) fn add_odd(a: f64, b: f64) -> f64 {
    let (s, e) = two_sum(a, b);
    to_odd(s, e)
}

/// `a / b`, as [`add_odd`].
pub(crate) fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || b.is_infinite() || q == 0.0 {
        return q;
    }
    let r = (-q).mul_add(b, a);
    to_odd(q, if r == 0.0 { 0.0 } else { r * b.signum() })
}

/// The square root, as [`add_odd`].
pub(crate) fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    to_odd(s, (-s).mul_add(s, a))
}

/// Rounds an exact (or to-odd) value to single precision.
pub(crate) fn round32(x: f64, mode: Round) -> f32 {
    if mode == Round::Near {
        return x as f32;
    }
    let r = x as f32;
    if !x.is_finite() {
        return r;
    }
    let back = f64::from(r);
    match mode {
        Round::Zero if back.abs() > x.abs() => f32::from_bits(r.to_bits() - 1),
        Round::Down if back > x => r.next_down(),
        Round::Up if back < x => r.next_up(),
        _ => r,
    }
}

/// Corrects a double-precision result that was rounded to nearest, given the sign of its error.
pub(crate) fn fix64(r: f64, error: f64, mode: Round) -> f64 {
    // An infinite error beside an infinite result: finite operands whose result is past the largest number.
    if r.is_infinite() && !error.is_infinite() || r.is_nan() || error == 0.0 || error.is_nan() {
        return r;
    }
    match mode {
        Round::Zero if error > 0.0 && r < 0.0 => r.next_up(),
        Round::Zero if error < 0.0 && r > 0.0 => r.next_down(),
        Round::Down if error < 0.0 => r.next_down(),
        Round::Up if error > 0.0 => r.next_up(),
        _ => r,
    }
}

pub(crate) fn mul64(a: f64, b: f64, mode: Round) -> f64 {
    let product = a * b;
    let (small, large) = if a.abs() < b.abs() { (a, b) } else { (b, a) };
    // Where the error would be too small to be a number, its sign is found at a larger scale.
    let scale = if product.abs() < 1e-250 {
        2f64.powi(600)
    } else {
        1.0
    };
    fix64(
        product,
        (small * scale).mul_add(large, -(product * scale)),
        mode,
    )
}

pub(crate) fn add64(a: f64, b: f64, mode: Round) -> f64 {
    if mode == Round::Near {
        return a + b;
    }
    let (s, e) = two_sum(a, b);
    // An exact zero of operands of different sign is -0 when rounding down.
    if s == 0.0 && e == 0.0 && mode == Round::Down && (a.is_sign_negative() || b.is_sign_negative())
    {
        return -0.0;
    }
    fix64(s, e, mode)
}

pub(crate) fn fma64(a: f64, b: f64, c: f64, mode: Round) -> f64 {
    let r = a.mul_add(b, c);
    if mode == Round::Near || !r.is_finite() {
        return r;
    }
    let p = a * b;
    let low = a.mul_add(b, -p);
    let (s, t) = two_sum(p, c);
    fix64(r, ((s - r) + t) + low, mode)
}

/// A small binary format: exponent and stored significand bits.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Format {
    pub exponent: u32,
    pub fraction: u32,
}

pub(crate) const F16: Format = Format {
    exponent: 5,
    fraction: 10,
};
pub(crate) const BF16: Format = Format {
    exponent: 8,
    fraction: 7,
};
pub(crate) const TF32: Format = Format {
    exponent: 8,
    fraction: 10,
};

/// Rounds an exact (or to-odd) value to a format of at most 32 bits. NaN gives all ones below the
/// sign; overflow gives infinity or the largest finite number, as the mode says.
pub(crate) fn round_small(x: f64, to: Format, mode: Round) -> u32 {
    let sign_bit = 1u32 << (to.exponent + to.fraction);
    let infinity = ((1u32 << to.exponent) - 1) << to.fraction;
    if x.is_nan() {
        return sign_bit - 1;
    }
    let negative = x.is_sign_negative();
    let sign = if negative { sign_bit } else { 0 };
    if x == 0.0 {
        return sign;
    }
    if x.is_infinite() {
        return sign | infinity;
    }
    let bits = x.abs().to_bits();
    let bias = (1i64 << (to.exponent - 1)) - 1;
    // Subnormal doubles are far below every format; they only need to be nonzero.
    let (e, m) = match (bits >> 52) as i64 {
        0 => (-1022, bits & ((1 << 52) - 1)),
        e => (e - 1023, bits & ((1 << 52) - 1) | 1 << 52),
    };
    let lowest = 1 - bias;
    let shift = 52 - i64::from(to.fraction) + (lowest - e).max(0);
    let (kept, rest, half) = if shift > 54 {
        (0, 1, 2)
    } else {
        (m >> shift, m & ((1 << shift) - 1), 1u64 << (shift - 1))
    };
    let up = match mode {
        Round::Near => rest > half || (rest == half && kept & 1 == 1),
        Round::NearAway => rest >= half,
        Round::Zero => false,
        Round::Down => negative && rest != 0,
        Round::Up => !negative && rest != 0,
    };
    let kept = kept + u64::from(up);
    // A carry out of the significand raises the exponent by itself.
    let base = if e < lowest {
        0
    } else {
        ((e - lowest) as u64) << to.fraction
    };
    let magnitude = base + kept;
    if magnitude >= u64::from(infinity) {
        let to_infinity = match mode {
            Round::Near | Round::NearAway => true,
            Round::Zero => false,
            Round::Down => negative,
            Round::Up => !negative,
        };
        return sign | if to_infinity { infinity } else { infinity - 1 };
    }
    sign | magnitude as u32
}

/// The value of half-precision bits.
#[inline(always)]
pub(crate) fn h2f(x: u16) -> f32 {
    // Branch-free: shift into single precision and rescale; the product is exact.
    let magnitude = f32::from_bits(u32::from(x & 0x7fff) << 13) * f32::from_bits(0x7780_0000);
    let special = if x & 0x7c00 == 0x7c00 {
        0x7f80_0000 | u32::from(x & 0x3ff) << 13
    } else {
        magnitude.to_bits()
    };
    f32::from_bits(special | u32::from(x & 0x8000) << 16)
}

/// The value of bfloat16 bits.
#[inline(always)]
pub(crate) fn b2f(x: u16) -> f32 {
    f32::from_bits(u32::from(x) << 16)
}

/// Half precision, to nearest even, NaN canonical.
#[inline(always)]
pub(crate) fn f2h(x: f32) -> u16 {
    if x.is_nan() {
        NAN16
    } else {
        half::f16::from_f32(x).to_bits()
    }
}

/// bfloat16, to nearest even, NaN canonical.
#[inline(always)]
pub(crate) fn f2b(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    if x.is_nan() { NAN16 } else { rounded }
}

/// `min`/`max` of single precision: `-0 < +0`; a NaN loses unless `nan` asks for it.
#[inline(always)]
pub(crate) fn min_max32(a: f32, b: f32, max: bool, nan: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return if nan || (a.is_nan() && b.is_nan()) {
            f32::from_bits(NAN32)
        } else if a.is_nan() {
            b
        } else {
            a
        };
    }
    let a_less = a < b || (a == b && a.is_sign_negative());
    if a_less != max { a } else { b }
}

/// As [`min_max32`] for double precision.
pub(crate) fn min_max64(a: f64, b: f64, max: bool) -> f64 {
    match (a.is_nan(), b.is_nan()) {
        (true, true) => return f64::from_bits(0x7ff8_0000_0000_0000),
        (true, false) => return b,
        (false, true) => return a,
        _ => {}
    }
    let a_less = a < b || (a == b && a.is_sign_negative());
    if a_less != max { a } else { b }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_formats_agree_with_half() {
        for bits in (0..=u32::MAX).step_by(9973) {
            let x = f32::from_bits(bits);
            if x.is_nan() {
                continue;
            }
            let wide = f64::from(x);
            assert_eq!(
                round_small(wide, F16, Round::Near),
                u32::from(half::f16::from_f32(x).to_bits()),
                "{x:e}"
            );
            assert_eq!(
                round_small(wide, BF16, Round::Near),
                u32::from(half::bf16::from_f32(x).to_bits()),
                "{x:e}"
            );
            assert_eq!(f2b(x), half::bf16::from_f32(x).to_bits());
        }
        for bits in 0..=u16::MAX {
            let (x, y) = (h2f(bits), half::f16::from_bits(bits).to_f32());
            assert!(
                x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()),
                "{bits:#x}"
            );
        }
    }

    #[test]
    fn directed_rounding_brackets_the_value() {
        let third = div_odd(1.0, 3.0);
        assert!(
            f64::from(round32(third, Round::Down)) < third
                && third < f64::from(round32(third, Round::Up))
        );
        assert_eq!(round32(-third, Round::Zero), -round32(third, Round::Down));
        assert_eq!(round_small(65519.0, F16, Round::Zero), 0x7bff);
        assert_eq!(round_small(65520.0, F16, Round::Near), 0x7c00);
        assert_eq!(round_small(2f64.powi(-25), F16, Round::Near), 0);
        assert_eq!(round_small(2f64.powi(-25), F16, Round::Up), 1);
    }
}
