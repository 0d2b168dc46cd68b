//! Arithmetic with the rounding, flushing and NaN rules of the PTX ISA.
//!
//! Results that are not rounded to nearest, and all half-precision results, go through an `f64`
//! rounded to odd: its 53 bits are more than the target's plus two, so rounding again is exact.

/// Rounding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Round {
    /// To nearest, ties to even.
    Nearest,
    /// Towards zero.
    Zero,
    /// Towards minus infinity.
    Down,
    /// Towards plus infinity.
    Up,
    /// To nearest, ties away from zero.
    Away,
}

/// The NaN that f32 instructions produce.
pub const NAN32: u32 = 0x7fff_ffff;
/// The NaN that f16 and bf16 instructions produce.
pub const NAN16: u16 = 0x7fff;

/// Flushes a subnormal to a zero of its sign.
#[inline(always)]
pub fn ftz(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE {
        0f32.copysign(x)
    } else {
        x
    }
}

/// The bits of a result, NaN made canonical.
#[inline(always)]
pub fn bits32(x: f32) -> u32 {
    if x.is_nan() { NAN32 } else { x.to_bits() }
}

/// Clamps to [0, 1]; NaN becomes +0.
#[inline(always)]
pub fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}

/// Nudges the rounded `x` to odd when the exact value is `x + err`.
pub fn odd(x: f64, err: f64) -> f64 {
    if err == 0.0 || !x.is_finite() || err.is_nan() || x.to_bits() & 1 == 1 {
        return x;
    }
    if err > 0.0 {
        x.next_up()
    } else {
        x.next_down()
    }
}

/// `a + b` rounded to odd.
pub fn add_odd(a: f64, b: f64) -> f64 {
    let s = a + b;
    let t = s - a;
    odd(s, (a - (s - t)) + (b - t))
}

/// `a * b + c` rounded to odd, for factors whose product is exact in f64.
pub fn fma_odd(a: f64, b: f64, c: f64) -> f64 {
    add_odd(a * b, c)
}

/// `a / b` rounded to odd.
pub fn div_odd(a: f64, b: f64) -> f64 {
    let q = a / b;
    if !q.is_finite() || q == 0.0 {
        return q;
    }
    let r = (-q).mul_add(b, a);
    odd(q, if b < 0.0 { -r } else { r })
}

/// The square root rounded to odd.
pub fn sqrt_odd(a: f64) -> f64 {
    let s = a.sqrt();
    if !s.is_finite() || s == 0.0 {
        return s;
    }
    odd(s, (-s).mul_add(s, a))
}

/// Rounds an f64 to f32.
pub fn to_f32(x: f64, round: Round) -> f32 {
    let y = x as f32;
    let wide = f64::from(y);
    if wide == x || x.is_nan() {
        // A sum that is exactly zero is -0 when rounding down, which callers handle.
        return y;
    }
    match round {
        Round::Nearest | Round::Away => y,
        Round::Zero if wide.abs() > x.abs() => {
            if y > 0.0 {
                y.next_down()
            } else {
                y.next_up()
            }
        }
        Round::Down if wide > x => y.next_down(),
        Round::Up if wide < x => y.next_up(),
        _ => y,
    }
}

/// The sum of opposite numbers is -0 when rounding down.
pub fn signed_zero(r: f32, a: f32, b: f32, round: Round) -> f32 {
    if r == 0.0 && round == Round::Down && a == -b && a != 0.0 {
        -0.0
    } else {
        r
    }
}

/// A 16-bit format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    F16,
    Bf16,
}

impl Half {
    /// Exact value.
    #[inline(always)]
    pub fn value(self, bits: u16) -> f32 {
        match self {
            Half::F16 => f16_value(bits),
            Half::Bf16 => f32::from_bits(u32::from(bits) << 16),
        }
    }

    /// Rounds to the format; NaN becomes canonical.
    pub fn round(self, x: f64, round: Round) -> u16 {
        if x.is_nan() {
            return NAN16;
        }
        let (mantissa, min_exp, max) = match self {
            Half::F16 => (10, -14, 65504.0),
            Half::Bf16 => (7, -126, 3.389_531_389_251_535_5e38),
        };
        let q = quantise(x, mantissa, min_exp, max, round);
        match self {
            Half::F16 => half::f16::from_f64(q).to_bits(),
            Half::Bf16 => ((q as f32).to_bits() >> 16) as u16,
        }
    }

    /// The largest finite value.
    pub fn max_bits(self) -> u16 {
        match self {
            Half::F16 => 0x7bff,
            Half::Bf16 => 0x7f7f,
        }
    }
}

/// Branch-free, so that fragments convert by vector instructions.
#[inline(always)]
pub fn f16_value(bits: u16) -> f32 {
    let sign = u32::from(bits & 0x8000) << 16;
    let magnitude = u32::from(bits & 0x7fff) << 13;
    // Moving the exponent by a multiplication by 2^112 also normalises subnormals.
    let scaled = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
    let special = if bits & 0x7c00 == 0x7c00 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(scaled.to_bits() | special | sign)
}

/// Rounds to `mantissa` fraction bits with smallest normal exponent `min_exp`.
fn quantise(x: f64, mantissa: i32, min_exp: i32, max: f64, round: Round) -> f64 {
    if x == 0.0 || !x.is_finite() {
        return x;
    }
    let exp = ((x.to_bits() >> 52 & 0x7ff) as i32 - 1023).max(min_exp);
    let quantum = exp2i(exp - mantissa);
    let scaled = x / quantum;
    let r = round_integral(scaled, round) * quantum;
    if r.abs() <= max {
        return r.copysign(x);
    }
    // Beyond the largest value: infinity, unless the mode rounds towards zero here.
    let toward_zero = match round {
        Round::Zero => true,
        Round::Down => x > 0.0,
        Round::Up => x < 0.0,
        _ => false,
    };
    if toward_zero {
        max.copysign(x)
    } else {
        f64::INFINITY.copysign(x)
    }
}

fn exp2i(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// Rounds to an integral value.
pub fn round_integral(x: f64, round: Round) -> f64 {
    match round {
        Round::Nearest => x.round_ties_even(),
        Round::Zero => x.trunc(),
        Round::Down => x.floor(),
        Round::Up => x.ceil(),
        Round::Away => x.round(),
    }
}

/// f32 minimum or maximum: -0 < +0; NaN loses, or wins under `.NaN`.
#[inline(always)]
pub fn min_max(a: f32, b: f32, max: bool, nan: bool) -> f32 {
    if nan && (a.is_nan() || b.is_nan()) {
        return f32::NAN;
    }
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    let a_wins = if a == b {
        a.is_sign_negative() != max
    } else {
        (a < b) != max
    };
    if a_wins { a } else { b }
}

/// f64 minimum or maximum.
pub fn min_max64(a: f64, b: f64, max: bool) -> f64 {
    if a.is_nan() {
        return b;
    }
    if b.is_nan() {
        return a;
    }
    let a_wins = if a == b {
        a.is_sign_negative() != max
    } else {
        (a < b) != max
    };
    if a_wins { a } else { b }
}

/// Rounds to tf32 (ten fraction bits), as `cvt.rna.tf32.f32` and `cvt.rn.tf32.f32`.
pub fn to_tf32(x: f32, round: Round) -> u32 {
    if x.is_nan() {
        return NAN32;
    }
    (quantise(f64::from(x), 10, -126, 3.401e38, round) as f32).to_bits()
}

/// The unary approximations, computed in f64 and rounded once to nearest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Approx {
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
    Rcp,
    Rsqrt,
    Sqrt,
}

impl Approx {
    /// The function's value; special values are those of the ISA's tables.
    pub fn eval(self, x: f64) -> f64 {
        match self {
            Approx::Ex2 => x.exp2(),
            Approx::Lg2 => {
                if x == 0.0 {
                    f64::NEG_INFINITY
                } else {
                    x.log2()
                }
            }
            Approx::Sin => x.sin(),
            Approx::Cos => x.cos(),
            Approx::Tanh => x.tanh(),
            Approx::Rcp => 1.0 / x,
            Approx::Rsqrt => {
                if x == 0.0 {
                    f64::INFINITY.copysign(x)
                } else {
                    1.0 / x.sqrt()
                }
            }
            Approx::Sqrt => x.sqrt(),
        }
    }
}

/// Extracts the `bits` low bits, sign-extended if asked, to 64 bits.
#[inline(always)]
pub fn extend(x: u64, bits: u32, signed: bool) -> u64 {
    let shift = 64 - bits.clamp(1, 64);
    if signed {
        ((x << shift) as i64 >> shift) as u64
    } else {
        x << shift >> shift
    }
}
