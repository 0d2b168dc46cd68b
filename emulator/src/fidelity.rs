//! Results that hardware may give instead of the emulator's, within what is documented.
//!
//! The emulator's `.approx` functions are correctly rounded and its tensor cores round a sum once; hardware
//! is only promised to be near. In the perturbing mode a result is moved by at most the documented error, by a
//! function of the seed and its bits: the same operands give the same result every time, as on hardware.
//!
//! The bounds are those of the PTX ISA, version 9.1:
//!
//! | | section | its words |
//! |---|---|---|
//! | `div.approx.f32` | 9.7.3.8 | "For \|b\| in \[2^-126, 2^126\], the maximum ulp error is 2" |
//! | `div.full.f32` | 9.7.3.8 | "The maximum ulp error is 2 across the full range of inputs" |
//! | `rcp.approx.f32` | 9.7.3.13 | "The maximum ulp error is 1 across the full range of inputs" |
//! | `sqrt.approx.f32` | 9.7.3.15 | "The maximum relative error ... is 2^-23" |
//! | `rsqrt.approx.f32` | 9.7.3.16 | "The maximum relative error ... is 2^-22.9" |
//! | `sin`, `cos.approx.f32` | 9.7.3.18, .19 | "The maximum absolute error" 2^-20.5 in \[-2pi .. 2pi\], 2^-14.7 in \[-100pi .. 100pi\] |
//! | `lg2.approx.f32` | 9.7.3.20 | "The maximum absolute error is 2^-22 when the input operand is in the range (0.5, 2)"; outside, "maximum relative error is 2^-22" |
//! | `ex2.approx.f32` | 9.7.3.21 | "The maximum ulp error is 2 ulp from correctly rounded result" |
//! | `tanh.approx.f32` | 9.7.3.22 | "The maximum relative error ... is 2^-11" |
//! | `tanh.approx` of halves | 9.7.4.9 | "The maximum absolute error for .f16 type is 2^-10.987", "for .bf16 type is 2^-8" |
//! | `ex2.approx` of halves | 9.7.4.10 | "The maximum relative error for .f16 type is 2^-9.9", "for .bf16 type is 2^-7" |
//! | `mma`, `wgmma` | 9.7.14.5.14, 9.7.15.5.2 | accumulation "with at least single precision", of f16 accumulators "with at least half precision"; "The accumulation order, rounding and handling of subnormal inputs are unspecified" |
//!
//! They are read as follows. An ulp error counts places from the correctly rounded result; from the exact one it may be half a
//! place more. Sines and cosines are moved by the smaller of their errors, since only the result is known here. For sums
//! the ISA has no number. An addition loses at most a unit in the last place of a partial sum, and no partial sum exceeds the
//! sum of the magnitudes of all terms: in any order, a sum is within as many such units as it has terms. It is moved by
//! up to one, which is what aligning the terms and truncating once costs. Subnormal inputs keep their values.

use crate::fp::{F16, Format, Round, b2f, f2b, h2f, round_small};

/// How far a result may be from the exact one, in units of `size`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Bound {
    Relative,
    Absolute,
    /// Absolute below 1, relative above.
    Larger,
    /// Units in the last place of the correctly rounded result.
    Ulps,
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

/// The error of a single-precision function.
pub(crate) fn of_f32(name: &str) -> Option<Error> {
    let (bound, size) = match name {
        "rcp" => (Bound::Ulps, 1.0),
        "div" | "ex2" => (Bound::Ulps, 2.0),
        "sqrt" => (Bound::Relative, power(-23)),
        "rsqrt" => (Bound::Relative, f64::exp2(-22.9)),
        "lg2" => (Bound::Larger, power(-22)),
        "sin" | "cos" => (Bound::Absolute, f64::exp2(-20.5)),
        "tanh" => (Bound::Relative, power(-11)),
        _ => return None,
    };
    Some(Error { bound, size })
}

/// The same of half precision and bfloat16.
pub(crate) fn of_half(name: &str, bf16: bool) -> Option<Error> {
    let (bound, size) = match (name, bf16) {
        ("ex2", false) => (Bound::Relative, f64::exp2(-9.9)),
        ("ex2", true) => (Bound::Relative, power(-7)),
        ("tanh", false) => (Bound::Absolute, f64::exp2(-10.987)),
        ("tanh", true) => (Bound::Absolute, power(-8)),
        _ => return None,
    };
    Some(Error { bound, size })
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
        Bound::Ulps => return Some(places(x as f32, hash(seed, bits) * e.size).into()),
    };
    Some(x + hash(seed, bits) * e.size * scale)
}

/// The number some places further from zero, which may be negative; normal numbers stay normal.
fn places(x: f32, places: f64) -> f32 {
    let magnitude = x.abs().to_bits() as i32 + places.round() as i32;
    let [least, most] = [f32::MIN_POSITIVE, f32::MAX].map(|x| x.to_bits() as i32);
    f32::from_bits(magnitude.clamp(least, most) as u32).copysign(x)
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

/// Moves a sum of products whose magnitudes sum to `magnitude`: by up to the last place of the largest partial sum, in
/// single precision or, with accumulators of half precision, in that.
pub(crate) fn perturb_sum(sum: f64, magnitude: f64, half: bool, seed: u64) -> f64 {
    if !sum.is_finite() || magnitude == 0.0 {
        return sum;
    }
    let place = if half { power(-10) } else { power(-23) };
    sum + hash(seed, sum.to_bits()) * magnitude * place
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Most that results move by, in units of the error; each within the error and a rounding to single precision.
    fn most(name: &str, e: Error) -> f64 {
        let mut most = 0.0f64;
        for i in 1..4000 {
            let x = (i as f32).sqrt() * if i % 2 == 0 { 0.01 } else { -3.0 };
            let y = f32::from_bits(perturb(x.to_bits(), Format32::F32, e, 5));
            let scale = match e.bound {
                Bound::Relative => x.abs(),
                Bound::Absolute => 1.0,
                Bound::Larger => x.abs().max(1.0),
                Bound::Ulps => x.abs().next_up() - x.abs(),
            };
            let limit = e.size * f64::from(scale);
            let rounding = f64::from(x.abs().next_up() - x.abs()) / 2.0;
            let moved = (f64::from(x) - f64::from(y)).abs();
            assert!(moved <= limit + rounding, "{name} {x} {y}");
            most = most.max(moved / limit);
        }
        most
    }

    #[test]
    fn results_stay_within_their_error_and_come_near_it() {
        for name in [
            "div", "rcp", "sqrt", "rsqrt", "sin", "cos", "lg2", "ex2", "tanh",
        ] {
            let most = most(name, of_f32(name).unwrap());
            assert!(most > 0.9, "{name}: {most}");
        }
    }

    /// Numbers from the documentation, not from the functions above.
    #[test]
    fn errors_are_the_documented_ones() {
        let ulps = |name| {
            of_f32(name)
                .filter(|e| e.bound == Bound::Ulps)
                .unwrap()
                .size
        };
        assert_eq!(["rcp", "ex2", "div"].map(ulps), [1.0, 2.0, 2.0]);
        let exponents = |e: Error| e.size.log2();
        for (found, expected) in [
            (of_f32("sqrt"), -23.0),
            (of_f32("rsqrt"), -22.9),
            (of_f32("lg2"), -22.0),
            (of_f32("sin"), -20.5),
            (of_f32("cos"), -20.5),
            (of_f32("tanh"), -11.0),
            (of_half("ex2", false), -9.9),
            (of_half("ex2", true), -7.0),
            (of_half("tanh", false), -10.987),
            (of_half("tanh", true), -8.0),
        ] {
            let found = exponents(found.unwrap());
            assert!((found - expected).abs() < 1e-9, "{found} {expected}");
        }
    }

    #[test]
    fn places_are_counted_over_powers_of_two_and_end_with_normal_numbers() {
        assert_eq!(places(2.0, -1.0), 2.0f32.next_down());
        assert_eq!(places(-2.0, -2.0), -(2.0f32.next_down().next_down()));
        assert_eq!(places(-1.5, 1.4), -(1.5f32.next_up()));
        assert_eq!(places(f32::MIN_POSITIVE, -2.0), f32::MIN_POSITIVE);
        assert_eq!(places(f32::MAX, 2.0), f32::MAX);
    }

    #[test]
    fn sums_move_by_up_to_a_place_of_the_precision_of_their_accumulators() {
        for (half, place) in [(false, power(-23)), (true, power(-10))] {
            let moved = |seed| (perturb_sum(3.0, 8.0, half, seed) - 3.0).abs() / (8.0 * place);
            let most = (0..200).map(moved).fold(0.0, f64::max);
            assert!((0.9..=1.0).contains(&most), "{most}");
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
