//! ISA: Half Precision Floating-Point Instructions, and the f16 and bf16 forms of ex2 and tanh.

use crate::harness::{BF16, F16, Format, Rng, pair, suite};
use libtest_mimic::Trial;

/// The canonical NaN of both 16-bit formats.
const NAN: u64 = 0x7fff;
const SIGN: u64 = 0x8000;
/// f16: one, infinity, the largest, the smallest normal.
const ONE: u64 = 0x3c00;
const INF: u64 = 0x7c00;
const MAX: u64 = 0x7bff;
const NORM: u64 = 0x0400;
/// bf16 one and infinity.
const BONE: u64 = 0x3f80;
const BINF: u64 = 0x7f80;

/// Random operands of like magnitude, so that sums of three are exact in f64.
fn triples(format: Format, seed: u64) -> Vec<[u64; 3]> {
    let mut rng = Rng(seed);
    let exp = 1 << (format.0 - 1);
    (0..300)
        .map(|_| {
            std::array::from_fn(|_| {
                let r = rng.next();
                let e = (exp - 4 + (r >> 32) % 8) << format.1;
                r & (SIGN | ((1 << format.1) - 1)) | e
            })
        })
        .collect()
}

/// Every f16 special value.
const SPECIAL: [u64; 16] = [
    0,
    SIGN,
    1,
    SIGN | 1,
    NORM - 1,
    NORM,
    ONE,
    SIGN | ONE,
    MAX,
    SIGN | MAX,
    INF,
    SIGN | INF,
    0x7e00,
    0xfc01,
    0x3c01,
    0x4000,
];

fn squared() -> Vec<[u64; 2]> {
    SPECIAL
        .iter()
        .flat_map(|&a| SPECIAL.map(|b| [a, b]))
        .collect()
}

fn arithmetic_f16() {
    suite("arithmetic_f16", |t| {
        let v = |x| F16.decode(x);
        let sq = squared();
        // All sums and products of two f16 are exact in f64: one rounding.
        t.map("hh>h", "add.f16 %x, %a, %b;", &sq, |[a, b]| {
            F16.encode(v(a) + v(b), 'n')
        });
        t.map("hh>h", "add.rn.f16 %x, %a, %b;", &sq, |[a, b]| {
            F16.encode(v(a) + v(b), 'n')
        });
        t.map("hh>h", "sub.f16 %x, %a, %b;", &sq, |[a, b]| {
            F16.encode(v(a) - v(b), 'n')
        });
        t.map("hh>h", "mul.f16 %x, %a, %b;", &sq, |[a, b]| {
            F16.encode(v(a) * v(b), 'n')
        });
        let ftz = |x: u64| if x & INF == 0 { x & SIGN } else { x };
        t.map("hh>h", "add.ftz.f16 %x, %a, %b;", &sq, |[a, b]| {
            ftz(F16.encode(v(ftz(a)) + v(ftz(b)), 'n'))
        });
        t.map("hh>h", "mul.ftz.f16 %x, %a, %b;", &sq, |[a, b]| {
            ftz(F16.encode(v(ftz(a)) * v(ftz(b)), 'n'))
        });
        // .sat: [0.0, 1.0], NaN to +0.0.
        let sat = |x: f64| {
            if x.is_nan() || x <= 0.0 {
                0
            } else {
                F16.encode(x.min(1.0), 'n')
            }
        };
        t.map("hh>h", "add.sat.f16 %x, %a, %b;", &sq, |[a, b]| {
            sat(v(a) + v(b))
        });
        t.map("hh>h", "mul.sat.f16 %x, %a, %b;", &sq, |[a, b]| {
            sat(v(a) * v(b))
        });
        let rows = triples(F16, 1);
        t.map("hhh>h", "fma.rn.f16 %x, %a, %b, %c;", &rows, |[a, b, c]| {
            F16.encode(v(a) * v(b) + v(c), 'n')
        });
        // .relu: negative results become zero, NaN the canonical one.
        let relu = |x: f64| if x < 0.0 { 0 } else { F16.encode(x, 'n') };
        t.map(
            "hhh>h",
            "fma.rn.relu.f16 %x, %a, %b, %c;",
            &rows,
            |[a, b, c]| relu(v(a) * v(b) + v(c)),
        );
        t.map(
            "hhh>h",
            "fma.rn.sat.f16 %x, %a, %b, %c;",
            &rows,
            |[a, b, c]| sat(v(a) * v(b) + v(c)),
        );
        t.op(
            "hhh>h",
            "fma.rn.f16 %x, %a, %b, %c;",
            &[
                // One rounding: (1+2^-10)^2 - (1+2^-9) = 2^-20; a sticky bit of 2^-24 breaks a tie.
                [0x3c01, 0x3c01, 0xbc02, 0x0010],
                [0x4001, 0x3c00 + 0x200, 1, 0x4202],
                [0x4001, 0x3c00 + 0x200, SIGN | 1, 0x4201],
                [INF, 0, ONE, NAN],
                [MAX, 0x4000, SIGN | INF, SIGN | INF],
            ],
        );
        t.op(
            "hhh>h",
            "fma.rn.relu.f16 %x, %a, %b, %c;",
            &[[0x7e00, ONE, ONE, NAN], [ONE, ONE, 0xbc01, 0]],
        );
        // Packed: each half for itself.
        t.op(
            "rr>r",
            "add.f16x2 %x, %a, %b;",
            &[
                [pair(ONE, MAX), pair(ONE, MAX), pair(0x4000, INF)],
                [pair(INF, 1), pair(SIGN | INF, 1), pair(NAN, 2)],
            ],
        );
        t.op(
            "rr>r",
            "sub.f16x2 %x, %a, %b;",
            &[[
                pair(ONE, 0),
                pair(0x4000, ONE),
                pair(SIGN | ONE, SIGN | ONE),
            ]],
        );
        t.op(
            "rr>r",
            "mul.f16x2 %x, %a, %b;",
            &[[
                pair(0x4000, 0x4200),
                pair(0x4200, 0x3800),
                pair(0x4600, 0x3e00),
            ]],
        );
        t.op(
            "rr>r",
            "mul.rn.ftz.f16x2 %x, %a, %b;",
            &[[pair(1, NORM), pair(ONE, 0xb800), pair(0, SIGN)]],
        );
        t.op(
            "rrr>r",
            "fma.rn.f16x2 %x, %a, %b, %c;",
            &[[
                pair(0x3c01, 0x4000),
                pair(0x3c01, 0x4200),
                pair(0xbc02, ONE),
                pair(0x0010, 0x4700),
            ]],
        );
        t.op(
            "rrr>r",
            "fma.rn.relu.f16x2 %x, %a, %b, %c;",
            &[[
                pair(ONE, ONE),
                pair(ONE, SIGN | ONE),
                pair(ONE, 0),
                pair(0x4000, 0),
            ]],
        );
        t.op(
            "r>rr",
            "neg.f16x2 %x, %a; abs.f16x2 %y, %a;",
            &[[pair(SIGN | ONE, 0), pair(ONE, SIGN), pair(ONE, 0)]],
        );
        t.op(
            "h>hh",
            "neg.f16 %x, %a; abs.f16 %y, %a;",
            &[[SIGN | ONE, ONE, ONE], [0, SIGN, 0]],
        );
    });
}

fn arithmetic_bf16() {
    suite("arithmetic_bf16", |t| {
        let v = |x| BF16.decode(x);
        let rows = triples(BF16, 2);
        t.map("hhh>h", "add.rn.bf16 %x, %a, %b;", &rows, |[a, b, _]| {
            BF16.encode(v(a) + v(b), 'n')
        });
        t.map("hhh>h", "sub.rn.bf16 %x, %a, %b;", &rows, |[a, b, _]| {
            BF16.encode(v(a) - v(b), 'n')
        });
        t.map("hhh>h", "mul.rn.bf16 %x, %a, %b;", &rows, |[a, b, _]| {
            BF16.encode(v(a) * v(b), 'n')
        });
        t.map(
            "hhh>h",
            "fma.rn.bf16 %x, %a, %b, %c;",
            &rows,
            |[a, b, c]| BF16.encode(v(a) * v(b) + v(c), 'n'),
        );
        let relu = |x: f64| if x < 0.0 { 0 } else { BF16.encode(x, 'n') };
        t.map(
            "hhh>h",
            "fma.rn.relu.bf16 %x, %a, %b, %c;",
            &rows,
            |[a, b, c]| relu(v(a) * v(b) + v(c)),
        );
        // Subnormals are supported; overflow and invalid operations as IEEE 754.
        t.op(
            "hh>h",
            "add.rn.bf16 %x, %a, %b;",
            &[
                [1, 1, 2],
                [0x7f7f, 0x7f7f, BINF],
                [BINF, SIGN | BINF, NAN],
                [BONE, 0x3b80, BONE],
                [BONE + 1, 0x3b80, BONE + 2],
                [0x7fc0, BONE, NAN],
            ],
        );
        t.op(
            "hhh>h",
            "fma.rn.bf16 %x, %a, %b, %c;",
            &[
                [BONE + 1, BONE + 1, SIGN | (BONE + 2), 0x3880],
                [BONE, BONE, 1, BONE],
                [BONE + 1, 0x3fc0, 1, 0x3fc2],
                [BONE + 1, 0x3fc0, SIGN | 1, 0x3fc1],
            ],
        );
        t.op(
            "rr>r",
            "add.rn.bf16x2 %x, %a, %b;",
            &[[pair(BONE, 0x4000), pair(BONE, BONE), pair(0x4000, 0x4040)]],
        );
        t.op(
            "rr>r",
            "sub.rn.bf16x2 %x, %a, %b;",
            &[[pair(BONE, 0x4000), pair(BONE, BONE), pair(0, BONE)]],
        );
        t.op(
            "rr>r",
            "mul.rn.bf16x2 %x, %a, %b;",
            &[[
                pair(0x4000, 0xc000),
                pair(0x4040, 0x4040),
                pair(0x40c0, 0xc0c0),
            ]],
        );
        t.op(
            "rrr>r",
            "fma.rn.bf16x2 %x, %a, %b, %c;",
            &[[
                pair(0x4000, 0xc000),
                pair(0x4040, 0x4040),
                pair(BONE, BONE),
                pair(0x40e0, 0xc0a0),
            ]],
        );
        t.op(
            "rrr>r",
            "fma.rn.relu.bf16x2 %x, %a, %b, %c;",
            &[[
                pair(0x4000, 0xc000),
                pair(0x4040, 0x4040),
                pair(BONE, BONE),
                pair(0x40e0, 0),
            ]],
        );
        t.op(
            "r>rr",
            "neg.bf16x2 %x, %a; abs.bf16x2 %y, %a;",
            &[[pair(0xbf80, 0), pair(BONE, SIGN), pair(BONE, 0)]],
        );
    });
}

fn min_max() {
    suite("min_max", |t| {
        for (ty, one, nan) in [("f16", ONE, 0x7e00), ("bf16", BONE, 0x7fc0)] {
            let rows = [
                [one, SIGN | one, SIGN | one, one],
                [nan, one, one, one],
                [one, SIGN | nan, one, one],
                [nan, nan | 1, NAN, NAN],
                [0, SIGN, SIGN, 0],
                [SIGN, 0, SIGN, 0],
                [1, 2, 1, 2],
            ];
            t.op(
                "hh>hh",
                &format!("min.{ty} %x, %a, %b; max.{ty} %y, %a, %b;"),
                &rows,
            );
            let packed = rows.map(|r| {
                [
                    pair(r[0], r[1]),
                    pair(r[1], r[0]),
                    pair(r[2], r[2]),
                    pair(r[3], r[3]),
                ]
            });
            t.op(
                "rr>rr",
                &format!("min.{ty}x2 %x, %a, %b; max.{ty}x2 %y, %a, %b;"),
                &packed,
            );
            t.op(
                "hh>hh",
                &format!("min.NaN.{ty} %x, %a, %b; max.NaN.{ty} %y, %a, %b;"),
                &[[nan, one, NAN, NAN], [one, nan, NAN, NAN], [one, 0, 0, one]],
            );
            t.op(
                "rr>rr",
                &format!("min.NaN.{ty}x2 %x, %a, %b; max.NaN.{ty}x2 %y, %a, %b;"),
                &[[pair(nan, one), pair(one, 0), pair(NAN, 0), pair(NAN, one)]],
            );
            t.op(
                "rr>r",
                &format!("max.xorsign.abs.{ty}x2 %x, %a, %b;"),
                &[[
                    pair(SIGN | one, one),
                    pair(0, SIGN | 1),
                    pair(SIGN | one, SIGN | one),
                ]],
            );
        }
        t.op(
            "hh>hh",
            "min.ftz.f16 %x, %a, %b; max.ftz.f16 %y, %a, %b;",
            &[[1, ONE, 0, ONE], [SIGN | 1, 0, SIGN, 0]],
        );
    });
}

fn ex2_and_tanh() {
    suite("ex2_and_tanh", |t| {
        t.op(
            "h>h",
            "ex2.approx.f16 %x, %a;",
            &[
                [0, ONE],
                [SIGN, ONE],
                [SIGN | INF, 0],
                [INF, INF],
                [0x7e00, NAN],
                [ONE, 0x4000],
                [0xcb80, 0x0200],
                [1, ONE],
                [0xce00, 1],
            ],
        );
        t.op(
            "h>h",
            "ex2.approx.ftz.bf16 %x, %a;",
            &[
                [0, BONE],
                [SIGN, BONE],
                [SIGN | BINF, 0],
                [BINF, BINF],
                [0x7fc0, NAN],
                [BONE, 0x4000],
                [1, BONE],
                [0xc2fe, 0],
            ],
        );
        t.op(
            "r>r",
            "ex2.approx.f16x2 %x, %a;",
            &[[pair(ONE, 0xbc00), pair(0x4000, 0x3800)]],
        );
        t.op(
            "r>r",
            "ex2.approx.ftz.bf16x2 %x, %a;",
            &[[pair(BONE, 0xbf80), pair(0x4000, 0x3f00)]],
        );
        t.op(
            "h>h",
            "tanh.approx.f16 %x, %a;",
            &[
                [0, 0],
                [SIGN, SIGN],
                [INF, ONE],
                [SIGN | INF, SIGN | ONE],
                [0x7e00, NAN],
            ],
        );
        t.op(
            "h>h",
            "tanh.approx.bf16 %x, %a;",
            &[
                [0, 0],
                [SIGN, SIGN],
                [BINF, BONE],
                [SIGN | BINF, SIGN | BONE],
                [0x7fc0, NAN],
            ],
        );
        t.op(
            "r>r",
            "tanh.approx.f16x2 %x, %a;",
            &[[pair(INF, SIGN), pair(ONE, SIGN)]],
        );
        t.op(
            "r>r",
            "tanh.approx.bf16x2 %x, %a;",
            &[[pair(BINF, SIGN), pair(BONE, SIGN)]],
        );
        // Bounds: ex2 2^-9.9 (f16) and 2^-7 (bf16) relative; tanh 2^-10.987 absolute (f16) and
        // 2^-8 relative (bf16).
        let f16: Vec<[u64; 1]> = (0x2000..0x4800)
            .step_by(37)
            .flat_map(|x| [[x], [SIGN | x]])
            .collect();
        let bf16: Vec<[u64; 1]> = (0x3c00..0x40c0)
            .step_by(5)
            .flat_map(|x| [[x], [SIGN | x]])
            .collect();
        let mut check = |op: &str,
                         fmt: Format,
                         rows: &[[u64; 1]],
                         exact: fn(f64) -> f64,
                         relative: bool,
                         bound: f64| {
            t.judge("h>h", &format!("{op} %x, %a;"), rows, |&[a], got| {
                let (y, want) = (fmt.decode(got[0]), exact(fmt.decode(a)));
                let most = f64::exp2(bound) * if relative { want.abs() } else { 1.0 };
                ((y - want).abs() > most || y.is_nan()).then(|| format!("{y} for {want}"))
            });
        };
        check("ex2.approx.f16", F16, &f16, f64::exp2, true, -9.9);
        check("ex2.approx.ftz.bf16", BF16, &bf16, f64::exp2, true, -7.0);
        check("tanh.approx.f16", F16, &f16, f64::tanh, false, -10.987);
        check("tanh.approx.bf16", BF16, &bf16, f64::tanh, true, -8.0);
    });
}

fn comparison() {
    suite("comparison", |t| {
        t.op(
            "hh>pp",
            "setp.lt.f16 %x, %a, %b; setp.neu.f16 %y, %a, %b;",
            &[[ONE, 0x4000, 1, 1], [0x7e00, ONE, 0, 1], [0, SIGN, 0, 0]],
        );
        t.op(
            "hh>pp",
            "setp.ge.bf16 %x, %a, %b; setp.ltu.bf16 %y, %a, %b;",
            &[[BONE, BONE, 1, 0], [0x7fc0, BONE, 0, 1], [SIGN, 0, 1, 0]],
        );
        // Two destinations of a packed comparison: the low and the high half.
        t.op(
            "rr>pp",
            "setp.gt.f16x2 %x|%y, %a, %b;",
            &[[pair(0x4000, ONE), pair(ONE, ONE), 0, 1]],
        );
        t.op(
            "rr>pp",
            "setp.eq.bf16x2 %x|%y, %a, %b;",
            &[[pair(0x4000, BONE), pair(BONE, BONE), 1, 0]],
        );
        t.op(
            "rr>r",
            "set.lt.f16x2.f16x2 %x, %a, %b;",
            &[[pair(ONE, 0x4000), pair(0x4000, ONE), pair(ONE, 0)]],
        );
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        arithmetic_f16,
        arithmetic_bf16,
        min_max,
        ex2_and_tanh,
        comparison
    ]
}
