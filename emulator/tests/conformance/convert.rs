//! ISA: Data Movement and Conversion Instructions: cvt, mov.

use crate::harness::{BF16, F16, F32, Rng, d, f, n, pair, suite, val};
use libtest_mimic::Trial;

const INF: u64 = 0x7f80_0000;
const NINF: u64 = 0xff80_0000;
const NAN: u64 = 0x7fc0_0000;
const NZERO: u64 = 0x8000_0000;
const MIN32: u64 = 0x8000_0000;
const MAX32: u64 = 0x7fff_ffff;
const MIN64: u64 = 1 << 63;
const ALL: u64 = 0xffff_ffff;

fn float_to_integer() {
    suite("float_to_integer", |t| {
        let x: [f32; 10] = [0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 0.3, -0.3, 1.7, -1.7];
        // .rni nearest with ties to even, .rzi zero, .rmi down, .rpi up.
        let modes: [(&str, [i64; 10]); 4] = [
            ("rni", [0, 2, 2, 0, -2, -2, 0, 0, 2, -2]),
            ("rzi", [0, 1, 2, 0, -1, -2, 0, 0, 1, -1]),
            ("rmi", [0, 1, 2, -1, -2, -3, 0, -1, 1, -2]),
            ("rpi", [1, 2, 3, 0, -1, -2, 1, 0, 2, -1]),
        ];
        for (mode, want) in modes {
            let rows: Vec<[u64; 2]> = x.iter().zip(want).map(|(&x, w)| [f(x), n(w)]).collect();
            t.op("r>r", &format!("cvt.{mode}.s32.f32 %x, %a;"), &rows);
            t.op("r>d", &format!("cvt.{mode}.s64.f32 %x, %a;"), &rows);
            let rows: Vec<[u64; 2]> = x
                .iter()
                .zip(want)
                .map(|(&x, w)| [f(x), n(w.max(0))])
                .collect();
            t.op("r>r", &format!("cvt.{mode}.u32.f32 %x, %a;"), &rows);
            let rows: Vec<[u64; 2]> = x
                .iter()
                .zip(want)
                .map(|(&x, w)| [d(f64::from(x)), n(w)])
                .collect();
            t.op("d>r", &format!("cvt.{mode}.s32.f64 %x, %a;"), &rows);
            t.op("d>d", &format!("cvt.{mode}.s64.f64 %x, %a;"), &rows);
            let rows: Vec<[u64; 2]> = x
                .iter()
                .zip(want)
                .filter(|(x, _)| x.abs() != 0.3 && x.abs() != 1.7)
                .map(|(&x, w)| [F16.encode(f64::from(x), 'n'), n(w)])
                .collect();
            t.op("h>r", &format!("cvt.{mode}.s32.f16 %x, %a;"), &rows);
            t.op("h>h", &format!("cvt.{mode}.s16.f16 %x, %a;"), &rows);
            // A float rounded to an integral float keeps its sign of zero.
            let rows: Vec<[u64; 2]> = x
                .iter()
                .zip(want)
                .map(|(&x, w)| [f(x), f((w as f32).copysign(x))])
                .collect();
            t.op("r>r", &format!("cvt.{mode}.f32.f32 %x, %a;"), &rows);
            let rows: Vec<[u64; 2]> = x
                .iter()
                .zip(want)
                .map(|(&x, w)| [d(f64::from(x)), d((w as f64).copysign(f64::from(x)))])
                .collect();
            t.op("d>d", &format!("cvt.{mode}.f64.f64 %x, %a;"), &rows);
        }
        // "Saturation: for float-to-integer conversions the result is clamped to the
        // destination range by default." NaN: 0 when the source is not .f64 and the destination
        // is not 64 bits, else 1 << (width - 1).
        t.op(
            "r>r",
            "cvt.rzi.s32.f32 %x, %a;",
            &[
                [f(3e9), MAX32],
                [f(-3e9), MIN32],
                [INF, MAX32],
                [NINF, MIN32],
                [NAN, 0],
                [f(2147483648.0), MAX32],
            ],
        );
        t.op(
            "r>r",
            "cvt.rzi.u32.f32 %x, %a;",
            &[
                [f(5e9), ALL],
                [f(-1.0), 0],
                [INF, ALL],
                [NINF, 0],
                [NAN, 0],
                [f(4294967040.0), 0xffff_ff00],
            ],
        );
        t.op(
            "r>d",
            "cvt.rzi.s64.f32 %x, %a;",
            &[[f(1e19), n(i64::MAX)], [NINF, MIN64], [NAN, MIN64]],
        );
        t.op(
            "r>d",
            "cvt.rzi.u64.f32 %x, %a;",
            &[[f(1e20), u64::MAX], [f(-5.0), 0], [NAN, MIN64]],
        );
        t.op(
            "d>r",
            "cvt.rzi.s32.f64 %x, %a;",
            &[
                [d(1e10), MAX32],
                [d(-1e10), MIN32],
                [f64::NAN.to_bits(), MIN32],
            ],
        );
        t.op(
            "d>r",
            "cvt.rzi.u32.f64 %x, %a;",
            &[[d(1e10), ALL], [d(-1.0), 0], [f64::NAN.to_bits(), MIN32]],
        );
        t.op(
            "d>d",
            "cvt.rzi.u64.f64 %x, %a;",
            &[
                [d(1e20), u64::MAX],
                [d(-1.0), 0],
                [f64::NAN.to_bits(), MIN64],
            ],
        );
        t.op(
            "h>r",
            "cvt.rzi.s32.f16 %x, %a;",
            &[
                [0x7c00, MAX32],
                [0xfc00, MIN32],
                [0x7e00, 0],
                [0x7bff, 65504],
            ],
        );
        t.op(
            "h>h",
            "cvt.rzi.u16.f16 %x, %a;",
            &[[0x7c00, 0xffff], [0xbc00, 0], [0x7bff, 65504]],
        );
        t.op(
            "r>h",
            "cvt.rzi.s16.f32 %x, %a;",
            &[
                [f(40000.0), 0x7fff],
                [f(-40000.0), 0x8000],
                [f(-7.9), n(-7)],
            ],
        );
        t.op(
            "r>h",
            "cvt.rzi.u16.f32 %x, %a;",
            &[[f(70000.0), 0xffff], [f(-1.0), 0]],
        );
        t.op(
            "r>r",
            "cvt.rni.u8.f32 %x, %a;",
            &[[f(300.0), 255], [f(-3.0), 0], [f(254.5), 254]],
        );
        t.op(
            "r>r",
            "cvt.rni.s8.f32 %x, %a;",
            &[[f(300.0), 127], [f(-300.0), n(-128)], [f(-5.5), n(-6)]],
        );
        t.op(
            "r>r",
            "cvt.rni.sat.f32.f32 %x, %a;",
            &[[f(0.5), 0], [f(0.75), f(1.0)], [f(7.0), f(1.0)], [NAN, 0]],
        );
        t.op(
            "r>r",
            "cvt.rni.f32.f32 %x, %a;",
            &[[INF, INF], [f(8388609.0), f(8388609.0)], [NZERO, NZERO]],
        );
        t.op(
            "r>r",
            "cvt.rpi.ftz.f32.f32 %x, %a;",
            &[[1, 0], [f(0.1), f(1.0)]],
        );
        t.op("r>r", "cvt.rpi.ftz.s32.f32 %x, %a;", &[[1, 0], [f(0.1), 1]]);
        t.op("r>r", "cvt.rpi.s32.f32 %x, %a;", &[[1, 1]]);
        t.op(
            "h>h",
            "cvt.rni.f16.f16 %x, %a;",
            &[[0x4100, 0x4000], [0xb800, 0x8000], [0x4300, 0x4400]],
        );
    });
}

fn integer_to_float() {
    suite("integer_to_float", |t| {
        for (mode, up, neg) in [
            ("rn", 16777216.0, -16777216.0),
            ("rz", 16777216.0, -16777216.0),
            ("rm", 16777216.0, -16777218.0),
            ("rp", 16777218.0, -16777216.0),
        ] {
            t.op(
                "r>r",
                &format!("cvt.{mode}.f32.s32 %x, %a;"),
                &[
                    [16777217, f(up)],
                    [n(-16777217), f(neg)],
                    [0, 0],
                    [MIN32, f(-2147483648.0)],
                ],
            );
            t.op(
                "r>r",
                &format!("cvt.{mode}.f32.u32 %x, %a;"),
                &[[16777217, f(up)], [MIN32, f(2147483648.0)]],
            );
            t.op(
                "d>r",
                &format!("cvt.{mode}.f32.s64 %x, %a;"),
                &[[16777217, f(up)], [n(-16777217), f(neg)]],
            );
        }
        t.op(
            "r>r",
            "cvt.rn.f32.u32 %x, %a;",
            &[[ALL, f(4294967296.0)], [16777219, f(16777220.0)]],
        );
        t.op("r>r", "cvt.rz.f32.u32 %x, %a;", &[[ALL, f(4294967040.0)]]);
        // 2^63 + 2^39 is half a unit above 2^63; one more breaks the tie (no double rounding).
        t.op(
            "d>r",
            "cvt.rn.f32.u64 %x, %a;",
            &[
                [u64::MAX, f(18446744073709551616.0)],
                [MIN64 | 1 << 39, f(9223372036854775808.0)],
                [MIN64 | 1 << 39 | 1, f(9223373136366403584.0)],
            ],
        );
        t.op(
            "d>d",
            "cvt.rn.f64.u64 %x, %a;",
            &[
                [u64::MAX, d(18446744073709551616.0)],
                [(1 << 53) + 1, d(9007199254740992.0)],
            ],
        );
        t.op(
            "d>d",
            "cvt.rp.f64.s64 %x, %a;",
            &[
                [(1 << 53) + 1, d(9007199254740994.0)],
                [n(-(1 << 53) - 1), d(-9007199254740992.0)],
            ],
        );
        t.op(
            "r>d",
            "cvt.rn.f64.s32 %x, %a;",
            &[[MIN32, d(-2147483648.0)], [7, d(7.0)]],
        );
        t.op("r>d", "cvt.rn.f64.u32 %x, %a;", &[[ALL, d(4294967295.0)]]);
        // f16 overflows from 65520 on; units of 2 above 2048.
        t.op(
            "r>h",
            "cvt.rn.f16.s32 %x, %a;",
            &[
                [65519, 0x7bff],
                [65520, 0x7c00],
                [2049, 0x6800],
                [2051, 0x6802],
                [n(-2049), 0xe800],
            ],
        );
        t.op(
            "r>h",
            "cvt.rz.f16.u32 %x, %a;",
            &[[65536, 0x7bff], [ALL, 0x7bff], [2051, 0x6801]],
        );
        t.op(
            "h>h",
            "cvt.rn.f16.s16 %x, %a;",
            &[[0xffff, 0xbc00], [2051, 0x6802]],
        );
        t.op(
            "h>h",
            "cvt.rn.f16.u16 %x, %a;",
            &[[0xffff, 0x7c00], [1, 0x3c00]],
        );
        t.op("h>r", "cvt.rn.f32.s16 %x, %a;", &[[0x8000, f(-32768.0)]]);
        t.op("h>r", "cvt.rn.f32.u16 %x, %a;", &[[0x8000, f(32768.0)]]);
        t.op("r>r", "cvt.rn.f32.u8 %x, %a;", &[[0x1ff, f(255.0)]]);
        t.op("r>r", "cvt.rn.f32.s8 %x, %a;", &[[0x1ff, f(-1.0)]]);
    });
}

fn integer_to_integer() {
    suite("integer_to_integer", |t| {
        t.op(
            "r>d",
            "cvt.s64.s32 %x, %a;",
            &[[MIN32, n(-(1 << 31))], [5, 5]],
        );
        t.op("r>d", "cvt.u64.u32 %x, %a;", &[[ALL, ALL]]);
        // Sign extension follows the source's type, not the destination's.
        t.op("r>d", "cvt.u64.s32 %x, %a;", &[[ALL, u64::MAX]]);
        t.op("r>d", "cvt.s64.u32 %x, %a;", &[[ALL, ALL]]);
        t.op(
            "d>r",
            "cvt.u32.u64 %x, %a;",
            &[[0x1_2345_6789, 0x2345_6789]],
        );
        t.op(
            "d>r",
            "cvt.s32.s64 %x, %a;",
            &[[u64::MAX, ALL], [1 << 40 | 3, 3]],
        );
        t.op("h>r", "cvt.s32.s16 %x, %a;", &[[0x8000, n(-32768)]]);
        t.op("h>r", "cvt.u32.u16 %x, %a;", &[[0x8000, 0x8000]]);
        t.op("r>h", "cvt.u16.u32 %x, %a;", &[[0x1_2345, 0x2345]]);
        // Sources and destinations wider than the type: chopped, and extended by the type.
        t.op("r>r", "cvt.s32.s8 %x, %a;", &[[0x1ff, ALL], [0x17f, 0x7f]]);
        t.op("r>r", "cvt.u32.u8 %x, %a;", &[[0x1ff, 0xff]]);
        t.op(
            "r>r",
            "cvt.s8.s32 %x, %a;",
            &[[0x1ff, ALL], [0x80, n(-128)]],
        );
        t.op("r>r", "cvt.u8.u32 %x, %a;", &[[0x1ff, 0xff]]);
        t.op("h>h", "cvt.s16.s8 %x, %a;", &[[0x0180, 0xff80]]);
        t.op("r>r", "cvt.s16.s32 %x, %a;", &[[0x1_8000, n(-32768)]]);
        // .sat clamps to the destination's range.
        t.op(
            "r>r",
            "cvt.sat.s8.s32 %x, %a;",
            &[[200, 127], [n(-200), n(-128)], [n(-5), n(-5)]],
        );
        t.op("r>r", "cvt.sat.u8.s32 %x, %a;", &[[300, 255], [n(-1), 0]]);
        t.op("r>r", "cvt.sat.u32.s32 %x, %a;", &[[n(-1), 0], [5, 5]]);
        t.op("r>r", "cvt.sat.s32.u32 %x, %a;", &[[ALL, MAX32], [5, 5]]);
        t.op(
            "d>r",
            "cvt.sat.s32.s64 %x, %a;",
            &[[1 << 40, MAX32], [n(-(1 << 40)), MIN32], [7, 7]],
        );
        t.op("d>r", "cvt.sat.u32.u64 %x, %a;", &[[1 << 40, ALL], [7, 7]]);
        t.op(
            "r>h",
            "cvt.sat.s16.s32 %x, %a;",
            &[[40000, 0x7fff], [n(-40000), 0x8000]],
        );
    });
}

fn float_to_float() {
    suite("float_to_float", |t| {
        for mode in ['n', 'z', 'm', 'p'] {
            let mut rng = Rng(11);
            let mut rows: Vec<[u64; 1]> = vec![
                [0],
                [NZERO],
                [INF],
                [NINF],
                [f(65504.0)],
                [f(65519.996)],
                [f(65520.0)],
                [f(-65520.0)],
                [f(1e9)],
                [f(5.9604645e-8)],
                [f(2.9802322e-8)],
                [f(2.9802326e-8)],
                [f(6.1e-5)],
                [1],
                [f(2049.0)],
                [f(2051.0)],
            ];
            rows.extend((0..200).map(|_| {
                let r = rng.next();
                [r & 0x807f_ffff | (101 + (r >> 32) % 44) << 23]
            }));
            t.map(
                "r>h",
                &format!("cvt.r{mode}.f16.f32 %x, %a;"),
                &rows,
                |[a]| F16.encode(val(a), mode),
            );
            let wide: Vec<[u64; 1]> = (0..200)
                .map(|_| {
                    let r = rng.next();
                    [r & !(0x7ff << 52) | (1023 - 151 + (r >> 13) % 281) << 52]
                })
                .chain([
                    [1],
                    [d(f64::MAX)],
                    [d(-f64::MAX)],
                    [d(1.0 + 5.960464477539063e-8)],
                ])
                .collect();
            t.map(
                "d>r",
                &format!("cvt.r{mode}.f32.f64 %x, %a;"),
                &wide,
                |[a]| F32.encode(f64::from_bits(a), mode),
            );
            t.map(
                "d>h",
                &format!("cvt.r{mode}.f16.f64 %x, %a;"),
                &wide,
                |[a]| F16.encode(f64::from_bits(a), mode),
            );
            if mode == 'n' || mode == 'z' {
                rows.extend([
                    [0x3f80_8000],
                    [0x3f81_8000],
                    [0x3f80_8001],
                    [0x7f7f_ffff],
                    [0xff7f_8000],
                    [0x7f7f_7fff],
                ]);
                t.map(
                    "r>h",
                    &format!("cvt.r{mode}.bf16.f32 %x, %a;"),
                    &rows,
                    |[a]| BF16.encode(val(a), mode),
                );
                let relu = |a| {
                    if val(a) < 0.0 || a == NZERO {
                        0
                    } else {
                        BF16.encode(val(a), mode)
                    }
                };
                t.map(
                    "r>h",
                    &format!("cvt.r{mode}.relu.bf16.f32 %x, %a;"),
                    &rows,
                    |[a]| relu(a),
                );
                // d, a, b: a converts to the upper half and b to the lower.
                t.map(
                    "rr>r",
                    &format!("cvt.r{mode}.bf16x2.f32 %x, %a, %b;"),
                    &rows.iter().map(|r| [r[0], f(1.5)]).collect::<Vec<_>>(),
                    |[a, b]| pair(BF16.encode(val(a), mode), BF16.encode(val(b), mode)),
                );
                t.map(
                    "rr>r",
                    &format!("cvt.r{mode}.f16x2.f32 %x, %a, %b;"),
                    &rows.iter().map(|r| [f(-1.5), r[0]]).collect::<Vec<_>>(),
                    |[a, b]| pair(F16.encode(val(a), mode), F16.encode(val(b), mode)),
                );
            }
        }
        // By hand: 1 + 2^-11 is a tie of f16, 1 + 2^-8 of bf16; to even both times.
        t.op(
            "r>h",
            "cvt.rn.f16.f32 %x, %a;",
            &[
                [0x3f80_1000, 0x3c00],
                [0x3f80_3000, 0x3c02],
                [0x3f80_1001, 0x3c01],
                [NAN, 0x7fff],
                [0xff80_0001, 0x7fff],
            ],
        );
        t.op(
            "r>h",
            "cvt.rn.bf16.f32 %x, %a;",
            &[
                [0x3f80_8000, 0x3f80],
                [0x3f81_8000, 0x3f82],
                [0x3f80_8001, 0x3f81],
                [NAN, 0x7fff],
                [0xff80_0001, 0x7fff],
            ],
        );
        t.op(
            "rr>r",
            "cvt.rn.bf16x2.f32 %x, %a, %b;",
            &[[f(1.0), f(2.0), 0x3f80_4000]],
        );
        t.op(
            "rr>r",
            "cvt.rn.f16x2.f32 %x, %a, %b;",
            &[[f(1.0), f(2.0), 0x3c00_4000]],
        );
        t.op(
            "rr>r",
            "cvt.rn.relu.bf16x2.f32 %x, %a, %b;",
            &[[f(-1.0), f(2.0), 0x0000_4000], [NAN, f(-0.0), 0x7fff_0000]],
        );
        t.op(
            "rr>r",
            "cvt.rn.relu.f16x2.f32 %x, %a, %b;",
            &[[f(3.0), f(-2.0), 0x4200_0000]],
        );
        t.op(
            "h>r",
            "cvt.f32.f16 %x, %a;",
            &[
                [0x3c00, f(1.0)],
                [1, f(5.9604645e-8)],
                [0x8000, NZERO],
                [0xfc00, NINF],
                [0x03ff, f(6.097555e-5)],
            ],
        );
        t.op(
            "h>r",
            "cvt.f32.bf16 %x, %a;",
            &[[0x3f80, f(1.0)], [1, 0x1_0000], [0xff80, NINF]],
        );
        t.op(
            "h>d",
            "cvt.f64.f16 %x, %a;",
            &[[0xc000, d(-2.0)], [1, d(5.960464477539063e-8)]],
        );
        t.op(
            "r>d",
            "cvt.f64.f32 %x, %a;",
            &[
                [f(1.5), d(1.5)],
                [1, d(1.401298464324817e-45)],
                [NINF, d(f64::NEG_INFINITY)],
            ],
        );
        t.op(
            "r>d",
            "cvt.ftz.f64.f32 %x, %a;",
            &[[1, 0], [NZERO | 1, d(-0.0)]],
        );
        t.op(
            "d>r",
            "cvt.rn.ftz.f32.f64 %x, %a;",
            &[[d(1e-40), 0], [d(-1e-40), NZERO], [d(1e-37), f(1e-37)]],
        );
        t.op(
            "r>r",
            "cvt.sat.f32.f32 %x, %a;",
            &[[f(2.0), f(1.0)], [f(-2.0), 0], [NAN, 0], [f(0.5), f(0.5)]],
        );
        t.op(
            "d>r",
            "cvt.rn.sat.f32.f64 %x, %a;",
            &[[d(2.0), f(1.0)], [d(-1.0), 0], [f64::NAN.to_bits(), 0]],
        );
        // tf32 keeps 10 bits of mantissa; .rna breaks ties away from zero.
        t.op(
            "r>r",
            "cvt.rna.tf32.f32 %x, %a; and.b32 %x, %x, 0xffffe000;",
            &[
                [0x3f80_1000, 0x3f80_2000],
                [0x3f80_0fff, 0x3f80_0000],
                [0xbf80_1000, 0xbf80_2000],
            ],
        );
    });
}

fn moves() {
    suite("moves", |t| {
        // The first element of a vector is the least significant.
        t.op(
            "hh>r",
            "mov.b32 %x, {%a, %b};",
            &[[0x1111, 0x2222, 0x2222_1111]],
        );
        t.op(
            "r>hh",
            "mov.b32 {%x, %y}, %a;",
            &[[0x2222_1111, 0x1111, 0x2222]],
        );
        t.op("rr>d", "mov.b64 %x, {%a, %b};", &[[1, 2, 0x2_0000_0001]]);
        t.op("d>rr", "mov.b64 {%x, %y}, %a;", &[[0x2_0000_0001, 1, 2]]);
        t.op(
            "d>hhhh",
            "mov.b64 {%x, %y, %z, %w}, %a;",
            &[[0x4444_3333_2222_1111, 0x1111, 0x2222, 0x3333, 0x4444]],
        );
        t.op(
            "hhhh>d",
            "mov.b64 %x, {%a, %b, %c, %d};",
            &[[1, 2, 3, 4, 0x0004_0003_0002_0001]],
        );
        t.op("r>h", "mov.b32 {_, %x}, %a;", &[[0x2222_1111, 0x2222]]);
        t.op("p>p", "mov.pred %x, %a;", &[[0, 0], [1, 1]]);
        t.op(
            "r>rr",
            "mov.f32 %x, 0f3FC00000; mov.u32 %y, 0b1011;",
            &[[0, f(1.5), 11]],
        );
        t.op("r>d", "mov.f64 %x, 0d3FF8000000000000;", &[[0, d(1.5)]]);
        t.op(
            "r>rr",
            "mov.s32 %x, -7; mov.u32 %y, 0x7fU;",
            &[[0, n(-7), 0x7f]],
        );
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        float_to_integer,
        integer_to_float,
        integer_to_integer,
        float_to_float,
        moves
    ]
}
