//! ISA: atom, red.

use crate::harness::{d, f, kernel, n, pair, suite};
use libtest_mimic::Trial;

const ALL: u64 = 0xffff_ffff;

fn operations() {
    suite("operations", |t| {
        // Row: memory, b, what atom returns (memory before), memory after.
        let ops: &[(&str, &str, &[[u64; 3]])] = &[
            ("and.b32", "r", &[[0xff, 0x3c, 0x3c]]),
            ("or.b32", "r", &[[0xf0, 0x3c, 0xfc]]),
            ("xor.b32", "r", &[[0xff, 0x3c, 0xc3]]),
            ("exch.b32", "r", &[[1, 2, 2]]),
            ("add.u32", "r", &[[ALL, 2, 1]]),
            ("add.s32", "r", &[[5, n(-7), n(-2)]]),
            // inc: (r >= b) ? 0 : r + 1; dec: (r == 0 || r > b) ? b : r - 1.
            (
                "inc.u32",
                "r",
                &[[3, 5, 4], [5, 5, 0], [9, 5, 0], [0, 0, 0]],
            ),
            (
                "dec.u32",
                "r",
                &[[3, 5, 2], [0, 5, 5], [9, 5, 5], [5, 5, 4]],
            ),
            ("min.s32", "r", &[[1, ALL, ALL], [ALL, 1, ALL]]),
            ("max.s32", "r", &[[1, ALL, 1], [ALL, 1, 1]]),
            ("min.u32", "r", &[[1, ALL, 1]]),
            ("max.u32", "r", &[[1, ALL, ALL]]),
            (
                "add.f32",
                "r",
                &[
                    [f(1.5), f(2.25), f(3.75)],
                    [f(16777216.0), f(1.0), f(16777216.0)],
                    [f(16777216.0), f(3.0), f(16777220.0)],
                ],
            ),
            (
                "add.noftz.f16x2",
                "r",
                &[
                    [
                        pair(0x3c00, 0x4000),
                        pair(0x3c00, 0x4200),
                        pair(0x4000, 0x4500),
                    ],
                    [pair(1, 0x7bff), pair(1, 0x7bff), pair(2, 0x7c00)],
                ],
            ),
            (
                "add.noftz.bf16x2",
                "r",
                &[
                    [
                        pair(0x3f80, 0x4000),
                        pair(0x3f80, 0x4040),
                        pair(0x4000, 0x40a0),
                    ],
                    [pair(0x3f80, 0), pair(0x3b80, 1), pair(0x3f80, 1)],
                ],
            ),
            ("and.b64", "d", &[[0xff << 40, 0x3c << 40, 0x3c << 40]]),
            ("or.b64", "d", &[[0xf0 << 40, 1, 0xf0 << 40 | 1]]),
            ("xor.b64", "d", &[[3 << 40, 1 << 40, 2 << 40]]),
            ("exch.b64", "d", &[[1 << 40, 2 << 40, 2 << 40]]),
            ("add.u64", "d", &[[u64::MAX, 2, 1], [ALL, 1, 1 << 32]]),
            ("min.s64", "d", &[[1, u64::MAX, u64::MAX]]),
            ("max.s64", "d", &[[1, u64::MAX, 1]]),
            ("min.u64", "d", &[[1, u64::MAX, 1]]),
            ("max.u64", "d", &[[1, u64::MAX, u64::MAX]]),
            ("add.f64", "d", &[[d(1.5), d(2.25), d(3.75)]]),
            ("add.noftz.f16", "h", &[[0x3c00, 0x4000, 0x4200]]),
            ("add.noftz.bf16", "h", &[[0x3f80, 0x4000, 0x4040]]),
        ];
        for (op, kind, rows) in ops {
            let bits = match *kind {
                "h" => "b16",
                "r" => "b32",
                _ => "b64",
            };
            let mask = [("h", 0xffff), ("r", ALL), ("d", u64::MAX)]
                .into_iter()
                .find(|m| m.0 == *kind)
                .expect("kind")
                .1;
            let table: Vec<[u64; 4]> = rows
                .iter()
                .map(|r| [r[0], r[1], r[0] & mask, r[2] & mask])
                .collect();
            // On global memory: the thread's own input word; on shared, explicit and generic.
            t.op(
                &format!("{kind}{kind}>{kind}{kind}"),
                &format!("atom.global.{op} %x, [%in], %b; ld.global.{bits} %y, [%in];"),
                &table,
            );
            let setup =
                format!("mov.u32 %r0, sm; mad.lo.u32 %r0, %t, 8, %r0; st.shared.{bits} [%r0], %a;");
            t.op(
                &format!("{kind}{kind}>{kind}{kind}"),
                &format!("{setup} atom.shared.{op} %x, [%r0], %b; ld.shared.{bits} %y, [%r0];"),
                &table,
            );
            let generic = "cvt.u64.u32 %rd0, %r0; cvta.shared.u64 %rd0, %rd0;";
            t.op(
                &format!("{kind}{kind}>{kind}{kind}"),
                &format!(
                    "{setup} {generic} atom.relaxed.cta.{op} %x, [%rd0], %b; ld.{bits} %y, [%rd0];"
                ),
                &table,
            );
            if !op.starts_with("exch") {
                let table: Vec<[u64; 3]> = table.iter().map(|r| [r[0], r[1], r[3]]).collect();
                t.op(
                    &format!("{kind}{kind}>{kind}"),
                    &format!("red.global.{op} [%in], %b; ld.global.{bits} %x, [%in];"),
                    &table,
                );
                t.op(
                    &format!("{kind}{kind}>{kind}"),
                    &format!("{setup} red.shared.{op} [%r0], %b; ld.shared.{bits} %x, [%r0];"),
                    &table,
                );
                t.op(
                    &format!("{kind}{kind}>{kind}"),
                    &format!("red.relaxed.gpu.global.{op} [%in], %b; ld.global.{bits} %x, [%in];"),
                    &table,
                );
            }
        }
        // cas: memory becomes c where it equals b.
        t.op(
            "rrr>rr",
            "atom.global.cas.b32 %x, [%in], %b, %c; ld.global.b32 %y, [%in];",
            &[[5, 5, 9, 5, 9], [5, 6, 9, 5, 5]],
        );
        t.op(
            "ddd>dd",
            "atom.global.cas.b64 %x, [%in], %b, %c; ld.global.b64 %y, [%in];",
            &[
                [5 << 40, 5 << 40, 9, 5 << 40, 9],
                [5 << 40, 5, 9, 5 << 40, 5 << 40],
            ],
        );
        t.op(
            "hhh>hh",
            "atom.global.cas.b16 %x, [%in], %b, %c; ld.global.b16 %y, [%in];",
            &[[5, 5, 9, 5, 9], [5, 6, 9, 5, 5]],
        );
        t.op(
            "rrr>rr",
            "atom.acq_rel.gpu.global.cas.b32 %x, [%in], %b, %c; ld.global.b32 %y, [%in];",
            &[[5, 5, 9, 5, 9]],
        );
        // "atom.add.f32 on global memory flushes subnormal inputs and results to
        // sign-preserving zero; on shared memory it supports subnormals."
        t.op(
            "rr>r",
            "atom.global.add.f32 %r0, [%in], %b; ld.global.b32 %x, [%in];",
            &[[1, 1, 0], [0x0080_0001, 0x8080_0000, 0]],
        );
        t.op(
            "rr>r",
            "st.shared.b32 [sm], %a; atom.shared.add.f32 %r0, [sm], %b; ld.shared.b32 %x, [sm];",
            &[[1, 1, 2]],
        );
    });
}

fn concurrent() {
    suite("concurrent", |t| {
        // Every value returned once: 96 threads draw tickets from one counter.
        let body = "
            setp.eq.u32 %p, %t, 0;
            @%p st.shared.u32 [sm], 0;
            bar.sync 0;
            atom.shared.add.u32 %r0, [sm], 1;
            mad.wide.u32 %rd0, %r0, 8, %out;
            st.global.u32 [%rd0], 1;
            atom.global.add.u64 %rd1, [%in], 3;
            atom.global.inc.u32 %r1, [%in+8], 9;
            red.global.max.u32 [%in+16], %t;
            bar.sync 0;
            @!%p ret;
            ld.global.u64 %rd1, [%in]; st.global.u64 [%out+768], %rd1;
            ld.global.u64 %rd1, [%in+8]; st.global.u64 [%out+776], %rd1;
            ld.global.u64 %rd1, [%in+16]; st.global.u64 [%out+784], %rd1;";
        let got = kernel("", body, 96, &[0, 0, 0], 99).expect("runs");
        // 96 increments that wrap above 9 leave 96 mod 10.
        let want: Vec<u64> = [1; 96].into_iter().chain([288, 6, 95]).collect();
        t.same("tickets", &got, &want);
    });
}

pub fn trials() -> Vec<Trial> {
    trials![operations, concurrent]
}
