//! ISA: Logic and Shift Instructions, Comparison and Selection Instructions, prmt.

use crate::harness::{Rng, d, f, n, suite};
use libtest_mimic::Trial;

const ALL: u64 = 0xffff_ffff;
const NAN: u64 = 0x7fc0_0000;

fn bitwise() {
    suite("bitwise", |t| {
        t.op(
            "rr>rrr",
            "and.b32 %x, %a, %b; or.b32 %y, %a, %b; xor.b32 %z, %a, %b;",
            &[[
                0xff00_ff00,
                0x0ff0_0ff0,
                0x0f00_0f00,
                0xfff0_fff0,
                0xf0f0_f0f0,
            ]],
        );
        t.op(
            "dd>ddd",
            "and.b64 %x, %a, %b; or.b64 %y, %a, %b; xor.b64 %z, %a, %b;",
            &[[
                0xff << 56 | 1,
                0x0f << 56 | 3,
                0x0f << 56 | 1,
                0xff << 56 | 3,
                0xf0 << 56 | 2,
            ]],
        );
        t.op(
            "hh>hhh",
            "and.b16 %x, %a, %b; or.b16 %y, %a, %b; xor.b16 %z, %a, %b;",
            &[[0xff00, 0x0ff0, 0x0f00, 0xfff0, 0xf0f0]],
        );
        t.op(
            "pp>ppp",
            "and.pred %x, %a, %b; or.pred %y, %a, %b; xor.pred %z, %a, %b;",
            &[
                [0, 0, 0, 0, 0],
                [0, 1, 0, 1, 1],
                [1, 0, 0, 1, 1],
                [1, 1, 1, 1, 0],
            ],
        );
        t.op(
            "r>rr",
            "not.b32 %x, %a; cnot.b32 %y, %a;",
            &[[0, ALL, 1], [5, n(-6), 0]],
        );
        t.op(
            "d>dd",
            "not.b64 %x, %a; cnot.b64 %y, %a;",
            &[[0, u64::MAX, 1], [1 << 40, !(1 << 40), 0]],
        );
        t.op(
            "h>hh",
            "not.b16 %x, %a; cnot.b16 %y, %a;",
            &[[0, 0xffff, 1], [0xffff, 0, 0]],
        );
        t.op("p>p", "not.pred %x, %a;", &[[0, 1], [1, 0]]);
        // lop3: immLut is the function applied to 0xF0, 0xCC and 0xAA: for every one of the
        // 256, the bits of the inputs index it.
        let mut rng = Rng(4);
        for lut in 0..256u64 {
            let row = [rng.next() & ALL, rng.next() & ALL, rng.next() & ALL];
            t.map(
                "rrr>r",
                &format!("lop3.b32 %x, %a, %b, %c, {lut};"),
                &[row],
                |[a, b, c]| {
                    (0..32).fold(0, |x, i| {
                        let at = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
                        x | (lut >> at & 1) << i
                    })
                },
            );
        }
        t.op(
            "rrr>r",
            "lop3.b32 %x, %a, %b, %c, 0x80;",
            &[[0xff, 0x3c, 0xf0, 0x30]],
        );
    });
}

fn shifts() {
    suite("shifts", |t| {
        // Amounts above the width are clamped to it.
        t.op(
            "rr>rrr",
            "shl.b32 %x, %a, %b; shr.u32 %y, %a, %b; shr.s32 %z, %a, %b;",
            &[
                [0x8000_0001, 0, 0x8000_0001, 0x8000_0001, 0x8000_0001],
                [0x8000_0001, 1, 2, 0x4000_0000, 0xc000_0000],
                [0x8000_0001, 31, 0x8000_0000, 1, ALL],
                [0x8000_0001, 32, 0, 0, ALL],
                [0x8000_0001, 33, 0, 0, ALL],
                [0x8000_0001, ALL, 0, 0, ALL],
                [0x7000_0001, 64, 0, 0, 0],
            ],
        );
        t.op(
            "hr>hhh",
            "shl.b16 %x, %a, %b; shr.u16 %y, %a, %b; shr.s16 %z, %a, %b;",
            &[
                [0x8001, 1, 2, 0x4000, 0xc000],
                [0x8001, 16, 0, 0, 0xffff],
                [0x8001, 100, 0, 0, 0xffff],
            ],
        );
        t.op(
            "dr>ddd",
            "shl.b64 %x, %a, %b; shr.u64 %y, %a, %b; shr.s64 %z, %a, %b;",
            &[
                [1 << 63 | 1, 1, 2, 1 << 62, 3 << 62],
                [1 << 63 | 1, 64, 0, 0, u64::MAX],
                [1 << 63 | 1, 70, 0, 0, u64::MAX],
                [1 << 63 | 1, 63, 1 << 63, 1, u64::MAX],
            ],
        );
        t.op("r>r", "shr.b32 %x, %a, 4;", &[[0xffff_0000, 0x0fff_f000]]);
        // shf: {b, a} shifted; .clamp limits the amount to 32, .wrap takes it modulo 32.
        let (a, b) = (0x89ab_cdef, 0x0123_4567);
        t.op(
            "rrr>rr",
            "shf.l.clamp.b32 %x, %a, %b, %c; shf.r.clamp.b32 %y, %a, %b, %c;",
            &[
                [a, b, 0, b, a],
                [a, b, 8, 0x2345_6789, 0x6789_abcd],
                [a, b, 32, a, b],
                [a, b, 40, a, b],
            ],
        );
        t.op(
            "rrr>rr",
            "shf.l.wrap.b32 %x, %a, %b, %c; shf.r.wrap.b32 %y, %a, %b, %c;",
            &[
                [a, b, 0, b, a],
                [a, b, 8, 0x2345_6789, 0x6789_abcd],
                [a, b, 32, b, a],
                [a, b, 40, 0x2345_6789, 0x6789_abcd],
            ],
        );
    });
}

fn prmt() {
    suite("prmt", |t| {
        // Bytes 7..4 are b, 3..0 are a. Bit 3 of a selector replicates the byte's sign.
        let (a, b) = (0x8322_1100, 0x77e6_5544);
        t.op(
            "rrr>r",
            "prmt.b32 %x, %a, %b, %c;",
            &[
                [a, b, 0x3210, a],
                [a, b, 0x7654, b],
                [a, b, 0x0246, 0x0022_44e6],
                [a, b, 0xba98, 0xff00_0000],
                [a, b, 0xfedc, 0x00ff_0000],
                [a, b, 0x5410, 0x5544_1100],
            ],
        );
        // The modes' tables, four selectors each, of bytes 7 6 5 4 | 3 2 1 0.
        let modes: [(&str, [u64; 4]); 6] = [
            ("f4e", [0x0302_0100, 0x0403_0201, 0x0504_0302, 0x0605_0403]),
            ("b4e", [0x0506_0700, 0x0607_0001, 0x0700_0102, 0x0001_0203]),
            ("rc8", [0x0000_0000, 0x0101_0101, 0x0202_0202, 0x0303_0303]),
            ("ecl", [0x0302_0100, 0x0302_0101, 0x0302_0202, 0x0303_0303]),
            ("ecr", [0x0000_0000, 0x0101_0100, 0x0202_0100, 0x0302_0100]),
            ("rc16", [0x0100_0100, 0x0302_0302, 0x0100_0100, 0x0302_0302]),
        ];
        for (mode, want) in modes {
            let rows: Vec<[u64; 4]> = (0..8)
                .map(|i| [0x0302_0100, 0x0706_0504, i, want[i as usize % 4]])
                .collect();
            t.op("rrr>r", &format!("prmt.b32.{mode} %x, %a, %b, %c;"), &rows);
        }
    });
}

fn setp() {
    suite("setp", |t| {
        let rows = [
            (f(1.0), f(2.0)),
            (f(2.0), f(2.0)),
            (f(3.0), f(2.0)),
            (NAN, f(2.0)),
            (0, 0x8000_0000),
        ];
        // Ordered comparisons are false with a NaN and unordered ones true.
        let ops: [(&str, [u64; 5]); 14] = [
            ("eq", [0, 1, 0, 0, 1]),
            ("ne", [1, 0, 1, 0, 0]),
            ("lt", [1, 0, 0, 0, 0]),
            ("le", [1, 1, 0, 0, 1]),
            ("gt", [0, 0, 1, 0, 0]),
            ("ge", [0, 1, 1, 0, 1]),
            ("equ", [0, 1, 0, 1, 1]),
            ("neu", [1, 0, 1, 1, 0]),
            ("ltu", [1, 0, 0, 1, 0]),
            ("leu", [1, 1, 0, 1, 1]),
            ("gtu", [0, 0, 1, 1, 0]),
            ("geu", [0, 1, 1, 1, 1]),
            ("num", [1, 1, 1, 0, 1]),
            ("nan", [0, 0, 0, 1, 0]),
        ];
        for (op, want) in ops {
            let table: Vec<[u64; 3]> = rows.iter().zip(want).map(|(r, w)| [r.0, r.1, w]).collect();
            t.op("rr>p", &format!("setp.{op}.f32 %x, %a, %b;"), &table);
            // set: all ones or 1.0f.
            let table: Vec<[u64; 4]> = table
                .iter()
                .map(|r| [r[0], r[1], r[2] * ALL, r[2] * f(1.0)])
                .collect();
            t.op(
                "rr>rr",
                &format!("set.{op}.u32.f32 %x, %a, %b; set.{op}.f32.f32 %y, %a, %b;"),
                &table,
            );
            let table: Vec<[u64; 3]> = rows
                .iter()
                .zip(want)
                .map(|(r, w)| {
                    [
                        d(f64::from(f32::from_bits(r.0 as u32))),
                        d(f64::from(f32::from_bits(r.1 as u32))),
                        w,
                    ]
                })
                .collect();
            t.op("dd>p", &format!("setp.{op}.f64 %x, %a, %b;"), &table);
        }
        t.op(
            "rr>pp",
            "setp.eq.f32 %x, %a, %b; setp.eq.ftz.f32 %y, %a, %b;",
            &[[1, 2, 0, 1], [0x8000_0001, 0, 0, 1]],
        );
        // lo, ls, hi, hs are the unsigned names.
        let ints = [(1, ALL), (ALL, ALL), (ALL, 1)];
        let ops: [(&str, [u64; 3]); 14] = [
            ("lt.s32", [0, 0, 1]),
            ("le.s32", [0, 1, 1]),
            ("gt.s32", [1, 0, 0]),
            ("ge.s32", [1, 1, 0]),
            ("lt.u32", [1, 0, 0]),
            ("le.u32", [1, 1, 0]),
            ("gt.u32", [0, 0, 1]),
            ("ge.u32", [0, 1, 1]),
            ("lo.u32", [1, 0, 0]),
            ("ls.u32", [1, 1, 0]),
            ("hi.u32", [0, 0, 1]),
            ("hs.u32", [0, 1, 1]),
            ("eq.b32", [0, 1, 0]),
            ("ne.s32", [1, 0, 1]),
        ];
        for (op, want) in ops {
            let table: Vec<[u64; 3]> = ints.iter().zip(want).map(|(r, w)| [r.0, r.1, w]).collect();
            t.op("rr>p", &format!("setp.{op} %x, %a, %b;"), &table);
        }
        t.op(
            "hh>pp",
            "setp.lt.s16 %x, %a, %b; setp.lt.u16 %y, %a, %b;",
            &[[0xffff, 1, 1, 0]],
        );
        t.op(
            "dd>pp",
            "setp.lt.s64 %x, %a, %b; setp.lt.u64 %y, %a, %b;",
            &[[u64::MAX, 1, 1, 0], [1 << 32, 1, 0, 0]],
        );
        // p = cmp BoolOp c and q = !cmp BoolOp c; c may be negated.
        let truth = |f: fn(bool, bool) -> bool, negate: bool| -> Vec<[u64; 5]> {
            [(0, 0), (0, 1), (1, 0), (1, 1)]
                .map(|(cmp, c): (u64, u64)| {
                    let c2 = (c == 1) != negate;
                    [
                        5,
                        4 + cmp,
                        c,
                        f(cmp == 1, c2).into(),
                        f(cmp == 0, c2).into(),
                    ]
                })
                .to_vec()
        };
        t.op(
            "rrp>pp",
            "setp.eq.and.s32 %x|%y, %a, %b, %c;",
            &truth(|a, b| a && b, false),
        );
        t.op(
            "rrp>pp",
            "setp.eq.or.s32 %x|%y, %a, %b, %c;",
            &truth(|a, b| a || b, false),
        );
        t.op(
            "rrp>pp",
            "setp.eq.xor.s32 %x|%y, %a, %b, %c;",
            &truth(|a, b| a != b, false),
        );
        t.op(
            "rrp>pp",
            "setp.eq.and.s32 %x|%y, %a, %b, !%c;",
            &truth(|a, b| a && b, true),
        );
        t.op(
            "rrp>r",
            "set.eq.or.s32.s32 %x, %a, %b, %c;",
            &[[1, 1, 0, ALL], [1, 2, 0, 0], [1, 2, 1, ALL]],
        );
        // q is not the negation of p when a NaN is compared and combined: p = lt, q = !lt.
        t.op(
            "rr>pp",
            "setp.lt.f32 %x|%y, %a, %b;",
            &[[NAN, 0, 0, 1], [0, f(1.0), 1, 0]],
        );
    });
}

fn selection() {
    suite("selection", |t| {
        t.op(
            "rrp>r",
            "selp.b32 %x, %a, %b, %c;",
            &[[1, 2, 1, 1], [1, 2, 0, 2]],
        );
        t.op(
            "hhp>h",
            "selp.b16 %x, %a, %b, %c;",
            &[[1, 2, 1, 1], [1, 2, 0, 2]],
        );
        t.op(
            "ddp>d",
            "selp.f64 %x, %a, %b, %c;",
            &[[1 << 40, 2, 1, 1 << 40], [1, 2, 0, 2]],
        );
        // slct: a when c >= 0; a NaN selects b, -0.0 is equal to zero.
        t.op(
            "rrr>r",
            "slct.u32.s32 %x, %a, %b, %c;",
            &[[1, 2, 0, 1], [1, 2, 5, 1], [1, 2, ALL, 2]],
        );
        t.op(
            "rrr>r",
            "slct.f32.f32 %x, %a, %b, %c;",
            &[
                [1, 2, 0x8000_0000, 1],
                [1, 2, NAN, 2],
                [1, 2, f(-1.0), 2],
                [1, 2, f(1.0), 1],
                [1, 2, 0x8000_0001, 2],
            ],
        );
        t.op(
            "rrr>r",
            "slct.ftz.s32.f32 %x, %a, %b, %c;",
            &[[1, 2, 0x8000_0001, 1]],
        );
        t.op(
            "ddr>d",
            "slct.b64.s32 %x, %a, %b, %c;",
            &[[1, 2, ALL, 2], [1, 2, 0, 1]],
        );
    });
}

pub fn trials() -> Vec<Trial> {
    trials![bitwise, shifts, prmt, setp, selection]
}
