//! ISA: Floating-Point Instructions.

use crate::harness::{F32, Mode, Rng, d, f, suite, val};
use libtest_mimic::Trial;

/// "The canonical NaN": what f32 arithmetic returns for every NaN.
pub const NAN: u64 = 0x7fff_ffff;
const QNAN: u64 = 0x7fc0_1234;
const SNAN: u64 = 0xff80_0001;
const INF: u64 = 0x7f80_0000;
const NINF: u64 = 0xff80_0000;
const MAX: u64 = 0x7f7f_ffff;
const NMAX: u64 = 0xff7f_ffff;
const ONE: u64 = 0x3f80_0000;
const NONE: u64 = 0xbf80_0000;
const NZERO: u64 = 0x8000_0000;
/// The smallest normal and two subnormals.
const NORM: u64 = 0x0080_0000;
const SUB: u64 = 0x0040_0000;
const TINY: u64 = 1;
const MODES: [Mode; 4] = ['n', 'z', 'm', 'p'];

/// An odd mix of magnitudes, every special value, and random bits.
fn samples(seed: u64) -> Vec<u64> {
    let mut v = vec![
        0,
        NZERO,
        ONE,
        NONE,
        INF,
        NINF,
        QNAN,
        SNAN,
        MAX,
        NMAX,
        NORM,
        SUB,
        TINY,
        NZERO | NORM,
        NZERO | SUB,
        NZERO | TINY,
        NORM - 1,
        f(0.5),
        f(-1.5),
        f(3.0),
        ONE + 1,
        ONE - 1,
        f(1e30),
        f(1e-30),
        f(65504.0),
        f(0.1),
    ];
    let mut rng = Rng(seed);
    v.extend((0..6).map(|_| rng.next() & 0xffff_ffff));
    v
}

fn pairs(seed: u64) -> Vec<[u64; 2]> {
    let v = samples(seed);
    v.iter()
        .flat_map(|&a| v.iter().map(move |&b| [a, b]))
        .collect()
}

fn ftz(x: u64) -> u64 {
    if x & INF == 0 { x & NZERO } else { x }
}

fn rounding_by_hand() {
    suite("rounding_by_hand", |t| {
        let u = f(5.960_464_5e-8); // 2^-24: half a unit of 1.0
        let cases: [(&str, [u64; 7]); 4] = [
            // 1+u, -1-u, (1+2u)+u, MAX+MAX, -MAX-MAX, 1-1, 1-u/2
            ("rn", [ONE, NONE, ONE + 2, INF, NINF, 0, ONE]),
            ("rz", [ONE, NONE, ONE + 1, MAX, NMAX, 0, ONE - 1]),
            ("rm", [ONE, NONE + 1, ONE + 1, MAX, NINF, NZERO, ONE - 1]),
            ("rp", [ONE + 1, NONE, ONE + 2, INF, NMAX, 0, ONE]),
        ];
        for (mode, [w0, w1, w2, w3, w4, w5, w6]) in cases {
            t.op(
                "rr>r",
                &format!("add.{mode}.f32 %x, %a, %b;"),
                &[
                    [ONE, u, w0],
                    [NONE, u | NZERO, w1],
                    [ONE + 1, u, w2],
                    [MAX, MAX, w3],
                    [NMAX, NMAX, w4],
                    [ONE, NONE, w5],
                    [ONE, f(-2.980_232_2e-8), w6],
                ],
            );
            t.op(
                "rr>r",
                &format!("sub.{mode}.f32 %x, %a, %b;"),
                &[[ONE, u | NZERO, w0], [MAX, NMAX, w3], [ONE, ONE, w5]],
            );
        }
        // Signed zeros: equal signs keep it, x - x is +0 except towards minus infinity.
        t.op(
            "rr>r",
            "add.f32 %x, %a, %b;",
            &[
                [NZERO, NZERO, NZERO],
                [NZERO, 0, 0],
                [INF, NINF, NAN],
                [QNAN, ONE, NAN],
                [ONE, SNAN, NAN],
            ],
        );
        t.op(
            "rr>r",
            "mul.f32 %x, %a, %b;",
            &[
                [NZERO, ONE, NZERO],
                [NZERO, NONE, 0],
                [0, INF, NAN],
                [NINF, NZERO, NAN],
                [INF, NONE, NINF],
            ],
        );
        // 2^-149 * 0.5 is a tie of 0 and the smallest subnormal.
        for (mode, pos, neg) in [
            ("rn", 0, NZERO),
            ("rz", 0, NZERO),
            ("rm", 0, NZERO | 1),
            ("rp", 1, NZERO),
        ] {
            let half = f(0.5);
            t.op(
                "rr>r",
                &format!("mul.{mode}.f32 %x, %a, %b;"),
                &[[TINY, half, pos], [NZERO | TINY, half, neg]],
            );
        }
        // One rounding in fma: (1+2^-23)^2 - (1+2^-22) = 2^-46, which two roundings lose.
        t.op(
            "rrr>r",
            "fma.rn.f32 %x, %a, %b, %c;",
            &[
                [ONE + 1, ONE + 1, (ONE + 2) | NZERO, f(1.421_085_5e-14)],
                [INF, 0, ONE, NAN],
                [INF, 0, QNAN, NAN],
                [INF, ONE, NINF, NAN],
                [ONE, ONE, NONE, 0],
                [NZERO, ONE, NZERO, NZERO],
            ],
        );
        t.op(
            "rrr>r",
            "fma.rm.f32 %x, %a, %b, %c;",
            &[[ONE, ONE, NONE, NZERO], [MAX, f(2.0), 0, MAX]],
        );
        // A sticky bit far below decides: 1 - 2^-149 and 2^24+1 + 2^-149.
        t.op(
            "rrr>r",
            "fma.rz.f32 %x, %a, %b, %c;",
            &[
                [NZERO | TINY, ONE, ONE, ONE - 1],
                [f(4097.0), f(4095.0), ONE, f(16777216.0)],
            ],
        );
        t.op(
            "rrr>r",
            "fma.rn.f32 %x, %a, %b, %c;",
            &[
                [f(4097.0), f(4097.0), TINY, f(16785410.0)],
                [f(4097.0), f(4097.0), NZERO | TINY, f(16785408.0)],
            ],
        );
        t.op(
            "rrr>r",
            "fma.rp.f32 %x, %a, %b, %c;",
            &[[TINY, TINY, ONE, ONE + 1], [NZERO | TINY, TINY, ONE, ONE]],
        );
        t.op(
            "rrr>r",
            "mad.rn.f32 %x, %a, %b, %c;",
            &[[ONE + 1, ONE + 1, (ONE + 2) | NZERO, f(1.421_085_5e-14)]],
        );
    });
}

fn mul_all_modes() {
    suite("mul_all_modes", |t| {
        // The product of two f32 is exact in f64, so one rounding of it is the ISA's result.
        for mode in MODES {
            let want = |a, b| F32.encode(val(a) * val(b), mode);
            t.map(
                "rr>r",
                &format!("mul.r{mode}.f32 %x, %a, %b;"),
                &pairs(1),
                |[a, b]| want(a, b),
            );
            // .ftz flushes subnormal inputs and results to a zero of the same sign.
            t.map(
                "rr>r",
                &format!("mul.r{mode}.ftz.f32 %x, %a, %b;"),
                &pairs(2),
                |[a, b]| ftz(want(ftz(a), ftz(b))),
            );
        }
    });
}

fn add_random() {
    suite("add_random", |t| {
        // Exponents within 2^28 of each other: the sum is exact in f64.
        let mut rng = Rng(5);
        let rows: Vec<[u64; 2]> = (0..400)
            .map(|_| {
                let (a, b) = (rng.next(), rng.next());
                let exp = |r: u64| (100 + (r >> 32) % 28) << 23;
                [a & 0x807f_ffff | exp(a), b & 0x807f_ffff | exp(b)]
            })
            .collect();
        for mode in MODES {
            let sum = |a, b| {
                let x = val(a) + val(b);
                F32.encode(if x == 0.0 && mode == 'm' { -0.0 } else { x }, mode)
            };
            t.map(
                "rr>r",
                &format!("add.r{mode}.f32 %x, %a, %b;"),
                &rows,
                |[a, b]| sum(a, b),
            );
            t.map(
                "rr>r",
                &format!("sub.r{mode}.f32 %x, %a, %b;"),
                &rows,
                |[a, b]| sum(a, b ^ NZERO),
            );
            t.map(
                "rr>r",
                &format!("fma.r{mode}.f32 %x, %a, 0f3F800000, %b;"),
                &rows,
                |[a, b]| sum(a, b),
            );
        }
    });
}

fn ftz_and_sat() {
    suite("ftz_and_sat", |t| {
        t.op(
            "rr>r",
            "add.ftz.f32 %x, %a, %b;",
            &[
                [SUB, 0, 0],
                [NZERO | SUB, NZERO, NZERO],
                [NORM, NZERO | SUB, NORM],
                [NORM + 1, NZERO | NORM, 0],
                [NZERO | (NORM + 1), NORM, NZERO],
            ],
        );
        t.op(
            "rr>r",
            "add.f32 %x, %a, %b;",
            &[[SUB, SUB, NORM], [NORM + 1, NZERO | NORM, TINY]],
        );
        t.op(
            "rr>r",
            "sub.ftz.f32 %x, %a, %b;",
            &[[NORM + 1, NORM, 0], [SUB, NORM, NZERO | NORM]],
        );
        t.op(
            "rrr>r",
            "fma.rn.ftz.f32 %x, %a, %b, %c;",
            &[
                [SUB, ONE, ONE, ONE],
                [NORM, f(0.5), 0, 0],
                [NORM, f(-0.5), NZERO, NZERO],
                [ONE, ONE, SUB, ONE],
            ],
        );
        // .sat clamps to [0.0, 1.0]; NaN results are flushed to +0.0f.
        for op in [
            "add.sat.f32 %x, %a, %b;",
            "fma.rn.sat.f32 %x, %a, 0f3F800000, %b;",
            "add.ftz.sat.f32 %x, %a, %b;",
        ] {
            t.op(
                "rr>r",
                op,
                &[
                    [ONE, ONE, ONE],
                    [NONE, 0, 0],
                    [QNAN, ONE, 0],
                    [INF, NINF, 0],
                    [f(0.25), f(0.5), f(0.75)],
                    [NINF, 0, 0],
                    [INF, 0, ONE],
                ],
            );
        }
        t.op(
            "rr>r",
            "mul.sat.f32 %x, %a, %b;",
            &[
                [f(2.0), ONE, ONE],
                [NONE, ONE, 0],
                [0, INF, 0],
                [f(0.5), f(0.5), f(0.25)],
            ],
        );
        t.op(
            "rr>r",
            "sub.sat.f32 %x, %a, %b;",
            &[[ONE, NONE, ONE], [0, ONE, 0], [INF, INF, 0]],
        );
    });
}

fn min_max() {
    suite("min_max", |t| {
        // One NaN: the other; two: canonical. "+0.0 > -0.0".
        t.op(
            "rr>rr",
            "min.f32 %x, %a, %b; max.f32 %y, %a, %b;",
            &[
                [ONE, NONE, NONE, ONE],
                [QNAN, ONE, ONE, ONE],
                [ONE, SNAN, ONE, ONE],
                [QNAN, SNAN, NAN, NAN],
                [0, NZERO, NZERO, 0],
                [NZERO, 0, NZERO, 0],
                [INF, NINF, NINF, INF],
                [SUB, TINY, TINY, SUB],
            ],
        );
        t.op(
            "rr>rr",
            "min.ftz.f32 %x, %a, %b; max.ftz.f32 %y, %a, %b;",
            &[
                [SUB, ONE, 0, ONE],
                [NZERO | SUB, 0, NZERO, 0],
                [SUB, QNAN, 0, 0],
            ],
        );
        t.op(
            "rr>rr",
            "min.NaN.f32 %x, %a, %b; max.NaN.f32 %y, %a, %b;",
            &[
                [QNAN, ONE, NAN, NAN],
                [ONE, SNAN, NAN, NAN],
                [ONE, NONE, NONE, ONE],
                [0, NZERO, NZERO, 0],
            ],
        );
        // .xorsign.abs: of the magnitudes, with the exclusive or of the signs.
        t.op(
            "rr>rr",
            "min.xorsign.abs.f32 %x, %a, %b; max.xorsign.abs.f32 %y, %a, %b;",
            &[[f(-2.0), ONE, NONE, f(-2.0)], [f(-2.0), NONE, ONE, f(2.0)]],
        );
        let (dn, dz) = (f64::NAN.to_bits(), d(-0.0));
        t.op(
            "dd>dd",
            "min.f64 %x, %a, %b; max.f64 %y, %a, %b;",
            &[
                [d(1.0), d(2.0), d(1.0), d(2.0)],
                [dn, d(2.0), d(2.0), d(2.0)],
                [0, dz, dz, 0],
            ],
        );
    });
}

fn abs_neg_copysign_testp() {
    suite("abs_neg_copysign_testp", |t| {
        t.op(
            "r>rr",
            "abs.f32 %x, %a; neg.f32 %y, %a;",
            &[
                [NZERO, 0, 0],
                [NONE, ONE, ONE],
                [INF, INF, NINF],
                [SUB, SUB, NZERO | SUB],
            ],
        );
        t.op(
            "r>rr",
            "abs.ftz.f32 %x, %a; neg.ftz.f32 %y, %a;",
            &[[NZERO | SUB, 0, 0], [SUB, 0, NZERO], [ONE, ONE, NONE]],
        );
        t.op(
            "d>dd",
            "abs.f64 %x, %a; neg.f64 %y, %a;",
            &[[d(-2.0), d(2.0), d(2.0)], [d(0.0), 0, d(-0.0)]],
        );
        // copysign: the sign of a on b.
        t.op(
            "rr>r",
            "copysign.f32 %x, %a, %b;",
            &[
                [NONE, f(2.0), f(-2.0)],
                [ONE, f(-2.0), f(2.0)],
                [NZERO, 0, NZERO],
            ],
        );
        t.op(
            "dd>d",
            "copysign.f64 %x, %a, %b;",
            &[[d(-1.0), d(2.0), d(-2.0)]],
        );
        let kinds = [0, ONE, NINF, QNAN, SUB, NZERO];
        let table: [(&str, [u64; 6]); 6] = [
            ("finite", [1, 1, 0, 0, 1, 1]),
            ("infinite", [0, 0, 1, 0, 0, 0]),
            ("number", [1, 1, 1, 0, 1, 1]),
            ("notanumber", [0, 0, 0, 1, 0, 0]),
            // "testp.normal: true if the input is a normal number (not NaN, not infinity)"
            ("normal", [0, 1, 0, 0, 0, 0]),
            ("subnormal", [0, 0, 0, 0, 1, 0]),
        ];
        for (name, want) in table {
            let rows: Vec<[u64; 2]> = kinds.iter().zip(want).map(|(&k, w)| [k, w]).collect();
            // The ISA does not say which of the two a zero is.
            let rows: Vec<_> = rows
                .into_iter()
                .filter(|r| !name.contains("normal") || r[0] & !NZERO != 0)
                .collect();
            t.op("r>p", &format!("testp.{name}.f32 %x, %a;"), &rows);
        }
    });
}

fn division_and_roots_rounded() {
    suite("division_and_roots_rounded", |t| {
        let third = 0x3eaa_aaab; // 1/3 is 0x3eaaaaaa.aaa...
        for (mode, q, nq, r2) in [
            ("rn", third, third | NZERO, 0x3fb5_04f3),
            ("rz", third - 1, (third - 1) | NZERO, 0x3fb5_04f3),
            ("rm", third - 1, third | NZERO, 0x3fb5_04f3),
            ("rp", third, (third - 1) | NZERO, 0x3fb5_04f4),
        ] {
            let three = f(3.0);
            t.op(
                "rr>r",
                &format!("div.{mode}.f32 %x, %a, %b;"),
                &[
                    [ONE, three, q],
                    [NONE, three, nq],
                    [ONE, 0, INF],
                    [NONE, 0, NINF],
                    [0, 0, NAN],
                    [INF, INF, NAN],
                    [ONE, INF, 0],
                    [ONE, NINF, NZERO],
                    [QNAN, ONE, NAN],
                ],
            );
            t.op(
                "r>r",
                &format!("rcp.{mode}.f32 %x, %a;"),
                &[
                    [three, q],
                    [f(-3.0), nq],
                    [0, INF],
                    [NZERO, NINF],
                    [INF, 0],
                    [NINF, NZERO],
                    [SNAN, NAN],
                ],
            );
            // sqrt(2) = 0x3fb504f3.3f9d...
            t.op(
                "r>r",
                &format!("sqrt.{mode}.f32 %x, %a;"),
                &[
                    [f(2.0), r2],
                    [f(4.0), f(2.0)],
                    [NZERO, NZERO],
                    [0, 0],
                    [NONE, NAN],
                    [INF, INF],
                    [NINF, NAN],
                    [QNAN, NAN],
                ],
            );
        }
        // Subnormal quotients and roots: 2^-126/2, 2^-149/2 (a tie), sqrt(2^-148).
        t.op(
            "rr>r",
            "div.rn.f32 %x, %a, %b;",
            &[
                [NORM, f(2.0), SUB],
                [TINY, f(2.0), 0],
                [3, f(2.0), 2],
                [ONE, MAX, 0x0020_0000],
                [MAX, SUB, INF],
            ],
        );
        t.op(
            "rr>r",
            "div.rn.ftz.f32 %x, %a, %b;",
            &[
                [NORM, f(2.0), 0],
                [ONE, SUB, INF],
                [SUB, ONE, 0],
                [NZERO | SUB, ONE, NZERO],
            ],
        );
        t.op(
            "r>r",
            "sqrt.rn.f32 %x, %a;",
            &[[2, f(5.293_955_9e-23)], [NZERO | 1, NAN]],
        );
        t.op(
            "r>r",
            "sqrt.rn.ftz.f32 %x, %a;",
            &[[2, 0], [NZERO | 2, NZERO]],
        );
        t.op(
            "r>r",
            "rcp.rn.ftz.f32 %x, %a;",
            &[[SUB, INF], [NZERO | SUB, NINF], [MAX, 0]],
        );
        t.op(
            "r>r",
            "rcp.rn.f32 %x, %a;",
            &[[f(1.701_411_8e38), SUB], [MAX, 0x0020_0000]],
        );
        let dthird = 0x3fd5_5555_5555_5555; // 1/3 = ...5555.55
        t.op(
            "dd>d",
            "div.rn.f64 %x, %a, %b;",
            &[[d(1.0), d(3.0), dthird], [d(1.0), 0, d(f64::INFINITY)]],
        );
        t.op(
            "dd>d",
            "div.rp.f64 %x, %a, %b;",
            &[[d(1.0), d(3.0), dthird + 1]],
        );
        t.op(
            "dd>d",
            "div.rz.f64 %x, %a, %b;",
            &[[d(-1.0), d(3.0), dthird | 1 << 63]],
        );
        t.op(
            "d>d",
            "rcp.rm.f64 %x, %a;",
            &[[d(-3.0), (dthird + 1) | 1 << 63]],
        );
        // sqrt(2) = 0x3ff6a09e667f3bcc.908b...
        t.op(
            "d>d",
            "sqrt.rn.f64 %x, %a;",
            &[[d(2.0), 0x3ff6_a09e_667f_3bcd]],
        );
        t.op(
            "d>d",
            "sqrt.rz.f64 %x, %a;",
            &[[d(2.0), 0x3ff6_a09e_667f_3bcc], [d(9.0), d(3.0)]],
        );
        let u = d(1.110_223_024_625_156_5e-16); // 2^-53
        t.op(
            "dd>d",
            "add.rn.f64 %x, %a, %b;",
            &[[d(1.0), u, d(1.0)], [d(1.5), d(2.25), d(3.75)]],
        );
        t.op(
            "dd>d",
            "add.rp.f64 %x, %a, %b;",
            &[[d(1.0), u, d(1.0) + 1], [d(1.0), 1, d(1.0) + 1]],
        );
        t.op(
            "dd>d",
            "add.rm.f64 %x, %a, %b;",
            &[
                [d(1.0), d(-1.0), d(-0.0)],
                [d(-1.0), u | 1 << 63, d(-1.0) + 1],
            ],
        );
        t.op(
            "dd>d",
            "mul.rz.f64 %x, %a, %b;",
            &[
                [d(1.0) + 1, d(1.0) + 1, d(1.0) + 2],
                [d(f64::MAX), d(2.0), d(f64::MAX)],
            ],
        );
        t.op(
            "dd>d",
            "mul.rp.f64 %x, %a, %b;",
            &[[d(1.0) + 1, d(1.0) + 1, d(1.0) + 3], [1, d(0.5), 1]],
        );
        t.op(
            "dd>d",
            "sub.rn.f64 %x, %a, %b;",
            &[[d(5.0), d(7.5), d(-2.5)]],
        );
        // (1+2^-52)^2 - (1+2^-51) = 2^-104.
        t.op(
            "ddd>d",
            "fma.rn.f64 %x, %a, %b, %c;",
            &[[
                d(1.0) + 1,
                d(1.0) + 1,
                (d(1.0) + 2) | 1 << 63,
                d(f64::powi(2.0, -104)),
            ]],
        );
    });
}

/// Special values and then random inputs in a range with an error bound.
fn approx(
    t: &mut crate::harness::Suite,
    op: &str,
    special: &[[u64; 2]],
    (low, high): (f64, f64),
    exact: impl Fn(f64) -> f64,
    bound: impl Fn(f64, f64) -> f64,
) {
    let code = format!("{op} %x, %a;");
    t.op("r>r", &code, special);
    let rows: Vec<[u64; 1]> = (0..500)
        .map(|i| {
            [f(
                (low + (high - low) * (f64::from(i) + 0.37) / 500.0) as f32
            )]
        })
        .collect();
    t.judge("r>r", &code, &rows, |&[a], got| {
        let (x, y) = (val(a), val(got[0]));
        let (want, most) = (exact(x), bound(x, exact(x)));
        ((y - want).abs() > most || y.is_nan()).then(|| format!("x {x:e} y {y:e} want {want:e}"))
    });
}

fn approximations() {
    suite("approximations", |t| {
        let p = |k: f64| f64::powf(2.0, k);
        // The tables of special values are those of each instruction's section.
        let rcp = [
            [NINF, NZERO],
            [NZERO, NINF],
            [0, INF],
            [INF, 0],
            [QNAN, NAN],
            [f(4.0), f(0.25)],
        ];
        approx(
            t,
            "rcp.approx.f32",
            &rcp,
            (0.1, 9.0),
            |x| 1.0 / x,
            |_, y| y.abs() * p(-23.0),
        );
        approx(
            t,
            "rcp.approx.ftz.f32",
            &rcp,
            (-9.0, -0.1),
            |x| 1.0 / x,
            |_, y| y.abs() * p(-23.0),
        );
        t.op(
            "r>r",
            "rcp.approx.ftz.f32 %x, %a;",
            &[[SUB, INF], [NZERO | SUB, NINF], [MAX, 0]],
        );
        let sqrt = [
            [NINF, NAN],
            [NONE, NAN],
            [NZERO, NZERO],
            [0, 0],
            [INF, INF],
            [QNAN, NAN],
        ];
        approx(
            t,
            "sqrt.approx.f32",
            &sqrt,
            (0.0, 1e6),
            f64::sqrt,
            |_, y| y * p(-23.0),
        );
        approx(
            t,
            "sqrt.approx.ftz.f32",
            &sqrt,
            (0.0, 2.0),
            f64::sqrt,
            |_, y| y * p(-23.0),
        );
        t.op(
            "r>r",
            "sqrt.approx.ftz.f32 %x, %a;",
            &[[SUB, 0], [NZERO | SUB, NZERO]],
        );
        let rsqrt = [
            [NINF, NAN],
            [NONE, NAN],
            [NZERO, NINF],
            [0, INF],
            [INF, 0],
            [QNAN, NAN],
        ];
        approx(
            t,
            "rsqrt.approx.f32",
            &rsqrt,
            (1e-3, 1e6),
            |x| x.sqrt().recip(),
            |_, y| y * p(-22.9),
        );
        t.op(
            "r>r",
            "rsqrt.approx.ftz.f32 %x, %a;",
            &[[SUB, INF], [NZERO | SUB, NINF], [f(4.0), f(0.5)]],
        );
        let lg2 = [
            [NINF, NAN],
            [NONE, NAN],
            [NZERO, NINF],
            [0, NINF],
            [INF, INF],
            [QNAN, NAN],
            [ONE, 0],
            [f(8.0), f(3.0)],
        ];
        approx(t, "lg2.approx.f32", &lg2, (0.5, 2.0), f64::log2, |_, _| {
            p(-22.0)
        });
        approx(
            t,
            "lg2.approx.ftz.f32",
            &lg2,
            (2.0, 1e9),
            f64::log2,
            |_, y| y.abs() * p(-22.0),
        );
        t.op(
            "r>r",
            "lg2.approx.ftz.f32 %x, %a;",
            &[[SUB, NINF], [NZERO | SUB, NINF]],
        );
        let ex2 = [
            [NINF, 0],
            [NZERO, ONE],
            [0, ONE],
            [INF, INF],
            [QNAN, NAN],
            [SUB, ONE],
            [NZERO | SUB, ONE],
            [f(10.0), f(1024.0)],
            [f(128.0), INF],
            [f(-300.0), 0],
        ];
        approx(
            t,
            "ex2.approx.f32",
            &ex2,
            (-100.0, 100.0),
            f64::exp2,
            |_, y| y * p(-22.0),
        );
        approx(
            t,
            "ex2.approx.ftz.f32",
            &ex2,
            (-2.0, 2.0),
            f64::exp2,
            |_, y| y * p(-22.0),
        );
        t.op(
            "r>r",
            "ex2.approx.ftz.f32 %x, %a;",
            &[[f(-127.0), 0], [f(-126.0), NORM]],
        );
        t.op("r>r", "ex2.approx.f32 %x, %a;", &[[f(-127.0), SUB]]);
        let pi2 = std::f64::consts::TAU;
        let sin = [[NINF, NAN], [INF, NAN], [NZERO, NZERO], [0, 0], [QNAN, NAN]];
        approx(t, "sin.approx.f32", &sin, (-pi2, pi2), f64::sin, |_, _| {
            p(-20.5)
        });
        t.op(
            "r>r",
            "sin.approx.ftz.f32 %x, %a;",
            &[[SUB, 0], [NZERO | SUB, NZERO]],
        );
        let cos = [
            [NINF, NAN],
            [INF, NAN],
            [NZERO, ONE],
            [0, ONE],
            [QNAN, NAN],
            [SUB, ONE],
        ];
        approx(t, "cos.approx.f32", &cos, (-pi2, pi2), f64::cos, |_, _| {
            p(-20.5)
        });
        approx(
            t,
            "cos.approx.ftz.f32",
            &cos,
            (0.0, 1.0),
            f64::cos,
            |_, _| p(-20.5),
        );
        // tanh supports subnormals.
        let tanh = [
            [NINF, NONE],
            [NZERO, NZERO],
            [0, 0],
            [INF, ONE],
            [QNAN, NAN],
        ];
        approx(
            t,
            "tanh.approx.f32",
            &tanh,
            (-6.0, 6.0),
            f64::tanh,
            |_, y| y.abs() * p(-11.0),
        );
        // div.approx and div.full: 2 ulp; 2^126 < |b| < 2^128 gives 0, or NaN if a is infinite.
        for op in [
            "div.approx.f32",
            "div.full.f32",
            "div.approx.ftz.f32",
            "div.full.ftz.f32",
        ] {
            let mut rng = Rng(7);
            let rows: Vec<[u64; 2]> = (0..200)
                .map(|_| {
                    [
                        f((rng.next() % 9999) as f32 + 0.7),
                        f((rng.next() % 9999) as f32 + 0.3),
                    ]
                })
                .collect();
            t.judge(
                "rr>r",
                &format!("{op} %x, %a, %b;"),
                &rows,
                |&[a, b], got| {
                    let (y, want) = (val(got[0]), val(a) / val(b));
                    ((y - want).abs() > want * p(-22.0)).then(|| format!("{y} {want}"))
                },
            );
        }
        let huge = f(1.7e38);
        t.op(
            "rr>r",
            "div.approx.f32 %x, %a, %b;",
            &[
                [ONE, f(3.0e38), 0],
                [INF, f(3.0e38), NAN],
                [f(-4.0), f(2.0), f(-2.0)],
            ],
        );
        t.op(
            "rr>r",
            "div.approx.ftz.f32 %x, %a, %b;",
            &[[INF, huge, NAN]],
        );
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        rounding_by_hand,
        mul_all_modes,
        add_random,
        ftz_and_sat,
        min_max,
        abs_neg_copysign_testp,
        division_and_roots_rounded,
        approximations
    ]
}
