//! ISA: Predicated Execution, Control Flow Instructions, Function Declarations and Definitions,
//! Comparison and Selection Instructions, bar, bar.warp.sync, activemask, nanosleep, trap.

use crate::harness::{HEADER, Rng, f, launch, n, parse, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Params};
use std::fmt::Write;

/// Stores `%r10` at the thread's output word.
const OUT: &str = "mad.wide.u32 %rd20, %t, 8, %out; st.global.u32 [%rd20], %r10;\n";

fn predicated_registers() {
    // With a = 12, b = 5 and x = 77: an instruction, and x if it is executed.
    let rows = [
        ("add.u32 %x, %a, %b;", 17),
        ("sub.s32 %x, %a, %b;", 7),
        ("add.cc.u32 %x, %a, %b;", 17),
        ("mul.lo.u32 %x, %a, %b;", 60),
        ("mul.hi.u32 %x, %a, %b;", 0),
        ("mul24.lo.u32 %x, %a, %b;", 60),
        ("mad.lo.u32 %x, %a, %b, %b;", 65),
        ("div.u32 %x, %a, %b;", 2),
        ("rem.s32 %x, %a, %b;", 2),
        ("sad.u32 %x, %a, %b, %b;", 12),
        ("abs.s32 %x, %a;", 12),
        ("neg.s32 %x, %a;", n(-12)),
        ("min.s32 %x, %a, %b;", 5),
        ("max.u32 %x, %a, %b;", 12),
        ("popc.b32 %x, %a;", 2),
        ("clz.b32 %x, %a;", 28),
        ("bfind.u32 %x, %a;", 3),
        ("brev.b32 %x, %a;", 0x3000_0000),
        ("bfe.u32 %x, %a, 2, 2;", 3),
        ("bfi.b32 %x, %b, %a, 4, 3;", 0x5c),
        ("dp4a.u32.u32 %x, %a, %b, %b;", 65),
        ("and.b32 %x, %a, %b;", 4),
        ("or.b32 %x, %a, %b;", 13),
        ("xor.b32 %x, %a, %b;", 9),
        ("not.b32 %x, %a;", !12),
        ("lop3.b32 %x, %a, %b, 0, 0x3c;", 9),
        ("shl.b32 %x, %a, %b;", 384),
        ("shr.u32 %x, %a, 2;", 3),
        ("shf.l.wrap.b32 %x, %a, %b, 4;", 80),
        ("prmt.b32 %x, %a, %b, 4;", 0x0c0c_0c05),
        ("set.gt.u32.u32 %x, %a, %b;", 0xffff_ffff),
        ("slct.u32.s32 %x, %a, %b, %b;", 12),
        ("selp.u32 %x, %a, %b, %q;", 12),
        ("mov.u32 %x, %a;", 12),
        ("mov.u32 %x, %nwarpid;", 1),
        ("mov.b32 {%h0, %h1}, %a; mov.b32 %x, {%h0, %h0};", 0xc_000c),
        ("cvt.rn.f32.u32 %x, %a;", f(12.0)),
        ("cvt.u32.u8 %x, %a;", 12),
        ("add.f32 %x, 0f3FC00000, 0f40000000;", f(3.5)),
        ("fma.rn.f32 %x, 0f3FC00000, 0f40000000, 0f3F800000;", f(4.0)),
        ("sqrt.rn.f32 %x, 0f40800000;", f(2.0)),
        ("rcp.rn.f32 %x, 0f40800000;", f(0.25)),
        ("ex2.approx.f32 %x, 0f40400000;", f(8.0)),
        ("add.f16x2 %x, 0x3c003c00, 0x3c004000;", 0x4000_4200),
        ("ld.global.u32 %x, [%in];", 12),
        ("ld.const.u32 %x, [c];", 31),
        ("ld.global.v2.u32 {%x, %r1}, [%in+8];", 5),
        ("ld.shared.u32 %x, [sm];", 9),
        ("ld.local.u32 %x, [loc];", 8),
        ("ld.u32 %x, [%rd9];", 9),
        ("atom.shared.add.u32 %x, [sm+4], 0;", 6),
        ("atom.shared.cas.b32 %x, [sm+4], 1, 2;", 6),
    ];
    suite("predicated registers", |t| {
        for (instruction, x) in rows {
            for (guard, on) in [("%c", 1), ("!%c", 0)] {
                // Every instruction of a row under the guard.
                let guarded: String = instruction
                    .split_inclusive(';')
                    .map(|i| format!("@{guard} {i}\n"))
                    .collect();
                let table: Vec<[u64; 4]> = (0..8)
                    .map(|i| [12, 5, i & 1, if i & 1 == on { x } else { 77 }])
                    .collect();
                let got = crate::harness::table(
                    "rrp>r",
                    ".const .u32 c = 31;",
                    &format!(
                        ".local .align 4 .b8 loc[4]; st.local.u32 [loc], 8;
                        setp.eq.u32 %p, %t, 0; @%p st.shared.v2.u32 [sm], {{9, 6}}; bar.sync 0;
                        mov.u64 %rd9, sm; cvta.shared.u64 %rd9, %rd9;
                        mov.u32 %x, 77; mov.b16 %h0, 77; setp.eq.u32 %q, 0, 0;\n{guarded}"
                    ),
                    &table,
                );
                match got {
                    Ok(got) => t.same(
                        &format!("@{guard} {instruction}"),
                        &got.concat(),
                        &table.iter().map(|r| r[3] & 0xffff_ffff).collect::<Vec<_>>(),
                    ),
                    Err(e) => panic!("{instruction}: {e}"),
                }
            }
        }
        // 64 bits and predicates as destinations.
        t.op(
            "rrp>d",
            "mov.u64 %x, 7; @%c mul.wide.u32 %x, %a, %b;",
            &[[12, 5, 0, 7], [12, 5, 1, 60]],
        );
        t.op(
            "rrp>d",
            "mov.u64 %x, 7; @!%c cvt.rn.f64.u32 %x, %a;",
            &[[12, 5, 0, 12f64.to_bits()], [12, 5, 1, 7]],
        );
        t.op(
            "rrpr>dd",
            "mov.u64 %x, 7; mov.u64 %y, 8; @%c ld.global.v2.u64 {%x, %y}, [%in];",
            &[[12, 5, 0, 0, 7, 8], [12, 5, 1, 0, 12, 5]],
        );
        t.op(
            "rrp>p",
            "setp.eq.u32 %x, 0, 0; @%c setp.lt.u32 %x, %a, %b;",
            &[[12, 5, 0, 1], [12, 5, 1, 0]],
        );
        // The destination may be the guard itself.
        t.op(
            "rrp>p",
            "mov.pred %x, %c; @%x setp.lt.u32 %x, %a, %b;",
            &[[12, 5, 0, 0], [12, 5, 1, 0], [5, 12, 1, 1]],
        );
    });
}

fn predicated_stores() {
    // A store of %t + 1 where a word of 100 lies at [%r40] in shared, [%rd0] in global and [loc]
    // in local memory, and the word after it.
    let rows = [
        ("st.shared.u32 [%r40], %r0;", 0x0, 0xffff_ffff, 0),
        ("st.shared.u8 [%r40+1], %r0;", 100, 0xff, 8),
        ("st.global.u32 [%rd0], %r0;", 0, 0xffff_ffff, 0),
        ("st.global.u16 [%rd0+2], %r0;", 100, 0xffff, 16),
        ("st.global.v2.u32 [%rd0], {%r0, %r0};", 0, 0xffff_ffff, 0),
        ("st.local.u32 [loc], %r0;", 0, 0xffff_ffff, 0),
        ("st.u32 [%rd1], %r0;", 0, 0xffff_ffff, 0),
        ("red.shared.add.u32 [%r40], %r0;", 100, u64::MAX, 0),
        ("red.global.add.u32 [%rd0], %r0;", 100, u64::MAX, 0),
        ("atom.shared.exch.b32 %r9, [%r40], %r0;", 0, u64::MAX, 0),
        ("atom.global.add.u32 %r9, [%rd0], %r0;", 100, u64::MAX, 0),
        (
            "cp.async.ca.shared.global [%r40], [%rd2], 4;",
            0,
            0xffff_ffff,
            0,
        ),
    ];
    suite("predicated stores", |t| {
        for (store, kept, mask, shift) in rows {
            for (guard, third) in [("%p", true), ("!%p", false)] {
                let at = if store.contains("shared") {
                    "ld.shared.u32 %r10, [%r40];"
                } else if store.contains("local") {
                    "ld.local.u32 %r10, [loc];"
                } else {
                    "ld.global.u32 %r10, [%rd0];"
                };
                let body = format!(
                    ".local .align 8 .b8 loc[8];
                    mov.u32 %r40, sm; mad.lo.u32 %r40, %t, 8, %r40; mad.wide.u32 %rd0, %t, 8, %in;
                    add.u64 %rd0, %rd0, 1024; mad.wide.u32 %rd2, %t, 8, %in; cvta.global.u64 %rd1, %rd0;
                    st.shared.u32 [%r40], 100; st.global.u32 [%rd0], 100; st.local.u32 [loc], 100;
                    add.u32 %r0, %t, 1; st.global.u32 [%rd2], %r0;
                    rem.u32 %r1, %t, 3; setp.eq.u32 %p, %r1, 0;
                    @{guard} {store}
                    cp.async.wait_all; {at} {OUT}"
                );
                let want: Vec<u64> = (0..64u64)
                    .map(|i| match (i % 3 == 0) == third {
                        true if kept == 100 && mask == u64::MAX => 101 + i,
                        true => kept & !(mask << shift) | (i + 1 & mask) << shift,
                        false => 100,
                    })
                    .collect();
                t.runs(
                    &format!("@{guard} {store}"),
                    &text("", &body),
                    64,
                    &[0; 256],
                    &want,
                );
            }
        }
        // A predicated-off access is no access, wherever it points.
        for access in [
            "ld.global.u32 %r9, [%rd9];",
            "st.global.u32 [%rd9], 1;",
            "ld.shared.u32 %r9, [%rd9];",
            "st.shared.v4.u32 [%rd9], {%t, %t, %t, %t};",
            "atom.global.add.u32 %r9, [%rd9], 1;",
            "red.shared.add.u32 [%rd9], 1;",
            "cp.async.cg.shared.global [%rd9], [%rd9], 16;",
            "mbarrier.arrive.shared.b64 %rd8, [%rd9];",
            "trap;",
            "exit;",
            "ret;",
            "bra END;",
        ] {
            let body = format!(
                "mov.u64 %rd9, 3; setp.eq.u32 %p, %t, 1000; setp.ne.u32 %q, %t, 1000; mov.u32 %r10, 5;
                @%p {access}\n@!%q {access}\n{OUT} END:"
            );
            t.runs(access, &text("", &body), 32, &[0], &[5; 32]);
        }
    });
}

fn predicated_warp_instructions() {
    suite("predicated warp instructions", |t| {
        // Lanes whose predicate is off take no part.
        let rows: [(&str, &dyn Fn(u64) -> u64); 6] = [
            ("activemask.b32 %r10;", &|_| 0x2492_4924),
            ("vote.sync.ballot.b32 %r10, %p2, 0x24924924;", &|_| {
                0x2000_4104
            }),
            ("redux.sync.add.u32 %r10, %t, 0x24924924;", &|_| 155),
            ("shfl.sync.idx.b32 %r10, %t, 5, 31, 0x24924924;", &|_| 5),
            ("match.any.sync.b32 %r10, %r5, 0x24924924;", &|i| {
                if i % 2 == 0 { 0x0410_4104 } else { 0x2082_0820 }
            }),
            ("bar.warp.sync 0x24924924; mov.u32 %r10, 3;", &|_| 3),
        ];
        for (code, want) in rows {
            // Lanes 2, 5, ..., 29; their sum is 155.
            let guarded: String = code
                .split_inclusive(';')
                .map(|i| format!("@%p {i}\n"))
                .collect();
            let body = format!(
                "rem.u32 %r0, %t, 3; setp.eq.u32 %p, %r0, 2; mov.u32 %r10, 1000; and.b32 %r5, %t, 1;
                mov.u32 %r6, 0x30004104; shr.u32 %r7, %r6, %t; and.b32 %r7, %r7, 1; setp.eq.u32 %p2, %r7, 1;
                {guarded} {OUT}"
            );
            let want: Vec<u64> = (0..32)
                .map(|i| if i % 3 == 2 { want(i) } else { 1000 })
                .collect();
            t.runs(code, &text("", &body), 32, &[0], &want);
        }
    });
}

fn setp_combinations() {
    suite("setp with boolean operators", |t| {
        // p = (a < b) op c and q = !(a < b) op c.
        let rows = |f: &dyn Fn(bool, bool) -> bool, negated: bool| -> Vec<[u64; 5]> {
            let mut rows = Vec::new();
            for (a, b) in [(1, 2), (2, 1), (2, 2)] {
                for c in [false, true] {
                    let lt = a < b;
                    let k = c != negated;
                    rows.push([
                        a,
                        b,
                        u64::from(c),
                        u64::from(f(lt, k)),
                        u64::from(f(!lt, k)),
                    ]);
                }
            }
            rows
        };
        type Boolean<'a> = &'a dyn Fn(bool, bool) -> bool;
        let ops: [(&str, Boolean); 3] = [
            ("and", &|x, y| x && y),
            ("or", &|x, y| x || y),
            ("xor", &|x, y| x != y),
        ];
        for (op, f) in ops {
            for (c, negated) in [("%c", false), ("!%c", true)] {
                for (ty, sig) in [("u32", "rrp>pp"), ("s64", "ddp>pp"), ("u16", "hhp>pp")] {
                    t.op(
                        sig,
                        &format!("setp.lt.{op}.{ty} %x|%y, %a, %b, {c};"),
                        &rows(f, negated),
                    );
                }
                let single: Vec<[u64; 4]> = rows(f, negated)
                    .iter()
                    .map(|r| [r[0], r[1], r[2], r[3]])
                    .collect();
                t.op(
                    "rrp>p",
                    &format!("setp.lt.{op}.s32 %x, %a, %b, {c};"),
                    &single,
                );
                // set with a boolean operator.
                let masks: Vec<[u64; 4]> = single
                    .iter()
                    .map(|r| [r[0], r[1], r[2], r[3] * 0xffff_ffff])
                    .collect();
                t.op(
                    "rrp>r",
                    &format!("set.lt.{op}.u32.s32 %x, %a, %b, {c};"),
                    &masks,
                );
            }
        }
        t.op(
            "rr>pp",
            "setp.ge.u32 %x|%y, %a, %b;",
            &[[1, 2, 0, 1], [2, 2, 1, 0]],
        );
        // The operand predicate may also be the destination.
        t.op(
            "rrp>p",
            "mov.pred %x, %c; setp.lt.and.u32 %x, %a, %b, %x;",
            &[[1, 2, 0, 0], [1, 2, 1, 1], [2, 1, 1, 0]],
        );
        // Predicates' own logic, and selp for each width.
        t.op(
            "pp>pppp",
            "and.pred %x, %a, %b; or.pred %y, %a, %b; xor.pred %z, %a, %b; not.pred %w, %a;",
            &[
                [0, 0, 0, 0, 0, 1],
                [0, 1, 0, 1, 1, 1],
                [1, 0, 0, 1, 1, 0],
                [1, 1, 1, 1, 0, 0],
            ],
        );
        for (ty, sig) in [
            ("b16", "hhp>h"),
            ("s16", "hhp>h"),
            ("u32", "rrp>r"),
            ("f32", "rrp>r"),
            ("b64", "ddp>d"),
            ("f64", "ddp>d"),
        ] {
            t.op(
                sig,
                &format!("selp.{ty} %x, %a, %b, %c;"),
                &[[0x8001, 0x7ffe, 0, 0x7ffe], [0x8001, 0x7ffe, 1, 0x8001]],
            );
        }
    });
}

/// A program of one thread; each lane takes its own way through it.
enum Stmt {
    /// x = x * m + y + c; y = y ^ (x >> s).
    Mix(u32, u32, u32),
    If(Cond, Vec<Stmt>, Vec<Stmt>),
    /// As often as (x + c) & m says; tested before or after the body.
    Loop(u32, u32, bool, Vec<Stmt>),
    Break(Cond),
    Continue(Cond),
    Exit(Cond),
    /// By x & 3.
    Switch([Vec<Stmt>; 4]),
    Call,
}

/// (x >> shift) & mask == value, or the same of y.
#[derive(Clone, Copy)]
struct Cond(bool, u32, u32, u32);

impl Cond {
    fn holds(self, x: u32, y: u32) -> bool {
        (if self.0 { x } else { y }) >> self.1 & self.2 == self.3
    }
}

#[derive(PartialEq)]
enum Way {
    On,
    Break,
    Continue,
    Exit,
}

/// The function that programs call: its loop and returns depend on the argument.
const FUNCTION: &str = "
.func (.param .b32 r) twist(.param .b32 a, .param .b32 b) {
    .reg .b32 %r<8>; .reg .pred %p<4>;
    ld.param.u32 %r1, [a]; ld.param.u32 %r2, [b];
    and.b32 %r3, %r1, 7;
    setp.eq.u32 %p1, %r3, 5; @!%p1 bra WORK;
    add.u32 %r1, %r1, %r2; st.param.b32 [r], %r1; ret;
    WORK: setp.eq.u32 %p2, %r3, 0; @%p2 bra DONE;
    mad.lo.u32 %r1, %r1, 5, %r2; sub.u32 %r3, %r3, 1; bra.uni WORK;
    DONE: st.param.b32 [r], %r1;
    setp.gt.u32 %p3, %r2, %r1; @%p3 ret;
    xor.b32 %r1, %r1, 0x55; st.param.b32 [r], %r1;
}";

fn twist(mut a: u32, b: u32) -> u32 {
    let mut k = a & 7;
    if k == 5 {
        return a.wrapping_add(b);
    }
    while k != 0 {
        a = a.wrapping_mul(5).wrapping_add(b);
        k -= 1;
    }
    if b > a { a } else { a ^ 0x55 }
}

fn execute(stmts: &[Stmt], x: &mut u32, y: &mut u32) -> Way {
    for s in stmts {
        match s {
            Stmt::Mix(m, c, s) => {
                *x = x.wrapping_mul(*m).wrapping_add(*y).wrapping_add(*c);
                *y ^= *x >> s;
            }
            Stmt::If(c, a, b) => {
                let way = execute(if c.holds(*x, *y) { a } else { b }, x, y);
                if way != Way::On {
                    return way;
                }
            }
            Stmt::Loop(c, m, before, body) => {
                let mut k = x.wrapping_add(*c) & m;
                while !*before || k != 0 {
                    match execute(body, x, y) {
                        Way::Break => break,
                        Way::Exit => return Way::Exit,
                        Way::On | Way::Continue => {}
                    }
                    if !*before && k == 0 {
                        break;
                    }
                    k -= 1;
                }
            }
            Stmt::Break(c) if c.holds(*x, *y) => return Way::Break,
            Stmt::Continue(c) if c.holds(*x, *y) => return Way::Continue,
            Stmt::Exit(c) if c.holds(*x, *y) => return Way::Exit,
            Stmt::Break(_) | Stmt::Continue(_) | Stmt::Exit(_) => {}
            Stmt::Switch(arms) => {
                let way = execute(&arms[(*x & 3) as usize], x, y);
                if way != Way::On {
                    return way;
                }
            }
            Stmt::Call => *x = twist(*x, *y),
        }
    }
    Way::On
}

/// Makes programs and writes them as PTX: x is %r10, y is %r11, the loop at depth d counts in
/// %r20+d.
struct Writer {
    rng: Rng,
    labels: u32,
}

impl Writer {
    fn below(&mut self, n: u64) -> u32 {
        (self.rng.next() % n) as u32
    }

    fn cond(&mut self) -> Cond {
        let mask = [1, 3, 7][self.below(3) as usize];
        let (which, shift, value) = (self.below(2), self.below(9), self.below(8));
        Cond(which == 1, shift, mask, value & mask)
    }

    fn program(&mut self, depth: u32, looped: bool) -> Vec<Stmt> {
        let n = 1 + self.below(3);
        (0..n)
            .map(|_| {
                let kind = self.below(if depth < 4 { 10 } else { 5 });
                match kind {
                    3 if looped && self.below(2) == 0 => Stmt::Break(self.cond()),
                    3 if looped => Stmt::Continue(self.cond()),
                    4 if depth > 0 && self.below(3) == 0 => {
                        // Seldom true, so that some lanes get to the end.
                        let c = self.cond();
                        Stmt::Exit(Cond(c.0, c.1, 31, c.3))
                    }
                    2 => Stmt::Call,
                    0..=4 => Stmt::Mix(self.below(1000) | 1, self.below(10_000), 1 + self.below(9)),
                    5 | 6 => {
                        let c = self.cond();
                        let a = self.program(depth + 1, looped);
                        let b = if self.below(2) == 0 {
                            Vec::new()
                        } else {
                            self.program(depth + 1, looped)
                        };
                        Stmt::If(c, a, b)
                    }
                    7 | 8 => Stmt::Loop(
                        self.below(8),
                        [1, 3, 7][self.below(3) as usize],
                        self.below(2) == 0,
                        self.program(depth + 1, true),
                    ),
                    _ => Stmt::Switch(std::array::from_fn(|_| self.program(depth + 2, looped))),
                }
            })
            .collect()
    }

    fn label(&mut self) -> u32 {
        self.labels += 1;
        self.labels
    }

    /// Sets %p to whether the condition holds.
    fn test(c: Cond) -> String {
        let r = if c.0 { "%r10" } else { "%r11" };
        format!(
            "shr.u32 %r1, {r}, {}; and.b32 %r1, %r1, {}; setp.eq.u32 %p, %r1, {};",
            c.1, c.2, c.3
        )
    }

    /// `around` are the labels to break and to continue to, and the depth of loops.
    fn write(&mut self, stmts: &[Stmt], around: Option<(u32, u32)>, depth: u32, o: &mut String) {
        for s in stmts {
            match s {
                Stmt::Mix(m, c, s) => writeln!(
                    o,
                    "mad.lo.u32 %r10, %r10, {m}, %r11; add.u32 %r10, %r10, {c};
                    shr.u32 %r1, %r10, {s}; xor.b32 %r11, %r11, %r1;"
                )
                .expect("string"),
                Stmt::If(c, a, b) => {
                    let (other, end) = (self.label(), self.label());
                    writeln!(o, "{} @!%p bra L{other};", Self::test(*c)).expect("string");
                    self.write(a, around, depth, o);
                    if b.is_empty() {
                        writeln!(o, "L{other}: L{end}:").expect("string");
                    } else {
                        writeln!(o, "bra L{end};\nL{other}:").expect("string");
                        self.write(b, around, depth, o);
                        writeln!(o, "L{end}:").expect("string");
                    }
                }
                Stmt::Loop(c, m, before, body) => {
                    let [top, next, end] = [self.label(), self.label(), self.label()];
                    let k = format!("%r{}", 20 + depth);
                    writeln!(o, "add.u32 {k}, %r10, {c}; and.b32 {k}, {k}, {m};\nL{top}:")
                        .expect("string");
                    let test = format!("setp.eq.u32 %p, {k}, 0; @%p bra L{end};");
                    if *before {
                        writeln!(o, "{test}").expect("string");
                    }
                    self.write(body, Some((end, next)), depth + 1, o);
                    writeln!(o, "L{next}:").expect("string");
                    if !*before {
                        writeln!(o, "{test}").expect("string");
                    }
                    writeln!(o, "sub.u32 {k}, {k}, 1; bra.uni L{top};\nL{end}:").expect("string");
                }
                Stmt::Break(c) | Stmt::Continue(c) => {
                    let (end, next) = around.expect("in a loop");
                    let to = if matches!(s, Stmt::Break(_)) {
                        end
                    } else {
                        next
                    };
                    writeln!(o, "{} @%p bra L{to};", Self::test(*c)).expect("string");
                }
                Stmt::Exit(c) => {
                    // One way or the other.
                    let exit = ["exit", "ret"][self.below(2) as usize];
                    writeln!(
                        o,
                        "{} @%p st.global.u32 [%rd20], %r10; @%p {exit};",
                        Self::test(*c)
                    )
                    .expect("string");
                }
                Stmt::Switch(arms) => {
                    let labels: [u32; 4] = std::array::from_fn(|_| self.label());
                    let (list, end) = (self.label(), self.label());
                    let [a, b, c, d] = labels;
                    writeln!(
                        o,
                        "L{list}: .branchtargets L{a}, L{b}, L{c}, L{d};
                        and.b32 %r1, %r10, 3; brx.idx %r1, L{list};"
                    )
                    .expect("string");
                    for (label, arm) in labels.iter().zip(arms) {
                        writeln!(o, "L{label}:").expect("string");
                        self.write(arm, around, depth, o);
                        writeln!(o, "bra L{end};").expect("string");
                    }
                    writeln!(o, "L{end}:").expect("string");
                }
                Stmt::Call => writeln!(
                    o,
                    "{{ .param .b32 a0; .param .b32 a1; .param .b32 r0;
                    st.param.b32 [a0], %r10; st.param.b32 [a1], %r11;
                    call (r0), twist, (a0, a1); ld.param.b32 %r10, [r0]; }}"
                )
                .expect("string"),
            }
        }
    }
}

fn random_programs() {
    suite("divergence", |t| {
        let mut w = Writer {
            rng: Rng(5),
            labels: 0,
        };
        let (mut exits, mut ends) = (0, 0);
        for number in 0..150 {
            let threads = [64, 50, 17][number % 3];
            let segments: Vec<Vec<Stmt>> = (0..4).map(|_| w.program(0, false)).collect();
            let mut body = "mad.wide.u32 %rd20, %t, 8, %out;
                mad.lo.u32 %r10, %t, 77, 5; xor.b32 %r11, %t, 0x1234;\n"
                .to_owned();
            for s in &segments {
                w.write(s, None, 0, &mut body);
                // All lanes that are left meet, and learn of one another.
                body += "redux.sync.add.u32 %r2, %r10, -1; xor.b32 %r10, %r10, %r2;\n";
            }
            body += "st.global.u32 [%rd20], %r10;";
            let mut lanes: Vec<(u32, u32, bool)> = (0..threads)
                .map(|i: u32| (i.wrapping_mul(77).wrapping_add(5), i ^ 0x1234, true))
                .collect();
            for s in &segments {
                for warp in lanes.chunks_mut(32) {
                    for (x, y, live) in warp.iter_mut().filter(|l| l.2) {
                        *live = execute(s, x, y) != Way::Exit;
                    }
                    let sum = warp
                        .iter()
                        .filter(|l| l.2)
                        .fold(0u32, |a, l| a.wrapping_add(l.0));
                    warp.iter_mut().filter(|l| l.2).for_each(|l| l.0 ^= sum);
                }
            }
            exits += lanes.iter().filter(|l| !l.2).count();
            ends += lanes.iter().filter(|l| l.2).count();
            let want: Vec<u64> = lanes.iter().map(|l| u64::from(l.0)).collect();
            t.runs(
                &format!("program {number}"),
                &text(FUNCTION, &body),
                threads,
                &[0],
                &want,
            );
        }
        assert!(exits > 300 && ends > 3000, "{exits} {ends}");
    });
}

fn branches() {
    suite("branches", |t| {
        let rows: [(&str, &dyn Fn(u64) -> u64); 10] = [
            // A trip count for each lane.
            (
                "mov.u32 %r10, 0; L: setp.ge.u32 %p, %r10, %t; @%p bra M; add.u32 %r10, %r10, 1; bra L; M:",
                &|i| i,
            ),
            (
                "mov.u32 %r10, 0; L: add.u32 %r10, %r10, 2; setp.lt.u32 %p, %r10, %t; @%p bra L;",
                &|i| (i + 1 & !1).max(2),
            ),
            // Backwards and forwards, to the next instruction, and over nothing.
            (
                "mov.u32 %r10, 1; bra B; A: add.u32 %r10, %r10, 1; bra C; B: add.u32 %r10, %r10, 10; bra A; C:",
                &|_| 12,
            ),
            (
                "and.b32 %r0, %t, 1; setp.eq.u32 %p, %r0, 0; mov.u32 %r10, 4; @%p bra A; A: add.u32 %r10, %r10, %t;",
                &|i| i + 4,
            ),
            (
                "setp.lt.u32 %p, %t, 7; mov.u32 %r10, 0; @%p bra.uni A; B: add.u32 %r10, %r10, 1; A: add.u32 %r10, %r10, 2;",
                &|i| if i < 7 { 2 } else { 3 },
            ),
            // brx.idx: a target twice in the list, a guard, and .uni.
            (
                "TS: .branchtargets A, B, A, C; and.b32 %r0, %t, 3; brx.idx %r0, TS; A: mov.u32 %r10, 1; bra D; B: mov.u32 %r10, 2; bra D; C: mov.u32 %r10, 3; D:",
                &|i| [1, 2, 1, 3][i as usize % 4],
            ),
            (
                "TS: .branchtargets A, B; and.b32 %r0, %t, 1; setp.lt.u32 %p, %t, 20; mov.u32 %r10, 9; @%p brx.idx %r0, TS; bra D; A: mov.u32 %r10, 1; bra D; B: mov.u32 %r10, 2; D:",
                &|i| if i < 20 { 1 + i % 2 } else { 9 },
            ),
            (
                "TS: .branchtargets A, B; brx.idx.uni 1, TS; A: mov.u32 %r10, 1; bra D; B: mov.u32 %r10, 2; D:",
                &|_| 2,
            ),
            // Labels of an inner block hide those of an outer one.
            (
                "mov.u32 %r10, 0; { bra A; add.u32 %r10, %r10, 1; A: add.u32 %r10, %r10, 2; } bra A; add.u32 %r10, %r10, 4; A: add.u32 %r10, %r10, 8;",
                &|_| 10,
            ),
            // Collatz: loops with a branch in them.
            (
                "add.u32 %r0, %t, 1; mov.u32 %r10, 0; L: setp.eq.u32 %p, %r0, 1; @%p bra E; and.b32 %r1, %r0, 1; setp.eq.u32 %q, %r1, 0; add.u32 %r10, %r10, 1; @%q bra H; mad.lo.u32 %r0, %r0, 3, 1; bra L; H: shr.u32 %r0, %r0, 1; bra L; E:",
                &|i| {
                    let (mut k, mut steps) = (i + 1, 0);
                    while k != 1 {
                        k = if k % 2 == 0 { k / 2 } else { 3 * k + 1 };
                        steps += 1;
                    }
                    steps
                },
            ),
        ];
        for (code, want) in rows {
            for threads in [1, 32, 45] {
                let want: Vec<u64> = (0..u64::from(threads)).map(want).collect();
                let body = format!("{code} {OUT}");
                t.runs(code, &text("", &body), threads, &[0], &want);
            }
        }
        // Threads end where they are: exit and ret are the same in a kernel.
        for end in ["exit", "ret", "ret.uni", "bra DONE"] {
            let body = format!(
                "mov.u32 %r10, 1; {OUT}
                setp.lt.u32 %p, %t, 9; @%p {end};
                mov.u32 %r10, 2; {OUT}
                setp.ge.u32 %p, %t, 40; @!%p bra ON; {end}; ON:
                mov.u32 %r10, 3; {OUT} {end}; mov.u32 %r10, 4; {OUT} DONE:"
            );
            let want: Vec<u64> = (0..64)
                .map(|i| match i {
                    0..9 => 1,
                    9..40 => 3,
                    _ => 2,
                })
                .collect();
            t.runs(end, &text("", &body), 64, &[0], &want);
        }
        // Lanes that part wait for each other at warp-wide instructions of the same mask, on
        // either side of a branch for themselves.
        let body = format!(
            "and.b32 %r0, %t, 3; setp.eq.u32 %p, %r0, 0;
            vote.sync.ballot.b32 %r1, %p, -1; not.b32 %r2, %r1;
            @%p bra A;
            redux.sync.add.u32 %r10, %t, %r2; bar.warp.sync %r2; bra B;
            A: redux.sync.max.u32 %r10, %t, %r1; bar.warp.sync %r1;
            B: redux.sync.add.u32 %r3, %r10, -1; add.u32 %r10, %r10, %r3; {OUT}"
        );
        let (sum, max) = ((0..32).filter(|i| i % 4 != 0).sum::<u64>(), 28);
        let total = 24 * sum + 8 * max;
        let want: Vec<u64> = (0..32)
            .map(|i| total + if i % 4 == 0 { max } else { sum })
            .collect();
        t.runs("masks of the parts", &text("", &body), 32, &[0], &want);
        // Forward progress: a lane waits for what another lane of its warp does later.
        let body = format!(
            "st.shared.u32 [sm], 0; bar.warp.sync -1; setp.eq.u32 %p, %t, 31; @%p bra SET;
            WAIT: ld.volatile.shared.u32 %r10, [sm]; setp.eq.u32 %q, %r10, 0; @%q bra WAIT;
            bra DONE; SET: mov.u32 %r10, 6; st.volatile.shared.u32 [sm], %r10; DONE: {OUT}"
        );
        t.runs("progress", &text("", &body), 32, &[0], &[6; 32]);
        // bar.warp.sync orders the lanes' memory accesses.
        let body = format!(
            "mov.u32 %r40, sm; mad.lo.u32 %r0, %t, 4, %r40; xor.b32 %r1, %t, 7; mad.lo.u32 %r1, %r1, 4, %r40;
            mad.lo.u32 %r2, %t, %t, 3; st.shared.u32 [%r0], %r2; bar.warp.sync 0xffffffff;
            ld.shared.u32 %r10, [%r1]; {OUT}"
        );
        let want: Vec<u64> = (0..32u64).map(|i| (i ^ 7) * (i ^ 7) + 3).collect();
        t.runs("bar.warp.sync", &text("", &body), 32, &[0], &want);
        // activemask: the lanes that execute it, which after a branch may be fewer but never others.
        let body = format!(
            "setp.lt.u32 %p, %t, 5; activemask.b32 %r10; @!%p bra A; activemask.b32 %r10; A: {OUT}"
        );
        let want: Vec<u64> = (0..20).map(|i| if i < 5 { 31 } else { 0xf_ffff }).collect();
        t.runs("activemask", &text("", &body), 20, &[0], &want);
        // nanosleep changes nothing.
        let body = format!(
            "mov.u32 %r0, 20; nanosleep.u32 100; nanosleep.u32 %r0; setp.eq.u32 %p, %t, 0; @%p nanosleep.u32 0; mov.u32 %r10, 4; {OUT}"
        );
        t.runs("nanosleep", &text("", &body), 32, &[0], &[4; 32]);
        // trap ends the launch with an error, for whichever lane.
        for (code, thread) in [
            ("trap; // BAD", 0),
            ("setp.eq.u32 %p, %t, 37; @%p trap; // BAD", 37),
            (
                "setp.eq.u32 %p, %t, 37; @!%p bra OVER;\ntrap; // BAD\nOVER:",
                37,
            ),
        ] {
            let text = text("", code);
            t.fault(code, &text, 64, &[0], |k| matches!(k, FaultKind::Trap(_)));
            let fault = launched(&text, 64).expect_err("traps");
            let lane = fault.place.thread.map(|t| t.0);
            t.same(code, &[lane.map(|l| l % 32)], &[Some(thread % 32)]);
        }
    });
}

fn launched(text: &str, threads: u32) -> Result<Vec<u64>, Box<Fault>> {
    launch(&parse(text).expect("parses"), threads, &[0], 64)
}

/// A call of `name` with values from registers, and its result to a register.
fn call(name: &str, args: &[&str], result: &str) -> String {
    let mut s = "{ .param .b32 ret0;\n".to_owned();
    let mut list = String::new();
    for (i, a) in args.iter().enumerate() {
        s += &format!(".param .b32 p{i}; st.param.b32 [p{i}+0], {a};\n");
        list += &format!("{}p{i}", if i > 0 { ", " } else { "" });
    }
    s + &format!("call.uni (ret0), {name}, ({list});\nld.param.b32 {result}, [ret0+0]; }}\n")
}

fn calls() {
    suite("calls", |t| {
        let functions = format!(
            "
            .func (.param .b32 r) later(.param .b32 a);
            .func (.param .b32 r) double(.param .b32 a) {{
                .reg .b32 %r<4>; ld.param.u32 %r1, [a]; add.u32 %r1, %r1, %r1; st.param.b32 [r], %r1; ret; }}
            .func (.param .b32 r) chain(.param .b32 a, .param .b32 b) {{
                .reg .b32 %r<4>; ld.param.u32 %r1, [a]; ld.param.u32 %r2, [b];
                {} {} sub.u32 %r3, %r1, %r2; st.param.b32 [r], %r3; }}
            .func (.param .b32 r) later(.param .b32 a) {{
                .reg .b32 %r<4>; ld.param.u32 %r1, [a]; add.u32 %r1, %r1, 1; st.param.b32 [r], %r1; ret; }}
            .func store(.param .b64 at, .param .b32 a) {{
                .reg .b64 %rd<2>; .reg .b32 %r<2>; ld.param.u64 %rd1, [at]; ld.param.u32 %r1, [a];
                st.global.u32 [%rd1], %r1; ret; }}
            .func nothing() {{ ret; }}
            .func leave(.param .b32 a) {{
                .reg .b32 %r<2>; .reg .pred %p<2>; ld.param.u32 %r1, [a]; setp.gt.u32 %p1, %r1, 20; @%p1 exit; }}
            .func (.param .b32 r) frame(.param .b32 a) {{
                .reg .b32 %r<4>; .reg .pred %p<2>; .local .align 4 .b8 own[16];
                ld.param.u32 %r1, [a]; st.local.u32 [own+4], %r1; st.local.u32 [own+8], 3;
                {} ld.local.u32 %r3, [own+4]; add.u32 %r2, %r2, %r3; st.param.b32 [r], %r2; ret; }}
            .visible .func (.param .align 8 .b8 r[16]) swap(.param .align 8 .b8 s[16]) {{
                .reg .b32 %r<4>; .reg .b64 %rd<2>;
                ld.param.v2.u32 {{%r1, %r2}}, [s]; ld.param.u64 %rd1, [s+8];
                st.param.u64 [r], %rd1; st.param.v2.b32 [r+8], {{%r2, %r1}}; ret; }}
            .func (.param .b64 r) mixed(.param .b8 a, .param .b16 b, .param .f32 c, .param .f64 d, .param .s8 e) {{
                .reg .b32 %r<8>; .reg .b64 %rd<4>; .reg .b16 %h<2>;
                ld.param.u8 %r1, [a]; ld.param.u16 %r2, [b]; ld.param.f32 %r3, [c]; ld.param.f64 %rd1, [d]; ld.param.s8 %r4, [e];
                cvt.rzi.u32.f32 %r3, %r3; cvt.rzi.u64.f64 %rd1, %rd1; cvt.s64.s32 %rd2, %r4;
                mad.wide.u32 %rd1, %r1, 1000, %rd1; mad.wide.u32 %rd1, %r2, 100000, %rd1; mad.wide.u32 %rd1, %r3, 10000000, %rd1;
                sub.u64 %rd1, %rd1, %rd2; st.param.b64 [r], %rd1; }}
            {FUNCTION}",
            call("double", &["%r1"], "%r1"),
            call("later", &["%r2"], "%r2"),
            call("double", &["%r1"], "%r2"),
        );
        let rows: [(String, &dyn Fn(u64) -> u64); 12] = [
            (call("double", &["%t"], "%r10"), &|i| 2 * i),
            (call("later", &["%t"], "%r10"), &|i| i + 1),
            // Calls from a function, and of one function twice.
            (call("chain", &["%t", "%t"], "%r10"), &|i| {
                (2 * i).wrapping_sub(i + 1)
            }),
            (
                call("double", &["%t"], "%r0") + &call("double", &["%r0"], "%r10"),
                &|i| 4 * i,
            ),
            // In a loop with its own trip count for each lane.
            (
                format!(
                    "mov.u32 %r10, 1; and.b32 %r0, %t, 7; L: setp.eq.u32 %p, %r0, 0; @%p bra M; {} sub.u32 %r0, %r0, 1; bra L; M:",
                    call("double", &["%r10"], "%r10")
                ),
                &|i| 1 << (i % 8),
            ),
            // By some of the lanes: a branch around, and a predicate on the call.
            (
                format!(
                    "mov.u32 %r10, 7; setp.lt.u32 %p, %t, 11; @!%p bra OVER; {} OVER:",
                    call("double", &["%t"], "%r10")
                ),
                &|i| if i < 11 { 2 * i } else { 7 },
            ),
            (
                "setp.lt.u32 %p, %t, 11; mad.wide.u32 %rd1, %t, 4, %in; { .param .b64 p0; .param .b32 p1;
                st.global.u32 [%rd1], 7; st.param.b64 [p0], %rd1; st.param.b32 [p1], %t;
                @%p call store, (p0, p1); } ld.global.u32 %r10, [%rd1];"
                    .to_owned(),
                &|i| if i < 11 { i } else { 7 },
            ),
            (
                "setp.lt.u32 %p, %t, 11; mad.wide.u32 %rd1, %t, 4, %in; { .param .b64 p0; .param .b32 p1;
                st.global.u32 [%rd1], 7; st.param.b64 [p0], %rd1; st.param.b32 [p1], %t;
                @!%p call.uni store, (p0, p1); } ld.global.u32 %r10, [%rd1];"
                    .to_owned(),
                &|i| if i < 11 { 7 } else { i },
            ),
            // Divergent returns.
            (call("twist", &["%t", "300"], "%r10"), &|i| {
                u64::from(twist(i as u32, 300))
            }),
            // Without parameters; exit ends the thread, not only the function.
            (
                "mov.u32 %r10, 5; call nothing; call.uni nothing, ();".to_owned(),
                &|_| 5,
            ),
            (
                format!("mov.u32 %r10, 1; {OUT} {{ .param .b32 p0; st.param.b32 [p0], %t; call leave, (p0); }} mov.u32 %r10, 2;"),
                &|i| if i > 20 { 1 } else { 2 },
            ),
            // A function's local variables are its own; so are its registers.
            (
                "mov.u32 %r1, 55; mov.u32 %r2, 66;".to_owned()
                    + &call("frame", &["%t"], "%r10")
                    + "add.u32 %r10, %r10, %r1; add.u32 %r10, %r10, %r2;",
                &|i| 3 * i + 121,
            ),
        ];
        for (code, want) in rows {
            let body = format!("{code} {OUT}");
            let want: Vec<u64> = (0..40).map(|i| want(i) & 0xffff_ffff).collect();
            t.runs(&code, &text(&functions, &body), 40, &[0; 64], &want);
        }
        // Structures and small types.
        let body = "{ .param .align 8 .b8 s0[16]; .param .align 8 .b8 r0[16];
            st.param.b32 [s0], 1; st.param.b32 [s0+4], 2; st.param.b64 [s0+8], 0x300000004;
            call (r0), swap, (s0); ld.param.v2.b64 {%rd0, %rd1}, [r0]; }
            st.global.v2.u64 [%out], {%rd0, %rd1};
            { .param .b8 a; .param .b16 b; .param .f32 c; .param .f64 d; .param .s8 e; .param .b64 r0;
            st.param.b8 [a], 0x1fe; st.param.b16 [b], 99; st.param.f32 [c], 0f40A00000; st.param.f64 [d], 0d4010000000000000;
            mov.u32 %r0, -3; st.param.s8 [e], %r0;
            call (r0), mixed, (a, b, c, d, e); ld.param.u64 %rd2, [r0]; }
            st.global.u64 [%out+16], %rd2;";
        t.runs(
            "structures",
            &text(&functions, body),
            1,
            &[0],
            &[
                3 << 32 | 4,
                1 << 32 | 2,
                50_000_000 + 9_900_000 + 254_000 + 4 + 3,
            ],
        );
        // Shared variables live as long as the block: a function has one, however often it is called.
        let functions = "
            .func (.param .b32 r) keep(.param .b32 a) {
                .reg .b32 %r<4>; .reg .pred %p<2>; .shared .align 4 .u32 kept;
                ld.param.u32 %r1, [a]; setp.eq.u32 %p1, %r1, 0;
                @!%p1 st.shared.u32 [kept], %r1; ld.shared.u32 %r2, [kept]; st.param.b32 [r], %r2; ret; }";
        let body = call("keep", &["9"], "%r0") + &call("keep", &["0"], "%r10") + OUT;
        t.runs("shared variable", &text(functions, &body), 1, &[0], &[9]);
    });
}

/// Each thread stores i at its word of `sm`, something makes it safe to read the word of thread
/// i ^ 32 + 1, and that is stored.
fn exchange(sync: &str) -> String {
    format!(
        "mov.u32 %r40, sm; mad.lo.u32 %r0, %t, 4, %r40; xor.b32 %r1, %t, 33; mad.lo.u32 %r1, %r1, 4, %r40;
        shr.u32 %r2, %t, 6; add.u32 %r2, %r2, 1; mad.lo.u32 %r3, %t, 3, 1; mov.u32 %r4, 64; mov.u32 %r5, %ntid.x;
        st.shared.u32 [%r0], %r3;
        {sync}
        ld.shared.u32 %r10, [%r1]; {OUT}"
    )
}

fn barriers() {
    suite("barriers", |t| {
        let want: Vec<u64> = (0..128u64).map(|i| 3 * (i ^ 33) + 1).collect();
        for sync in [
            "bar.sync 0;",
            "bar.sync 15;",
            "bar.sync 0, 128;",
            "bar.cta.sync 3;",
            "mov.u32 %r9, 5; bar.sync %r9, %r5;",
            "barrier.sync 0;",
            "barrier.sync.aligned 1, 128;",
            "barrier.cta.sync.aligned 1;",
            "barrier.cta.sync 2, 128;",
            // Pairs of warps, each with its barrier, in a register.
            "bar.sync %r2, 64;",
            "bar.sync %r2, %r4;",
            "barrier.sync %r2, 64;",
            // As a loop, with other work between.
            "mov.u32 %r9, 0; L: bar.sync 1; add.u32 %r9, %r9, 1; setp.lt.u32 %p, %r9, 10; @%p bra L;",
            // Reductions are barriers.
            "setp.eq.u32 %p, %t, 0; bar.red.popc.u32 %r9, 0, %p;",
            "setp.eq.u32 %p, %t, 0; bar.red.or.pred %q, 1, 128, %p;",
            "setp.eq.u32 %p, %t, 0; barrier.cta.red.and.pred %q, %r2, 64, !%p;",
        ] {
            t.runs(sync, &text("", &exchange(sync)), 128, &[0], &want);
        }
        // Divergent threads may execute barrier without .aligned: each arrives by itself.
        for sync in [
            "and.b32 %r9, %t, 1; setp.eq.u32 %p, %r9, 0; @%p bra A; barrier.sync 0; bra B; A: barrier.sync 0; B:",
            "and.b32 %r9, %t, 1; setp.eq.u32 %p, %r9, 0; @%p barrier.sync 0; @!%p barrier.sync 0;",
            "and.b32 %r9, %t, 1; setp.eq.u32 %p, %r9, 0; @%p bra A; barrier.sync %r2, 64; bra B; A: barrier.sync %r2, 64; B:",
        ] {
            t.runs(sync, &text("", &exchange(sync)), 128, &[0], &want);
        }
        // The last warp may be a part of one; what has ended is not waited for.
        for threads in [1u32, 31, 33, 70] {
            let body = format!(
                "mov.u32 %r40, sm; mad.lo.u32 %r0, %t, 4, %r40; st.shared.u32 [%r0], %t;
                bar.sync 0; mov.u32 %r1, %ntid.x; sub.u32 %r1, %r1, 1; sub.u32 %r1, %r1, %t;
                mad.lo.u32 %r1, %r1, 4, %r40; ld.shared.u32 %r10, [%r1]; {OUT}"
            );
            let want: Vec<u64> = (0..u64::from(threads)).rev().collect();
            t.runs("odd sizes", &text("", &body), threads, &[0], &want);
        }
        for (left, early) in [(64, "%t, 64"), (40, "%t, 40"), (1, "%t, 1")] {
            let body = format!(
                "mov.u32 %r10, 3; {OUT} setp.ge.u32 %p, {early}; @%p exit;
                bar.sync 0; bar.red.popc.u32 %r10, 0, !%p; {OUT}"
            );
            let want: Vec<u64> = (0..128).map(|i| if i < left { left } else { 3 }).collect();
            t.runs("after exits", &text("", &body), 128, &[0], &want);
        }
    });
}

fn barrier_reductions() {
    suite("barrier reductions", |t| {
        // The predicate of thread t is bit t % 8 of a pattern; two parts of 64 threads.
        for pattern in [0u64, 0xff, 0x01, 0x7f, 0x5a] {
            let set = |i: u64| pattern >> (i % 8) & 1 == 1;
            let count = (0..128).filter(|&i| set(i)).count() as u64;
            let rows = [
                ("bar.red.popc.u32 %r10, 0, %p;", count),
                ("bar.red.popc.u32 %r10, 0, !%p;", 128 - count),
                ("bar.red.popc.u32 %r10, %r2, 64, %p;", count / 2),
                ("barrier.red.popc.u32 %r10, 1, 128, %p;", count),
                ("barrier.cta.red.popc.aligned.u32 %r10, 1, 128, %p;", count),
                ("bar.cta.red.popc.u32 %r10, 1, %p;", count),
                (
                    "bar.red.and.pred %q, 0, %p; selp.u32 %r10, 1, 0, %q;",
                    u64::from(count == 128),
                ),
                (
                    "bar.red.and.pred %q, 0, 128, !%p; selp.u32 %r10, 1, 0, %q;",
                    u64::from(count == 0),
                ),
                (
                    "bar.red.or.pred %q, %r2, 64, %p; selp.u32 %r10, 1, 0, %q;",
                    u64::from(count > 0),
                ),
                (
                    "barrier.red.or.pred %q, 0, !%p; selp.u32 %r10, 1, 0, %q;",
                    u64::from(count < 128),
                ),
                // One after another on one barrier.
                (
                    "bar.red.popc.u32 %r8, 0, %p; bar.red.popc.u32 %r9, 0, !%p; bar.red.or.pred %q, 0, %p; mad.lo.u32 %r10, %r8, 1000, %r9;",
                    1000 * count + 128 - count,
                ),
            ];
            for (code, want) in rows {
                let body = format!(
                    "shr.u32 %r2, %t, 6; and.b32 %r0, %t, 7; mov.u32 %r1, {pattern}; shr.u32 %r1, %r1, %r0; and.b32 %r1, %r1, 1;
                    setp.eq.u32 %p, %r1, 1; {code} {OUT}"
                );
                t.runs(code, &text("", &body), 128, &[0], &[want; 128]);
            }
        }
        // A part of a warp, and threads that have ended, do not vote.
        let body = format!(
            "setp.lt.u32 %p, %t, 35; bar.red.popc.u32 %r10, 0, %p; @!%p exit; {OUT}
            bar.red.and.pred %q, 0, %p; @%q add.u32 %r10, %r10, 100; {OUT}"
        );
        t.runs("part of a warp", &text("", &body), 40, &[0], &[135; 35]);
    });
}

fn producer_and_consumer() {
    suite("bar.arrive", |t| {
        // ISA: bar: the producer waits on 0 and arrives on 1; the consumer the other way round.
        let body = format!(
            "mov.u32 %r40, sm; and.b32 %r0, %t, 31; mad.lo.u32 %r1, %r0, 4, %r40; mov.u32 %r2, 0; mov.u32 %r10, 0;
            setp.ge.u32 %p, %t, 32; xor.b32 %r3, %r0, 19; mad.lo.u32 %r3, %r3, 4, %r40;
            @%p bra CONSUME;
            PRODUCE: mad.lo.u32 %r4, %r2, 100, %r0; st.shared.u32 [%r1], %r4; bar.arrive 0, 64; bar.sync 1, 64;
            add.u32 %r2, %r2, 1; setp.lt.u32 %q, %r2, 6; @%q bra PRODUCE; exit;
            CONSUME: bar.sync 0, 64; ld.shared.u32 %r4, [%r3]; mad.lo.u32 %r10, %r10, 3, %r4; bar.arrive 1, 64;
            add.u32 %r2, %r2, 1; setp.lt.u32 %q, %r2, 6; @%q bra CONSUME;
            {OUT}"
        );
        let want: Vec<u64> = (0..64u64)
            .map(|i| match i {
                0..32 => 0,
                _ => (0..6).fold(0, |x, k| 3 * x + 100 * k + (i % 32 ^ 19)),
            })
            .collect();
        t.runs("in turns", &text("", &body), 64, &[0], &want);
        // bar.arrive does not wait, and does not make anything of others visible.
        let code = body.replace(
            "CONSUME: bar.sync 0, 64; ld",
            "CONSUME: bar.arrive 0, 64;\nld",
        );
        let code = code.replace("[%r3]; mad", "[%r3]; // BAD\nmad");
        t.fault("two arrivals", &text("", &code), 64, &[0], |k| {
            matches!(k, FaultKind::Race { .. } | FaultKind::Uninitialised { .. })
        });
        // Three warps arrive, one waits; and it does not matter who comes first.
        let body = format!(
            "mov.u32 %r40, sm; mad.lo.u32 %r1, %t, 4, %r40; st.shared.u32 [%r1], %t; mov.u32 %r10, 0;
            setp.lt.u32 %p, %t, 96; @%p bar.arrive 7, 128; @%p exit;
            bar.sync 7, 128; sub.u32 %r2, %t, 96; mad.lo.u32 %r2, %r2, 4, %r40;
            ld.shared.u32 %r3, [%r2]; ld.shared.u32 %r4, [%r2+128]; ld.shared.u32 %r5, [%r2+256];
            add.u32 %r10, %r3, %r4; add.u32 %r10, %r10, %r5; {OUT}"
        );
        let want: Vec<u64> = (0..128u64)
            .map(|i| if i < 96 { 0 } else { 3 * (i - 96) + 96 })
            .collect();
        t.runs("three of four", &text("", &body), 128, &[0], &want);
    });
}

fn barrier_faults() {
    suite("barrier faults", |t| {
        let misuse = |k: &FaultKind| matches!(k, FaultKind::BarrierMisuse { .. });
        let divergent = |k: &FaultKind| matches!(k, FaultKind::DivergentBarrier { .. });
        type Kind<'a> = &'a dyn Fn(&FaultKind) -> bool;
        let rows: [(&str, Kind); 12] = [
            // Barriers are 0 to 15; a count is a multiple of the warp size, and not zero.
            ("bar.sync 16; // BAD", &misuse),
            ("bar.sync %r4; // BAD", &misuse),
            ("bar.sync 0, 33; // BAD", &misuse),
            ("bar.sync 0, 0; // BAD", &misuse),
            ("bar.sync 0, 96; // BAD", &misuse),
            ("bar.arrive 0, 48; // BAD", &misuse),
            ("bar.sync %t; // BAD", &misuse),
            // .aligned: all threads of the warp execute the same barrier.
            (
                "setp.lt.u32 %p, %lane, 5; @%p bar.sync 0; // BAD\nbar.warp.sync -1;",
                &divergent,
            ),
            (
                "setp.lt.u32 %p, %t, 5; @!%p bra OVER;\nbar.sync 0; // BAD\nOVER: add.u32 %r5, %r5, 1;",
                &divergent,
            ),
            (
                "setp.lt.u32 %p, %t, 5; @!%p bra OVER;\nbarrier.sync.aligned 0; // BAD\nOVER: add.u32 %r5, %r5, 1;",
                &divergent,
            ),
            // Nobody else comes.
            (
                "setp.ge.u32 %p, %t, 32; @%p bra OVER;\nbar.sync 1, 64; // BAD\nOVER:",
                &|k| matches!(k, FaultKind::Deadlock { waiters } if waiters.len() == 1),
            ),
            (
                "setp.ge.u32 %p, %lane, 5; @%p bra OVER; bar.warp.sync -1; bra DONE;\nOVER: bar.warp.sync 0xffffffe0;\nbar.sync 0; // BAD\nDONE:",
                &divergent,
            ),
        ];
        for (code, kind) in rows {
            let body = format!("mov.u32 %r4, 20; mov.u32 %r5, 0;\n{code}");
            t.fault(code, &text("", &body), 64, &[0], kind);
        }
        // A mask must name the lane that executes.
        let code = "bar.warp.sync 0xfffffffe; // BAD";
        t.fault(code, &text("", code), 32, &[0], |k| {
            matches!(k, FaultKind::BadMask(_))
        });
        // Different counts at one barrier.
        let body = "setp.ge.u32 %p, %t, 64; @%p exit; setp.lt.u32 %p, %t, 32; @%p bra A; bar.sync 1, 64; bra B; A: bar.sync 1, 96; B:";
        let fault = launched(&text("", body), 96).expect_err("counts differ");
        t.same("counts", &[misuse(&fault.kind)], &[true]);
    });
}

fn functions_of_a_module() {
    suite("module", |t| {
        // Kernels of one module share its functions.
        let text = format!(
            "{HEADER}{FUNCTION}
            .visible .entry other(.param .u64 a, .param .u64 b) {{ trap; }}
            .visible .entry k(.param .u64 p_in, .param .u64 p_out) {{
            .reg .b64 %rd<4>; .reg .b32 %r<8>;
            ld.param.u64 %rd1, [p_out]; mov.u32 %r1, %tid.x; mad.wide.u32 %rd2, %r1, 8, %rd1;
            {} st.global.u32 [%rd2], %r2;
            ret; }}",
            call("twist", &["%r1", "17"], "%r2")
        );
        let want: Vec<u64> = (0..32).map(|i| u64::from(twist(i, 17))).collect();
        t.runs("two kernels", &text, 32, &[0], &want);
    });
}

/// Lanes that parted meet again, though all that follows is a loop and the end of the kernel.
fn lanes_meet_before_a_last_loop() {
    let text = format!(
        "{HEADER}.visible .entry k() {{
            .reg .pred %p<3>; .reg .b32 %r<4>;
            mov.u32 %r0, %tid.x;
            setp.ne.u32 %p0, %r0, 0;
            @%p0 bra MEET;
            add.u32 %r1, %r0, 7;
            MEET: mov.u32 %r2, 0;
            LOOP: add.u32 %r2, %r2, 1;
            setp.lt.u32 %p1, %r2, 10;
            @%p1 bra LOOP;
            ret;
        }}"
    );
    let module = parse(&text).expect("parses");
    let config = LaunchConfig::new(1, 32);
    let report = module
        .launch(&Memory::new(), "k", &config, Params::new().as_bytes())
        .expect("runs");
    suite("lanes of a last loop", |t| {
        // A branch counts the lanes that take it.
        let guarded = |instruction: &str| instruction.starts_with('@');
        let lines = report.lines.iter();
        for line in lines.filter(|line| !guarded(&line.instruction)) {
            let (warps, lanes) = (
                line.counters.warp_instructions,
                line.counters.lane_instructions,
            );
            // All lanes at once, but for the one that parts.
            let parts = line.instruction.starts_with("add.u32 %r1");
            let of_warp = if parts { 1 } else { 32 };
            t.same(&line.instruction, &[lanes], &[of_warp * warps]);
        }
    });
}

/// Lanes that parted meet again, though some might have ended on the way.
fn an_early_exit_does_not_keep_lanes_from_meeting() {
    let text = format!(
        "{HEADER}.visible .entry k() {{
            .reg .pred %p<3>; .reg .b32 %r<4>;
            mov.u32 %r0, %tid.x;
            setp.ne.u32 %p0, %r0, 0;
            setp.gt.u32 %p1, %r0, 99;
            @%p0 bra MEET;
            @%p1 bra DIE;
            add.u32 %r1, %r0, 7;
            MEET: mov.u32 %r2, 5;
            mov.u32 %r3, 6;
            ret;
            DIE: trap;
        }}"
    );
    let module = parse(&text).expect("parses");
    let config = LaunchConfig::new(1, 32);
    let report = module
        .launch(&Memory::new(), "k", &config, Params::new().as_bytes())
        .expect("runs");
    suite("lanes after an early exit", |t| {
        for after in ["mov.u32 %r2, 5", "mov.u32 %r3, 6"] {
            let mut lines = report.lines.iter();
            let line = lines.find(|line| line.instruction.starts_with(after));
            let counted = line.map(|line| {
                let c = &line.counters;
                (c.warp_instructions, c.lane_instructions)
            });
            t.same(after, &[counted], &[Some((1, 32))]);
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        predicated_registers,
        predicated_stores,
        predicated_warp_instructions,
        setp_combinations,
        random_programs,
        branches,
        calls,
        barriers,
        barrier_reductions,
        producer_and_consumer,
        barrier_faults,
        functions_of_a_module,
        lanes_meet_before_a_last_loop,
        an_early_exit_does_not_keep_lanes_from_meeting
    ]
}
