//! Results that hardware may give instead of the emulator's, within what is documented.
//!
//! The emulator's `.approx` functions are correctly rounded and its tensor cores round a sum once; hardware
//! is only promised to be near. In the perturbing mode a result is moved by about the documented error at most, by a
//! function of the seed and its bits: the same operands give the same result every time, as on hardware.

use crate::fp::{F16, Format, Round, b2f, f2b, h2f, round_small};

/// How far a result may be from the exact one, in units of `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    Relative,
    Absolute,
    /// Absolute below 1, relative above.
    Larger,
}

/// The documented error of an instruction.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Error {
    pub bound: Bound,
    pub size: f64,
}

/// What a 32-bit register of an approximate result holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format32 {
    F32,
    /// One or two elements; an upper half that is no element is 0 and stays so.
    F16,
    Bf16,
}

const fn power(n: i32) -> f64 {
    f64::from_bits(((1023 + n) as u64) << 52)
}

const fn error(bound: Bound, size: f64) -> Option<Error> {
    Some(Error { bound, size })
}

/// The error of a single-precision function, as "Floating Point Instructions" of the PTX ISA has it:
/// exponents that are no integers there are rounded to the smaller error, ulps are of the smallest
/// significand.
pub(crate) fn of_f32(name: &str) -> Option<Error> {
    match name {
        // One ulp; two ulps or 2^-23.
        "rcp" => error(Bound::Relative, power(-24)),
        "sqrt" | "div" | "ex2" | "rsqrt" => error(Bound::Relative, power(-23)),
        "lg2" => error(Bound::Larger, power(-23)),
        "sin" | "cos" => error(Bound::Absolute, power(-21)),
        "tanh" => error(Bound::Relative, power(-11)),
        _ => None,
    }
}

/// The same of half precision and bfloat16.
pub(crate) fn of_half(name: &str, bf16: bool) -> Option<Error> {
    match (name, bf16) {
        ("ex2", false) => error(Bound::Relative, power(-10)),
        ("ex2", true) => error(Bound::Relative, power(-7)),
        ("tanh", false) => error(Bound::Absolute, power(-11)),
        ("tanh", true) => error(Bound::Absolute, power(-8)),
        _ => None,
    }
}

/// Between -1 and 1, of a seed and some bits.
fn hash(seed: u64, bits: u64) -> f64 {
    let z = (bits ^ seed.rotate_left(32)).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 11) as f64 * power(-52) - 1.0
}

/// A result that is not exact by the ISA's tables of special values is moved.
fn moved(x: f64, bits: u64, e: Error, seed: u64) -> Option<f64> {
    if !x.is_finite() || x == 0.0 || x.abs() == 1.0 {
        return None;
    }
    let scale = match e.bound {
        Bound::Relative => x.abs(),
        Bound::Absolute => 1.0,
        Bound::Larger => x.abs().max(1.0),
    };
    Some(x + hash(seed, bits) * e.size * scale)
}

/// Moves the elements of a register.
pub(crate) fn perturb(bits: u32, format: Format32, e: Error, seed: u64) -> u32 {
    let half = |h: u16, value: f64, put: &dyn Fn(f64) -> u16| match moved(value, h.into(), e, seed)
    {
        Some(x) => u32::from(put(x)),
        None => h.into(),
    };
    let both = |f: &dyn Fn(u16) -> u32| f(bits as u16) | f((bits >> 16) as u16) << 16;
    match format {
        Format32::F32 => {
            let x = f32::from_bits(bits);
            match moved(x.into(), bits.into(), e, seed) {
                // Subnormal numbers may have been flushed; the largest stays finite.
                Some(y) if x.is_normal() => (y as f32).clamp(f32::MIN, f32::MAX).to_bits(),
                _ => bits,
            }
        }
        Format32::F16 => both(&|h| half(h, h2f(h).into(), &|x| to_half(x, F16))),
        Format32::Bf16 => both(&|h| half(h, b2f(h).into(), &|x| f2b(x as f32))),
    }
}

fn to_half(x: f64, format: Format) -> u16 {
    round_small(x, format, Round::Near) as u16
}

/// Moves a sum of products whose magnitudes sum to `magnitude`: by up to the last place of the largest
/// partial sum in single precision, which is what aligning and truncating may lose.
pub(crate) fn perturb_sum(sum: f64, magnitude: f64, seed: u64) -> f64 {
    if !sum.is_finite() || magnitude == 0.0 {
        return sum;
    }
    sum + hash(seed, sum.to_bits()) * magnitude * power(-23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stay_within_their_error() {
        for (name, e) in ["ex2", "lg2", "sin", "rcp", "tanh"].map(|n| (n, of_f32(n).unwrap())) {
            let mut moved = 0;
            for i in 1..2000 {
                let x = (i as f32).sqrt() * if i % 2 == 0 { 0.01 } else { -3.0 };
                let y = f32::from_bits(perturb(x.to_bits(), Format32::F32, e, 5));
                let scale = match e.bound {
                    Bound::Relative => x.abs(),
                    Bound::Absolute => 1.0,
                    Bound::Larger => x.abs().max(1.0),
                };
                // And one rounding to single precision.
                let limit = e.size * f64::from(scale) + f64::from(x.abs()) * power(-24);
                assert!(
                    (f64::from(x) - f64::from(y)).abs() <= limit,
                    "{name} {x} {y}"
                );
                moved += usize::from(x != y);
            }
            assert!(moved > 500, "{name}: {moved}");
        }
    }

    #[test]
    fn special_values_stay() {
        let e = of_f32("ex2").unwrap();
        for x in [0.0, -0.0, 1.0, f32::INFINITY, f32::NAN, 1e-40] {
            assert_eq!(perturb(x.to_bits(), Format32::F32, e, 9), x.to_bits());
        }
        let top = f32::MAX.to_bits();
        for seed in 0..100 {
            assert!(f32::from_bits(perturb(top, Format32::F32, e, seed)).is_finite());
        }
    }

    #[test]
    fn packed_halves_move_each_by_itself() {
        let e = of_half("tanh", false).unwrap();
        let bits = 0x3800_3555;
        let out = perturb(bits, Format32::F16, e, 1);
        for shift in [0, 16] {
            let (x, y) = (h2f((bits >> shift) as u16), h2f((out >> shift) as u16));
            assert!((x - y).abs() <= 2.0 * power(-11) as f32, "{x} {y}");
        }
        assert_eq!(perturb(0x3555, Format32::F16, e, 1) >> 16, 0);
        assert_eq!(perturb(0x3555, Format32::F16, e, 1), out & 0xffff);
    }
}
