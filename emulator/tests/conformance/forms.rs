//! Forms of instructions that the other tables leave out: `coverage` would miss them.

use crate::harness::{d, f, kernel, n, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::FaultKind;

fn integers() {
    suite("other forms of integers", |t| {
        t.op(
            "hh>hh",
            "min.u16 %x, %a, %b; max.s16 %y, %a, %b;",
            &[[0xffff, 1, 1, 1], [0x8000, 0x7fff, 0x7fff, 0x7fff]],
        );
        t.op(
            "hh>hh",
            "add.u16 %x, %a, %b; sub.s16 %y, %b, %a;",
            &[[0xffff, 1, 0, 2]],
        );
        t.op("hhh>h", "sad.s16 %x, %a, %b, %c;", &[[n(-3), 4, 10, 17]]);
        t.op(
            "ddd>d",
            "sad.u64 %x, %a, %b, %c;",
            &[[1, 4, 10, 13], [4, 1, 10, 13]],
        );
        // The ISA's examples, then `offset` 0 and a bit that is not there.
        t.op(
            "rrr>r",
            "fns.b32 %x, %a, %b, %c;",
            &[
                [0xaaaa_aaaa, 3, 1, 3],
                [0xaaaa_aaaa, 3, n(-1), 3],
                [0xaaaa_aaaa, 2, 1, 3],
                [0xaaaa_aaaa, 2, n(-1), 1],
                [0xaaaa_aaaa, 3, 0, 3],
                [0xaaaa_aaaa, 2, 0, 0xffff_ffff],
                [0xaaaa_aaaa, 29, 3, 0xffff_ffff],
            ],
        );
        t.op("hr>h", "shr.b16 %x, %a, %b;", &[[0x8000, 3, 0x1000]]);
        t.op("hh>p", "setp.eq.b16 %x, %a, %b;", &[[7, 7, 1], [7, 8, 0]]);
        t.op(
            "dd>p",
            "setp.ne.b64 %x, %a, %b;",
            &[[1 << 40, 0, 1], [5, 5, 0]],
        );
        t.op(
            "rr>r",
            "set.lt.f32.s32 %x, %a, %b;",
            &[[n(-1), 0, f(1.0)], [1, 0, 0]],
        );
    });
}

/// Products of all types, their halves, and what is added to them.
fn products() {
    const MINUS: u64 = 0xffff_ffff;
    suite("other forms of products", |t| {
        t.op(
            "hh>h",
            "mul.lo.s16 %x, %a, %b;",
            &[[n(-3), 5, n(-15)], [0x4000, 4, 0]],
        );
        t.op(
            "dd>d",
            "mul.lo.u64 %x, %a, %b;",
            &[[1 << 40, 1 << 23, 1 << 63], [u64::MAX, 3, n(-3)]],
        );
        t.op(
            "hhr>r",
            "mad.wide.u16 %x, %a, %b, %c;",
            &[[0xffff, 0xffff, 1, 0xfffe_0002]],
        );
        t.op(
            "hhr>r",
            "mad.wide.s16 %x, %a, %b, %c;",
            &[[0xffff, 5, 1, n(-4)]],
        );
        t.op("hhh>h", "mad.lo.u16 %x, %a, %b, %c;", &[[0xffff, 2, 3, 1]]);
        t.op(
            "rrr>r",
            "mad.lo.s32 %x, %a, %b, %c;",
            &[[n(-7), 3, 1, n(-20)]],
        );
        t.op(
            "ddd>d",
            "mad.lo.s64 %x, %a, %b, %c;",
            &[[n(-7), 3, 1, n(-20)]],
        );
        t.op(
            "ddd>d",
            "mad.hi.u64 %x, %a, %b, %c;",
            &[[u64::MAX, u64::MAX, 5, 3]],
        );
        // Lower and upper half of 48 bits of product: 0xfffffe000001, and -1.
        t.op(
            "rrr>rr",
            "mad24.lo.u32 %x, %a, %b, %c; mad24.hi.u32 %y, %a, %b, %c;",
            &[[0xff_ffff, 0x1ff_ffff, 4, 0xfe00_0005, 0xffff_fe04]],
        );
        t.op(
            "rrr>rr",
            "mad24.hi.s32 %x, %a, %b, %c; mad24.hi.sat.s32 %y, %a, %b, %c;",
            &[
                [0xff_ffff, 1, 5, 4, 4],
                [0x7f_ffff, 0x7f_ffff, 0x7fff_ffff, 0xbfff_feff, 0x7fff_ffff],
            ],
        );
    });
    suite("carries of all types", |t| {
        t.op(
            "dd>dd",
            "add.cc.u64 %x, %a, %b; addc.cc.u64 %y, %b, 5;",
            &[[u64::MAX, 1, 0, 7], [1, 1, 2, 6]],
        );
        t.op(
            "dd>dd",
            "sub.cc.u64 %x, %a, %b; subc.cc.u64 %y, %b, 0;",
            &[[0, 1, u64::MAX, 0], [5, 1, 4, 1]],
        );
        t.op(
            "dd>dd",
            "sub.cc.u64 %x, %a, %b; subc.u64 %y, %b, 0;",
            &[[0, 1, u64::MAX, 0]],
        );
        t.op(
            "rr>rr",
            "add.cc.u32 %x, %a, %b; addc.s32 %y, %b, 5;",
            &[[MINUS, 1, 0, 7]],
        );
        t.op(
            "rr>rr",
            "sub.cc.u32 %x, %a, %b; subc.s32 %y, %b, 0;",
            &[[0, 1, MINUS, 0]],
        );
        let chain = |ty: &str| {
            format!(
                "mad.lo.cc.{ty} %x, %a, %b, %c; madc.lo.cc.{ty} %y, %a, %b, %c;
                madc.hi.cc.{ty} %z, %a, %b, %c; mad.hi.cc.{ty} %w, %a, %b, %c;"
            )
        };
        // The product is 1 below, and above 0xfffffffe without signs, 0 with them.
        t.op(
            "rrr>rrrr",
            &chain("u32"),
            &[[MINUS, MINUS, MINUS, 0, 1, 0xffff_fffe, 0xffff_fffd]],
        );
        t.op(
            "rrr>rrrr",
            &chain("s32"),
            &[[MINUS, MINUS, MINUS, 0, 1, 0, MINUS]],
        );
    });
}

/// What is not a number of the format is rounded as the mode says: to nearest, to zero, down and up.
fn double_precision() {
    suite("rounding of f64", |t| {
        let (one, tiny) = (d(1.0), d(f64::powi(2.0, -60)));
        let (above, below) = (one + 1, one - 1);
        let near_one = d(1.0 + f64::powi(2.0, -30));
        let square = d(1.0 + f64::powi(2.0, -29));
        let third = 0x3fd5_5555_5555_5555;
        let root = 0x3ff6_a09e_667f_3bcc;
        for (mode, sum, difference, product, quotient, negative, root) in [
            ("rn", one, one, square, third, third, root + 1),
            ("rz", one, below, square, third, third, root),
            ("rm", one, below, square, third, third + 1, root),
            ("rp", above, one, square + 1, third + 1, third, root + 1),
        ] {
            let two = |name: &str| format!("{name}.{mode}.f64 %x, %a, %b;");
            t.op("dd>d", &two("add"), &[[one, tiny, sum]]);
            t.op("dd>d", &two("sub"), &[[one, tiny, difference]]);
            t.op("dd>d", &two("mul"), &[[near_one, near_one, product]]);
            let fma = format!("fma.{mode}.f64 %x, %a, %b, %c;");
            t.op("ddd>d", &fma, &[[one, one, tiny, sum]]);
            let minus = 1 << 63;
            let rows = [[one, d(3.0), quotient], [one, d(-3.0), negative | minus]];
            t.op("dd>d", &two("div"), &rows);
            let rows = [[d(3.0), quotient], [d(-3.0), negative | minus]];
            t.op("d>d", &format!("rcp.{mode}.f64 %x, %a;"), &rows);
            t.op(
                "d>d",
                &format!("sqrt.{mode}.f64 %x, %a;"),
                &[[d(2.0), root]],
            );
        }
        t.op(
            "d>p",
            "testp.finite.f64 %x, %a;",
            &[[one, 1], [d(f64::INFINITY), 0]],
        );
    });
}

/// The upper word alone is computed; special values are those of the ISA's tables.
fn gross_approximations() {
    suite("approximations of f64", |t| {
        let minus = 1u64 << 63;
        let (inf, nan) = (d(f64::INFINITY), 0x7fff_ffff_0000_0000);
        t.op(
            "d>d",
            "rcp.approx.ftz.f64 %x, %a;",
            &[
                [d(4.0), d(0.25)],
                [inf | minus, minus],
                [minus | 1, inf | minus],
                [minus, inf | minus],
                [0, inf],
                [1, inf],
                [inf, 0],
                [d(f64::NAN), nan],
                [d(1e308), 0],
            ],
        );
        t.op(
            "d>d",
            "rsqrt.approx.ftz.f64 %x, %a;",
            &[
                [d(4.0), d(0.5)],
                [inf | minus, nan],
                [minus | 1, inf | minus],
                [minus, inf | minus],
                [0, inf],
                [1, inf],
                [inf, 0],
                [d(-1.0), nan],
                [d(f64::NAN), nan],
            ],
        );
        for (code, exact) in [
            ("rcp.approx.ftz.f64 %x, %a;", 1.0 / 3.0),
            ("rsqrt.approx.ftz.f64 %x, %a;", 1.0 / f64::sqrt(3.0)),
        ] {
            t.judge("d>d", code, &[[d(3.0)]], |_, got| {
                let error = f64::from_bits(got[0]) / exact - 1.0;
                let right = got[0] as u32 == 0 && error.abs() < f64::powi(2.0, -20);
                (!right).then(|| format!("error {error}"))
            });
        }
        t.op(
            "d>d",
            "rsqrt.approx.f64 %x, %a;",
            &[[d(4.0), d(0.5)], [0, inf]],
        );
    });
}

fn halves() {
    suite("other forms of halves", |t| {
        t.op(
            "hh>h",
            "sub.ftz.f16 %x, %a, %b;",
            &[[1, 0, 0], [0x3c00, 0x3800, 0x3800]],
        );
        t.op(
            "hh>h",
            "sub.sat.f16 %x, %a, %b;",
            &[[0x4000, 0x3800, 0x3c00], [0x3800, 0x3c00, 0]],
        );
        t.op(
            "hhh>h",
            "fma.rn.ftz.f16 %x, %a, %b, %c;",
            &[[1, 0x3c00, 0, 0]],
        );
        t.op(
            "h>hh",
            "abs.bf16 %x, %a; neg.bf16 %y, %a;",
            &[[0xbf80, 0x3f80, 0x3f80]],
        );
    });
}

fn memory() {
    suite("other forms of memory accesses", |t| {
        for scope in ["cta", "cluster", "gpu", "sys"] {
            let code = format!(
                "add.u32 %r0, %a, 1; st.relaxed.{scope}.global.u32 [%in], %r0; ld.relaxed.{scope}.global.u32 %x, [%in];"
            );
            t.op("r>r", &code, &[[7, 8]]);
            // Fences change no values; what they order is in the tests of races.
            for order in ["sc", "acq_rel"] {
                let code = format!("fence.{order}.{scope}; mov.u32 %x, %a;");
                t.op("r>r", &code, &[[7, 7]]);
            }
        }
        for order in ["relaxed", "acquire", "release", "acq_rel"] {
            let code = format!(
                "atom.{order}.gpu.global.add.u32 %x, [%in], 5; ld.relaxed.gpu.global.u32 %y, [%in];"
            );
            t.op("r>rr", &code, &[[7, 7, 12]]);
        }
        let code = "add.u32 %r0, %a, 1; st.weak.global.u32 [%in], %r0; ldu.global.u32 %x, [%in];";
        t.op("r>r", code, &[[7, 8]]);
        for hint in [
            "prefetch.global.L1 [%in];",
            "prefetch.global.L2 [%in];",
            "prefetchu.L1 [%in];",
            "applypriority.global.L2::evict_normal [%in], 128;",
            "membar.gl;",
            "membar.cta;",
            "membar.sys;",
            "fence.proxy.alias;",
            "pmevent 3;",
            "pmevent.mask 5;",
        ] {
            let code = format!("{hint} ld.global.u32 %x, [%in];");
            t.op("r>r", &code, &[[7, 7]]);
        }
        // What is discarded may be anything until it is written again.
        let code = "discard.global.L2 [%in], 128; st.global.u32 [%in], 9; ld.global.u32 %x, [%in];";
        t.op("r>r", code, &[[7, 9]]);
        // A parameter of the kernel has a generic address too.
        let body = "mov.u64 %rd0, p_in; cvta.param.u64 %rd1, %rd0;
            isspacep.param %p, %rd1; isspacep.global %q, %rd1;
            selp.u64 %rd2, 1, 0, %p; selp.u64 %rd3, 1, 0, %q;
            st.global.u64 [%out], %rd2; st.global.u64 [%out+8], %rd3;";
        let got = kernel("", body, 1, &[0], 2).expect("runs");
        t.same("isspacep.param", &got, &[1, 0]);
    });
}

fn breakpoints() {
    suite("brkpt", |t| {
        let is = |k: &FaultKind| matches!(k, FaultKind::Trap(_));
        t.fault("brkpt", &text("", "brkpt; // BAD"), 32, &[0], is);
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        integers,
        products,
        double_precision,
        gross_approximations,
        halves,
        memory,
        breakpoints
    ]
}
