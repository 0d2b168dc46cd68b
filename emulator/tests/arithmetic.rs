//! Functions of CUDA's math library, as nvcc compiles them, against the host's. They are hundreds of
//! instructions each, with carry chains, conversions, table look-ups and special cases.

mod common;

use common::{Rng, module};
use ptx_emulator::{LaunchConfig, Memory, Params};

const N: usize = 2048;

#[test]
fn integers() {
    let mut rng = Rng(11);
    let mut draw = || {
        let v = (rng.next() << 16 ^ rng.next()) as u32 as i32;
        match rng.next() % 8 {
            0 => v % 10,
            1 => [0, 1, -1, i32::MIN, i32::MAX, 255][rng.next() as usize % 6],
            _ => v,
        }
    };
    let a: Vec<i32> = (0..N).map(|_| draw()).collect();
    let b: Vec<i32> = (0..N).map(|_| draw()).collect();
    let memory = Memory::new();
    let (pa, pb) = (memory.upload(&a).unwrap(), memory.upload(&b).unwrap());
    let out = memory.alloc(8 * 32 * N as u64).unwrap();
    let p = Params::new().arg(pa).arg(pb).arg(out).arg(N as i32);
    module("arith")
        .launch(
            &memory,
            "ints",
            &LaunchConfig::new(N as u32 / 128, 128),
            p.as_bytes(),
        )
        .unwrap_or_else(|f| panic!("{f}"));
    let got: Vec<i64> = memory.download(out, 32 * N).unwrap();
    for i in 0..N {
        let (x, y) = (a[i], b[i]);
        let (u, v) = (x as u32, y as u32);
        let p = i64::from(x)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64)
            .wrapping_add(i64::from(y));
        let q = (i64::from(y) << 17) ^ i64::from(x);
        let d = if y == 0 { 1 } else { y };
        let dq = if q == 0 { 1 } else { q };
        let w = (p as u64 as u128)
            .wrapping_mul(q as u64 as u128)
            .wrapping_add(p as u64 as u128);
        let w2 = w.wrapping_sub((q as u64 as u128) << 70);
        let dp = |signed: bool| {
            (0..4).fold(7u32, |s, k| {
                let (m, n) = ((u >> (8 * k)) as u8, (v >> (8 * k)) as u8);
                let product = if signed {
                    i32::from(m as i8) * i32::from(n as i8)
                } else {
                    i32::from(m) * i32::from(n)
                };
                s.wrapping_add(product as u32)
            })
        };
        let both = u64::from(v) << 32 | u64::from(u);
        let bytes: Vec<u32> = (0..8).map(|k| (both >> (8 * k)) as u32 & 0xff).collect();
        let ffs = |z: u32| if z == 0 { 0 } else { z + 1 };
        let low = |z: u32, zero: bool| if zero { 0 } else { ffs(z).max(1) };
        let want: [i64; 32] = [
            if x == i32::MIN && d == -1 {
                0
            } else {
                i64::from(x / d)
            },
            if x == i32::MIN && d == -1 {
                0
            } else {
                i64::from(x % d)
            },
            i64::from(u / d as u32),
            i64::from(u % d as u32),
            p.wrapping_div(dq),
            p.wrapping_rem(dq),
            (p as u64 / dq as u64) as i64,
            (i64::from(x) * i64::from(y)) >> 32,
            ((u64::from(u) * u64::from(v)) >> 32) as i64,
            ((i128::from(p) * i128::from(q)) >> 64) as i64,
            (((p as u64 as u128).wrapping_mul(q as u64 as u128)) >> 64) as i64,
            i64::from(
                x.count_ones()
                    + 100 * p.count_ones()
                    + 10000 * x.leading_zeros()
                    + 1_000_000 * p.leading_zeros(),
            ),
            i64::from(u.reverse_bits()),
            p.reverse_bits(),
            i64::from(bytes[5] | bytes[1] << 8 | bytes[7] << 16 | bytes[3] << 24),
            i64::from(((both << (u & 31)) >> 32) as u32),
            i64::from((both >> (v & 31)) as u32),
            i64::from(((both << (v & 63).min(32)) >> 32) as u32),
            i64::from((both >> (u & 63).min(32)) as u32),
            i64::from(dp(true) as i32),
            i64::from(dp(false)),
            i64::from(x.abs_diff(y).wrapping_add(3)),
            (w >> 64) as i64,
            w2 as i64,
            (w2 >> 64) as i64,
            // In C the first sum is of unsigned type.
            i64::from(((x / 7) as u32).wrapping_add(u / 13)).wrapping_add(p / 1_000_003),
            i64::from(x as i8)
                + 3 * i64::from(y as u8)
                + 5 * i64::from(x as i16)
                + 7 * i64::from(y as u16),
            p >> (y & 63),
            (p as u64 >> (y & 63)) as i64,
            p << (x & 63),
            i64::from(x.min(y)) + i64::from(u.max(v)) + i64::from((x >> 1).abs()),
            i64::from(low(x.trailing_zeros(), x == 0))
                + 100 * i64::from(low(p.trailing_zeros(), p == 0)),
        ];
        for (k, want) in want.iter().enumerate() {
            assert_eq!(got[32 * i + k], *want, "result {k} of {x} {y}");
        }
    }
}

fn ulps32(a: f32, b: f32) -> u64 {
    if a == b || (a.is_nan() && b.is_nan()) {
        return 0;
    }
    let key = |x: f32| {
        if x.is_sign_negative() {
            -i64::from(x.to_bits() & 0x7fff_ffff)
        } else {
            i64::from(x.to_bits())
        }
    };
    key(a).abs_diff(key(b))
}

#[test]
fn single_precision() {
    let mut rng = Rng(12);
    let mut draw = || match rng.next() % 16 {
        0 => [
            0.0,
            -0.0,
            1.0,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
            1e-40,
            0.5,
        ][rng.next() as usize % 8],
        1 => rng.unit() * 1e-3,
        _ => rng.unit() * 8.0,
    };
    let a: Vec<f32> = (0..N).map(|_| draw()).collect();
    let b: Vec<f32> = (0..N).map(|_| draw()).collect();
    let memory = Memory::new();
    let (pa, pb) = (memory.upload(&a).unwrap(), memory.upload(&b).unwrap());
    let out = memory.alloc(4 * 32 * N as u64).unwrap();
    let p = Params::new().arg(pa).arg(pb).arg(out).arg(N as i32);
    module("arith")
        .launch(
            &memory,
            "singles",
            &LaunchConfig::new(N as u32 / 128, 128),
            p.as_bytes(),
        )
        .unwrap_or_else(|f| panic!("{f}"));
    let got: Vec<f32> = memory.download(out, 32 * N).unwrap();
    for i in 0..N {
        let (xs, ys) = (a[i], b[i]);
        let (x, y, z) = (f64::from(xs), f64::from(ys), f64::from(xs).abs());
        let thousand = f64::from(xs * 1000.0);
        // The value and the largest error in units of the last place.
        let want: [(f64, u64); 32] = [
            (x.exp(), 2),
            (x.exp2(), 2),
            (z.ln(), 1),
            (z.log2(), 1),
            (thousand.sin(), 2),
            (thousand.cos(), 2),
            (x.tan(), 4),
            (x.tanh(), 2),
            (z.powf(y), 4),
            (libm_erf(x), 2),
            (x.atan2(y), 3),
            (x.cbrt(), 1),
            (x / y, 0),
            (z.sqrt(), 0),
            (1.0 / z.sqrt(), 2),
            (x % y, 0),
            (x.floor(), 0),
            (x.round_ties_even(), 0),
            (x.trunc(), 0),
            (x.round(), 0),
            (f64::from(xs.mul_add(ys, -xs)), 0),
            (f64::from((xs * 100.0) as i32 as f32), 0),
            (f64::from(xs.abs() as u32 as f32), 0),
            (z.ln_1p(), 2),
            (f64::from(half::f16::from_f32(xs)), 0),
            (f64::from(half::bf16::from_f32(xs)), 0),
            // As ex2.approx(x * log2 e).
            (x.exp(), 16),
            (x / y, 2),
            (f64::from(long(f64::from(xs * 1e10)) as f32), 0),
            (x.hypot(y), 2),
            (f64::from(xs * 1e8).sin(), 2),
            (x.exp_m1(), 2),
        ];
        for (k, (want, bound)) in want.into_iter().enumerate() {
            let (got, want) = (got[32 * i + k], want as f32);
            assert!(
                ulps32(got, want) <= bound,
                "result {k} of {xs:e} {ys:e}: {got:e} instead of {want:e}"
            );
        }
    }
}

/// Conversion to a 64-bit integer, where PTX gives the smallest number for NaN.
fn long(x: f64) -> i64 {
    if x.is_nan() { i64::MIN } else { x as i64 }
}

/// The error function by its series and continued fraction, to double precision nearly.
fn libm_erf(x: f64) -> f64 {
    if x.is_nan() || x.is_infinite() {
        return if x.is_nan() { x } else { x.signum() };
    }
    if x.abs() < 3.0 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        return sum * 2.0 / std::f64::consts::PI.sqrt();
    }
    let mut f = 0.0;
    for k in (1..200).rev() {
        f = f64::from(k) / 2.0 / (x.abs() + f);
    }
    x.signum() * (1.0 - (-x * x).exp() / (x.abs() + f) / std::f64::consts::PI.sqrt())
}

#[test]
fn double_precision() {
    let mut rng = Rng(13);
    let mut draw = || match rng.next() % 16 {
        0 => [
            0.0,
            -0.0,
            1.0,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::NAN,
            1e-310,
            0.5,
        ][rng.next() as usize % 8],
        _ => f64::from(rng.unit()) * 20.0 + f64::from(rng.unit()) * 1e-9,
    };
    let a: Vec<f64> = (0..N).map(|_| draw()).collect();
    let b: Vec<f64> = (0..N).map(|_| draw()).collect();
    let memory = Memory::new();
    let (pa, pb) = (memory.upload(&a).unwrap(), memory.upload(&b).unwrap());
    let out = memory.alloc(8 * 16 * N as u64).unwrap();
    let p = Params::new().arg(pa).arg(pb).arg(out).arg(N as i32);
    module("arith")
        .launch(
            &memory,
            "doubles",
            &LaunchConfig::new(N as u32 / 128, 128),
            p.as_bytes(),
        )
        .unwrap_or_else(|f| panic!("{f}"));
    let got: Vec<f64> = memory.download(out, 16 * N).unwrap();
    let key = |x: f64| {
        if x.is_sign_negative() {
            -((x.to_bits() & !(1 << 63)) as i128)
        } else {
            x.to_bits() as i128
        }
    };
    for i in 0..N {
        let (x, y) = (a[i], b[i]);
        let z = x.abs();
        let want: [(f64, u128); 16] = [
            (x.exp(), 2),
            (z.ln(), 2),
            (x.sin(), 3),
            (x.cos(), 3),
            (z.powf(y), 3),
            (x / y, 0),
            (z.sqrt(), 0),
            (x.tanh(), 3),
            (x.mul_add(y, -x), 0),
            (x.cbrt(), 2),
            (x.round_ties_even(), 0),
            (long(x * 1e6) as f64, 0),
            (1.0 / z.sqrt(), 2),
            (f64::from(x as f32), 0),
            (x.atan2(y), 3),
            (x % y, 0),
        ];
        for (k, (want, bound)) in want.into_iter().enumerate() {
            let got = got[16 * i + k];
            let near = got == want
                || (got.is_nan() && want.is_nan())
                || key(got).abs_diff(key(want)) <= bound;
            assert!(
                near,
                "result {k} of {x:e} {y:e}: {got:e} instead of {want:e}"
            );
        }
    }
}
