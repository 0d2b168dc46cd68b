//! ISA: Data Movement and Conversion Instructions: Asynchronous copy: cp.async,
//! cp.async.commit_group, cp.async.wait_group / cp.async.wait_all, cp.async.mbarrier.arrive.

use crate::harness::{parse, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::{Access, Checks, FaultKind, LaunchConfig, Memory, Params, Space};

/// What lies at the destinations before a copy.
const OLD: u64 = 0xeeee_eeee_eeee_eeee;

/// Thread t's source, `%rd0`, and destination, `%r40`, are its 16 bytes at `%in` and `sm`;
/// `%rd4` is where its two output words go. The destination holds `OLD`.
const SETUP: &str = "
    mad.wide.u32 %rd0, %t, 16, %in;
    mad.wide.u32 %rd4, %t, 16, %out;
    mov.u32 %r40, sm; mad.lo.u32 %r40, %t, 16, %r40;
    mov.b64 %rd5, 0xeeeeeeeeeeeeeeee;
    st.shared.v2.b64 [%r40], {%rd5, %rd5};
";
const STORE: &str = "
    ld.shared.v2.b64 {%rd1, %rd2}, [%r40];
    st.global.v2.b64 [%rd4], {%rd1, %rd2};";

/// Two words per thread without a zero byte.
fn source(threads: u64) -> Vec<u64> {
    (0..2 * threads)
        .map(|i| 0x0807_0605_0403_0201 + 0x0101_0101_0101_0101 * i)
        .collect()
}

/// A thread's destination after a copy of `size` bytes of which only `len` are read.
fn landed(words: &[u64], len: u32, size: u32) -> [u64; 2] {
    let of = |low: u64, high: u64| u128::from(high) << 64 | u128::from(low);
    let low = |bytes: u32| u128::MAX.checked_shr(128 - 8 * bytes).unwrap_or(0);
    let x = of(words[0], words[1]) & low(len) | of(OLD, OLD) & !low(size);
    [x as u64, (x >> 64) as u64]
}

fn pending(access: Access) -> impl Fn(&FaultKind) -> bool {
    move |k| matches!(k, FaultKind::AsyncPending { access: a, .. } if *a == access)
}

fn sizes() {
    suite("copy sizes", |t| {
        // .ca copies 4, 8 or 16 bytes and .cg 16; prefetch sizes and policies are hints.
        let policy = "createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;";
        for (op, size, extra) in [
            ("ca.shared.global", 4, ""),
            ("ca.shared.global", 8, ""),
            ("ca.shared.global", 16, ""),
            ("cg.shared.global", 16, ""),
            ("ca.shared::cta.global", 4, ""),
            ("cg.shared::cta.global", 16, ""),
            ("ca.shared.global.L2::64B", 8, ""),
            ("ca.shared.global.L2::128B", 16, ""),
            ("cg.shared.global.L2::256B", 16, ""),
            ("cg.shared.global.L2::cache_hint", 16, ", %rd9"),
            ("ca.shared.global.L2::cache_hint.L2::128B", 4, ", %rd9"),
        ] {
            let body = format!(
                "{SETUP} {policy}
                cp.async.{op} [%r40], [%rd0], {size}{extra};
                cp.async.wait_all; {STORE}"
            );
            let src = source(40);
            let want: Vec<u64> = src.chunks(2).flat_map(|w| landed(w, size, size)).collect();
            t.runs(
                &format!("cp.async.{op} {size}"),
                &text("", &body),
                40,
                &src,
                &want,
            );
        }
        // Offsets of registers and of variables.
        let body = format!(
            "{SETUP}
            cp.async.ca.shared.global [%r40+12], [%rd0+4], 4;
            cp.async.ca.shared.global [sm+8], [%rd0+12], 4;
            cp.async.wait_all; {STORE}"
        );
        t.runs(
            "offsets",
            &text("", &body),
            1,
            &source(1),
            &[OLD, 0x0807_0605_0908_0706],
        );
        // A predicate selects the threads that copy.
        let body = format!(
            "{SETUP} and.b32 %r0, %t, 1; setp.eq.u32 %p, %r0, 0;
            @!%p cp.async.cg.shared.global [%r40], [%rd0], 16;
            cp.async.wait_all; {STORE}"
        );
        let src = source(32);
        let want: Vec<u64> = src
            .chunks(2)
            .enumerate()
            .flat_map(|(i, w)| landed(w, if i % 2 == 1 { 16 } else { 0 }, i as u32 % 2 * 16))
            .collect();
        t.runs("predicated", &text("", &body), 32, &src, &want);
    });
}

fn zero_fill() {
    suite("copy zero fill", |t| {
        for (op, size) in [("ca", 4u32), ("ca", 8), ("ca", 16), ("cg", 16)] {
            // src-size bytes are copied and the rest of cp-size is zeros. Thread t copies t bytes.
            let threads = size + 1;
            let src = source(u64::from(threads));
            let body = format!(
                "{SETUP} cp.async.{op}.shared.global [%r40], [%rd0], {size}, %t;
                cp.async.wait_all; {STORE}"
            );
            let want: Vec<u64> = src
                .chunks(2)
                .enumerate()
                .flat_map(|(i, w)| landed(w, i as u32, size))
                .collect();
            t.runs(
                &format!("{op} {size}, register"),
                &text("", &body),
                threads,
                &src,
                &want,
            );
            for len in [0, 1, size - 1, size] {
                let body = format!(
                    "{SETUP} cp.async.{op}.shared.global.L2::128B [%r40], [%rd0], {size}, {len};
                    cp.async.wait_all; {STORE}"
                );
                t.runs(
                    &format!("{op} {size}, {len}"),
                    &text("", &body),
                    1,
                    &src,
                    &landed(&src, len, size),
                );
            }
            // ignore-src: where it is true, zeros are written.
            for (guard, kept) in [("%p", 0), ("!%p", 1)] {
                let body = format!(
                    "{SETUP} and.b32 %r0, %t, 1; setp.eq.u32 %p, %r0, 1;
                    cp.async.{op}.shared.global [%r40], [%rd0], {size}, {guard};
                    cp.async.wait_all; {STORE}"
                );
                let want: Vec<u64> = src
                    .chunks(2)
                    .enumerate()
                    .flat_map(|(i, w)| landed(w, if i % 2 == kept { size } else { 0 }, size))
                    .collect();
                t.runs(
                    &format!("{op} {size}, {guard}"),
                    &text("", &body),
                    threads,
                    &src,
                    &want,
                );
            }
            // Both optional operands: a policy comes last.
            let body = format!(
                "{SETUP} mov.b64 %rd9, 0;
                cp.async.{op}.shared.global.L2::cache_hint [%r40], [%rd0], {size}, 3, %rd9;
                cp.async.wait_all; {STORE}"
            );
            t.runs(
                &format!("{op} {size}, 3, policy"),
                &text("", &body),
                1,
                &src,
                &landed(&src, 3, size),
            );
        }
        // Bytes that are not copied are not read: the source may end there.
        for (at, len) in [(12u32, 4), (16, 0)] {
            let body = format!(
                "{SETUP} mov.u32 %r1, {len}; add.u64 %rd0, %in, {};
                cp.async.cg.shared.global [%r40], [%rd0], 16, %r1;
                cp.async.wait_all; {STORE}",
                at & !15
            );
            let words = source(1);
            let words = &words[..if at == 12 { 2 } else { 1 }];
            let want = landed(&[words[0], 0], len, 16);
            t.runs("source that ends", &text("", &body), 1, words, &want);
        }
        // The destination of zeros is as pending as any other.
        let body = format!(
            "{SETUP} cp.async.cg.shared.global [%r40], [%rd0], 16, 0;
            ld.shared.b64 %rd1, [%r40]; // BAD"
        );
        t.fault(
            "zeros pend",
            &text("", &body),
            1,
            &source(1),
            pending(Access::Read),
        );
    });
}

fn bad_addresses() {
    suite("copy addresses", |t| {
        for (size, op) in [(4, "ca"), (8, "ca"), (16, "cg")] {
            // ISA: Operands: Addresses as Operands. An address is a multiple of the access size.
            let half = size / 2;
            let body = format!(
                "{SETUP} cp.async.{op}.shared.global [%r40+{half}], [%rd0], {size}; // BAD"
            );
            t.fault("destination", &text("", &body), 1, &source(4), |k| {
                matches!(k, FaultKind::Misaligned { space: Space::Shared, align, .. } if *align == size)
            });
            let body = format!(
                "{SETUP} cp.async.{op}.shared.global [%r40], [%rd0+{half}], {size}; // BAD"
            );
            t.fault("source", &text("", &body), 1, &source(4), |k| {
                matches!(k, FaultKind::Misaligned { space: Space::Global, align, .. } if *align == size)
            });
            let body =
                format!("{SETUP} cp.async.{op}.shared.global [%r40], [%rd0+16], {size}; // BAD");
            t.fault("source's end", &text("", &body), 1, &source(1), |k| {
                matches!(
                    k,
                    FaultKind::OutOfBounds {
                        space: Space::Global,
                        access: Access::Read,
                        ..
                    }
                )
            });
            let body =
                format!("{SETUP} cp.async.{op}.shared.global [%r40+16384], [%rd0], {size}; // BAD");
            t.fault("destination's end", &text("", &body), 1, &source(1), |k| {
                matches!(
                    k,
                    FaultKind::OutOfBounds {
                        space: Space::Shared,
                        ..
                    }
                )
            });
        }
    });
}

/// `groups` copies of 16 bytes of thread 0, each committed by itself, word pairs in order.
fn groups(n: u64) -> String {
    (0..n).fold(SETUP.to_owned(), |s, i| {
        let at = 16 * i;
        s + &format!(
            "cp.async.cg.shared.global [sm+{at}], [%in+{at}], 16; cp.async.commit_group;\n"
        )
    })
}

fn wait_group() {
    suite("wait_group", |t| {
        const K: u64 = 4;
        let src = source(K);
        for n in 0..=K + 1 {
            // All but the n newest groups are complete.
            let landed = K.saturating_sub(n);
            let mut body = groups(K) + &format!("cp.async.wait_group {n};\n");
            for i in 0..landed {
                let at = 16 * i;
                body += &format!(
                    "ld.shared.v2.b64 {{%rd1, %rd2}}, [sm+{at}]; st.global.v2.b64 [%out+{at}], {{%rd1, %rd2}};\n"
                );
            }
            t.runs(
                &format!("wait_group {n}"),
                &text("", &body),
                1,
                &src,
                &src[..2 * landed as usize],
            );
            for i in landed..K {
                let at = 16 * i;
                let read = body.clone() + &format!("ld.shared.b8 %r0, [sm+{}]; // BAD", at + 15);
                t.fault(
                    &format!("wait_group {n}, read {i}"),
                    &text("", &read),
                    1,
                    &src,
                    pending(Access::Read),
                );
                let write = body.clone() + &format!("st.shared.b8 [sm+{at}], 1; // BAD");
                t.fault(
                    &format!("wait_group {n}, write {i}"),
                    &text("", &write),
                    1,
                    &src,
                    pending(Access::Write),
                );
                let again = body.clone()
                    + &format!("cp.async.ca.shared.global [sm+{at}], [%in], 4; // BAD");
                t.fault(
                    &format!("wait_group {n}, copy onto {i}"),
                    &text("", &again),
                    1,
                    &src,
                    pending(Access::AsyncWrite),
                );
            }
        }
    });
}

fn groups_and_waits() {
    // Code after a copy of 16 bytes to `sm`, and whether the copy has landed after it.
    let rows = [
        // wait_group waits for groups, wait_all for all copies.
        ("", false),
        ("cp.async.commit_group;", false),
        ("cp.async.wait_group 0;", false),
        ("cp.async.wait_all;", true),
        ("cp.async.commit_group; cp.async.wait_all;", true),
        ("cp.async.commit_group; cp.async.wait_group 0;", true),
        ("cp.async.commit_group; cp.async.wait_group 1;", false),
        // A copy that is not yet part of a group is not waited for by an older group.
        ("cp.async.wait_group 0; cp.async.commit_group;", false),
        // A group may be empty, and counts.
        (
            "cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 1;",
            true,
        ),
        (
            "cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 2;",
            false,
        ),
        (
            "cp.async.commit_group; cp.async.commit_group; cp.async.commit_group; cp.async.wait_group 2;",
            true,
        ),
        // One group of several copies, which complete together.
        (
            "cp.async.ca.shared.global [sm+64], [%in], 4; cp.async.commit_group; cp.async.wait_group 0;",
            true,
        ),
        (
            "cp.async.ca.shared.global [sm+64], [%in], 4; cp.async.commit_group; cp.async.wait_group 1;",
            false,
        ),
        // A newer copy in a group of its own, or in none.
        (
            "cp.async.commit_group; cp.async.ca.shared.global [sm+64], [%in], 4; cp.async.wait_group 0;",
            true,
        ),
        (
            "cp.async.commit_group; cp.async.ca.shared.global [sm+64], [%in], 4; cp.async.commit_group; cp.async.wait_group 1;",
            true,
        ),
        (
            "cp.async.commit_group; cp.async.ca.shared.global [sm+64], [%in], 4; cp.async.commit_group; cp.async.wait_group 2;",
            false,
        ),
        // Neither a barrier nor a fence waits for a copy.
        ("cp.async.commit_group; bar.sync 0;", false),
        (
            "cp.async.commit_group; membar.sys; bar.warp.sync -1;",
            false,
        ),
        // Predicated off, nothing happens.
        (
            "@!%p cp.async.commit_group; @%p cp.async.wait_group 0;",
            false,
        ),
        (
            "@%p cp.async.commit_group; @!%p cp.async.wait_group 0;",
            false,
        ),
        (
            "@%p cp.async.commit_group; @!%p cp.async.commit_group; @%p cp.async.wait_group 0;",
            true,
        ),
        ("@!%p cp.async.wait_all;", false),
        ("@%p cp.async.wait_all;", true),
    ];
    suite("groups_and_waits", |t| {
        let src = source(32);
        let before = "setp.eq.u32 %p, %t, %t;
            cp.async.wait_all; cp.async.wait_group 0; cp.async.wait_group 7;";
        for (code, landed) in rows {
            // With empty groups before it as well.
            for groups in 0..3 {
                let body = format!(
                    "{SETUP} {before} {}
                    cp.async.cg.shared.global [%r40], [%rd0], 16;
                    {}
                    ld.shared.v2.b64 {{%rd1, %rd2}}, [%r40]; // BAD
                    st.global.v2.b64 [%rd4], {{%rd1, %rd2}};",
                    "cp.async.commit_group;\n".repeat(groups),
                    // The copies beside it go to bytes of each thread's own.
                    code.replace("[sm+64]", "[%r40+1024]")
                );
                let text = text("", &body);
                if landed {
                    t.runs(code, &text, 32, &src, &src);
                } else {
                    t.fault(code, &text, 32, &src, pending(Access::Read));
                }
            }
        }
    });
}

fn without_checks() {
    suite("copies without checks", |t| {
        // What has not been waited for has not landed: the old bytes are read.
        let body = groups(2)
            + "cp.async.wait_group 1;
            ld.shared.b64 %rd1, [sm]; ld.shared.b64 %rd2, [sm+24];
            st.global.b64 [%out], %rd1; st.global.b64 [%out+8], %rd2;
            cp.async.wait_group 0;
            ld.shared.b64 %rd1, [sm+24]; st.global.b64 [%out+16], %rd1;";
        let body = body.replacen(
            "cp.async.cg",
            "st.shared.v2.b64 [sm+16], {%rd5, %rd5}; cp.async.cg",
            1,
        );
        let memory = Memory::new();
        let src = source(2);
        let input = memory.upload(&src).expect("memory");
        let output = memory.alloc_zeroed(24).expect("memory");
        parse(&text("", &body))
            .expect("parses")
            .launch(
                &memory,
                "k",
                &LaunchConfig::new(1, 1).checks(Checks::none()),
                Params::new().arg(input).arg(output).as_bytes(),
            )
            .expect("runs");
        let got: Vec<u64> = memory.download(output, 3).expect("memory");
        t.same("old bytes", &got, &[src[0], OLD, src[3]]);
    });
}

fn groups_of_threads() {
    suite("groups_of_threads", |t| {
        let src = source(64);
        // Odd threads commit one group more, so for them alone `wait_group 1` covers the copy.
        let body = format!(
            "{SETUP} and.b32 %r0, %t, 1; setp.eq.u32 %p, %r0, 1;
            cp.async.cg.shared.global [%r40], [%rd0], 16;
            cp.async.commit_group;
            @%p cp.async.commit_group;
            cp.async.wait_group 1;\n"
        );
        let odd = body.clone()
            + "@!%p bra DONE;
            ld.shared.v2.b64 {%rd1, %rd2}, [%r40]; st.global.v2.b64 [%rd4], {%rd1, %rd2};
            DONE:";
        let want: Vec<u64> = (0..128)
            .map(|i| if i / 2 % 2 == 1 { src[i] } else { 0 })
            .collect();
        t.runs("odd threads", &text("", &odd), 64, &src, &want);
        let even = body + "@!%p ld.shared.b64 %rd1, [%r40]; // BAD";
        t.fault(
            "even threads",
            &text("", &even),
            64,
            &src,
            pending(Access::Read),
        );
        // Waits are each thread's own: all wait, then a barrier, and everybody sees everything.
        let other = "xor.b32 %r0, %t, 33; mov.u32 %r1, sm; mad.lo.u32 %r1, %r0, 16, %r1;";
        let copy = format!("{SETUP} {other} cp.async.cg.shared.global [%r40], [%rd0], 16;");
        let read = "ld.shared.v2.b64 {%rd1, %rd2}, [%r1]; // BAD
            st.global.v2.b64 [%rd4], {%rd1, %rd2};";
        let want: Vec<u64> = (0..128).map(|i| src[i ^ 66]).collect();
        for wait in [
            "cp.async.wait_all;",
            "cp.async.commit_group; cp.async.wait_group 0;",
        ] {
            let body = format!("{copy} {wait} bar.sync 0;\n{read}");
            t.runs("wait and barrier", &text("", &body), 64, &src, &want);
        }
        // The wait of half of the threads does not cover the others' copies.
        let body =
            format!("{copy} setp.lt.u32 %p, %t, 32; @%p cp.async.wait_all; bar.sync 0;\n{read}");
        t.fault(
            "half of the waits",
            &text("", &body),
            64,
            &src,
            pending(Access::Read),
        );
        // A wait after the barrier is too late for the other threads, and without a barrier
        // another warp's copy is not ordered at all.
        let body = format!("{copy} cp.async.commit_group; bar.sync 0;\n{read}");
        t.fault(
            "barrier alone",
            &text("", &body),
            64,
            &src,
            pending(Access::Read),
        );
        let body = format!("{copy} cp.async.wait_all;\n{read}");
        t.fault("wait alone", &text("", &body), 64, &src, |k| {
            matches!(
                k,
                FaultKind::Race { .. }
                    | FaultKind::AsyncPending { .. }
                    | FaultKind::Uninitialised { .. }
            )
        });
    });
}

fn pipeline() {
    suite("copy pipeline", |t| {
        // Three buffers per thread, two groups in flight: the sum of all steps.
        const STEPS: u64 = 9;
        let mut body = format!(
            "{SETUP} mov.u32 %r10, 0; mov.u32 %r11, sm; mad.lo.u32 %r11, %t, 16, %r11;
            mul.wide.u32 %rd10, %t, {}; add.u64 %rd10, %in, %rd10; mov.u64 %rd11, 0;\n",
            8 * STEPS
        );
        let fetch = |i: u64| {
            let copy = format!(
                "cp.async.ca.shared.global [%r11+{}], [%rd10+{}], 8;",
                i % 3 * 1024,
                8 * i
            );
            // Past the end an empty group keeps the count.
            format!(
                "{} cp.async.commit_group;\n",
                if i < STEPS { copy.as_str() } else { "" }
            )
        };
        body += &(fetch(0) + &fetch(1));
        for i in 0..STEPS {
            body += &format!(
                "{} cp.async.wait_group 2; ld.shared.u64 %rd12, [%r11+{}];
                mad.lo.u64 %rd11, %rd12, {}, %rd11;\n",
                fetch(i + 2),
                i % 3 * 1024,
                i + 1
            );
        }
        body += "mad.wide.u32 %rd13, %t, 8, %out; st.global.u64 [%rd13], %rd11;";
        let src: Vec<u64> = (0..64 * STEPS).map(|i| i * i + 1).collect();
        let want: Vec<u64> = src
            .chunks(STEPS as usize)
            .map(|c| (1..).zip(c).map(|(i, v)| i * v).sum())
            .collect();
        let text = text("", &body);
        t.runs("pipeline", &text, 64, &src, &want);
        // One group fewer to wait for, and a copy is read that may not have landed.
        let late = text.replacen("wait_group 2; ld", "wait_group 3; // BAD\nld", 1);
        let late = late.replace(" // BAD", "").replacen(
            "ld.shared.u64 %rd12, [%r11+0];",
            "ld.shared.u64 %rd12, [%r11+0]; // BAD\n",
            1,
        );
        t.fault("late", &late, 64, &src, pending(Access::Read));
    });
}

/// Waits for the phase of parity 0 of the mbarrier at `mb`.
const WAIT: &str = "
    WAIT: mbarrier.try_wait.parity.shared.b64 %q, [mb], 0; @!%q bra WAIT;\n";
const MB: &str = ".shared .align 8 .b64 mb;";

fn init(count: u32) -> String {
    format!(
        "{SETUP} setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [mb], {count}; bar.sync 0;\n"
    )
}

fn mbarrier_arrive() {
    suite("cp.async.mbarrier.arrive", |t| {
        let src = source(64);
        let copy = "cp.async.cg.shared.global [%r40], [%rd0], 16;";
        let other = "xor.b32 %r0, %t, 33; mov.u32 %r1, sm; mad.lo.u32 %r1, %r0, 16, %r1;";
        let read = "ld.shared.v2.b64 {%rd1, %rd2}, [%r1]; // BAD
            st.global.v2.b64 [%rd4], {%rd1, %rd2};";
        let want: Vec<u64> = (0..128).map(|i| src[i ^ 66]).collect();
        for space in ["shared", "shared::cta"] {
            // .noinc: the arrival is one of those that the count of the object is for.
            let body = format!(
                "{} {other} {copy} cp.async.mbarrier.arrive.noinc.{space}.b64 [mb]; {WAIT} {read}",
                init(64)
            );
            t.runs("noinc", &text(MB, &body), 64, &src, &want);
            // Without it the pending count is incremented first: no net change, so that the
            // threads' own arrivals make up the count.
            let body = format!(
                "{} {other} {copy} cp.async.mbarrier.arrive.{space}.b64 [mb];
                mbarrier.arrive.{space}.b64 %rd8, [mb]; {WAIT} {read}",
                init(64)
            );
            t.runs("inc", &text(MB, &body), 64, &src, &want);
        }
        // It tracks the copies before it, in groups or not.
        let body = format!(
            "{} {other} {copy} cp.async.commit_group;
            cp.async.mbarrier.arrive.noinc.shared.b64 [mb]; {WAIT} {read}",
            init(64)
        );
        t.runs("groups", &text(MB, &body), 64, &src, &want);
        // A copy after it is not tracked.
        let body = format!(
            "{} cp.async.mbarrier.arrive.noinc.shared.b64 [mb]; {copy} {WAIT}
            ld.shared.b64 %rd1, [%r40]; // BAD",
            init(64)
        );
        t.fault("later", &text(MB, &body), 64, &src, pending(Access::Read));
        // Until someone waits, the data need not be there.
        let body = format!(
            "{} {copy} cp.async.mbarrier.arrive.noinc.shared.b64 [mb];
            ld.shared.b64 %rd1, [%r40]; // BAD",
            init(64)
        );
        t.fault("no wait", &text(MB, &body), 64, &src, pending(Access::Read));
        // wait_group covers the copies still.
        let body = format!(
            "{} {copy} cp.async.mbarrier.arrive.noinc.shared.b64 [mb];
            cp.async.wait_all; {STORE}",
            init(64)
        );
        t.runs("wait_all", &text(MB, &body), 64, &src, &src);

        // The pending count, of one thread: code after an init, and whether phase 0 is complete.
        let arrive = "mbarrier.arrive.shared.b64 %rd8, [mb];";
        let tied = "cp.async.mbarrier.arrive.shared.b64 [mb];";
        let noinc = "cp.async.mbarrier.arrive.noinc.shared.b64 [mb];";
        let two = "cp.async.ca.shared.global [%r40], [%rd0], 4; cp.async.ca.shared.global [%r40+8], [%rd0], 4;";
        for (count, code, complete) in [
            (1, String::new(), 0),
            (1, tied.to_owned(), 0),
            (1, format!("{copy} {tied}"), 0),
            (1, format!("{copy} {tied} {arrive}"), 1),
            (1, format!("{arrive} {copy} {tied}"), 1),
            (1, noinc.to_owned(), 1),
            (1, format!("{copy} {noinc}"), 1),
            // One arrival, however many copies.
            (2, format!("{two} {noinc}"), 0),
            (2, format!("{two} {noinc} {noinc}"), 1),
            (2, format!("{copy} {noinc} {arrive}"), 1),
            (2, format!("{copy} {tied} {arrive}"), 0),
            (2, format!("{copy} {tied} {arrive} {arrive}"), 1),
            (3, format!("{copy} {noinc} {tied} {arrive}"), 0),
            (3, format!("{copy} {noinc} {tied} {arrive} {arrive}"), 1),
        ] {
            let body = format!(
                "{} {code} mbarrier.test_wait.parity.shared.b64 %q, [mb], 0;
                selp.u64 %rd1, 1, 0, %q; st.global.u64 [%out], %rd1;",
                init(count)
            );
            t.runs(
                &format!("count {count}: {code}"),
                &text(MB, &body),
                1,
                &src,
                &[complete],
            );
        }
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        sizes,
        zero_fill,
        bad_addresses,
        wait_group,
        groups_and_waits,
        without_checks,
        groups_of_threads,
        pipeline,
        mbarrier_arrive
    ]
}
