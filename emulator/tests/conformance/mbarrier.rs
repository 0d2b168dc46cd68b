//! ISA: Parallel Synchronization and Communication Instructions: mbarrier, its contents, phases,
//! tx-count, arrive-on operation, and mbarrier.init to mbarrier.pending_count.

use crate::harness::{Rng, Suite, launch, parse, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::{FaultKind, Space};

const MB: &str = ".shared .align 8 .b64 mb; .shared .align 8 .b64 mc[32];";
const ARRIVE: &str = "mbarrier.arrive.shared.b64 %rd8, [mb];";

/// Stores whether the predicate holds as output word `i`.
fn observe(i: usize, p: &str) -> String {
    format!(
        "selp.u64 %rd1, 1, 0, {p}; st.global.u64 [%out+{}], %rd1;\n",
        8 * i
    )
}

/// One thread's code after an init of `mb`.
fn one(count: u32, code: &str) -> String {
    text(
        MB,
        &format!("mbarrier.init.shared.b64 [mb], {count};\n{code}"),
    )
}

/// The phases that are complete after some code, by the parities that test as complete: those of
/// the phase before the current one.
fn phase(t: &mut Suite, count: u32, code: &str, phase: u64) {
    let code = format!(
        "{code}
        mbarrier.test_wait.parity.shared.b64 %p, [mb], 0; {}
        mbarrier.test_wait.parity.shared.b64 %p, [mb], 1; {}",
        observe(0, "%p"),
        observe(1, "%p")
    );
    t.runs(
        &format!("count {count}: {code}"),
        &one(count, &code),
        1,
        &[0],
        &[phase % 2, 1 - phase % 2],
    );
}

fn arrivals() {
    suite("mbarrier arrivals", |t| {
        // A phase is complete when its pending count is zero; the next one starts with the count
        // of the object again.
        for count in [1, 2, 3, 7] {
            for arrivals in 0..=3 * count {
                phase(
                    t,
                    count,
                    &ARRIVE.repeat(arrivals as usize),
                    u64::from(arrivals / count),
                );
            }
        }
        // Counts, and the forms of the instructions.
        for (count, code, want) in [
            (5, "mbarrier.arrive.shared.b64 %rd8, [mb], 5;", 1),
            (5, "mbarrier.arrive.shared.b64 %rd8, [mb], 4;", 0),
            (
                5,
                "mov.u32 %r0, 2; mbarrier.arrive.shared.b64 %rd8, [mb], %r0; mbarrier.arrive.shared.b64 %rd8, [mb], 3;",
                1,
            ),
            (
                0xf_ffff,
                "mbarrier.arrive.shared.b64 %rd8, [mb], 0xffffe;",
                0,
            ),
            (
                0xf_ffff,
                "mbarrier.arrive.shared.b64 %rd8, [mb], 0xfffff;",
                1,
            ),
            (1, "mbarrier.arrive.shared::cta.b64 %rd8, [mb];", 1),
            (1, "mbarrier.arrive.shared::cluster.b64 _, [mb];", 1),
            (2, "mbarrier.arrive.shared::cluster.b64 _, [mb], 2;", 1),
            (
                1,
                "mbarrier.arrive.release.cta.shared::cta.b64 %rd8, [mb];",
                1,
            ),
            (
                1,
                "mbarrier.arrive.release.cluster.shared::cta.b64 %rd8, [mb];",
                1,
            ),
            (
                1,
                "mbarrier.arrive.relaxed.cta.shared::cta.b64 %rd8, [mb];",
                1,
            ),
            (
                1,
                "mov.u32 %r0, mb; mbarrier.arrive.shared.b64 %rd8, [%r0];",
                1,
            ),
            (
                1,
                "mov.u32 %r0, mb; sub.u32 %r0, %r0, 16; mbarrier.arrive.shared.b64 %rd8, [%r0+16];",
                1,
            ),
            // Without a state space the address is generic.
            (
                1,
                "mov.u64 %rd2, mb; cvta.shared.u64 %rd2, %rd2; mbarrier.arrive.b64 %rd8, [%rd2];",
                1,
            ),
            // .noComplete must not complete the phase.
            (2, "mbarrier.arrive.noComplete.shared.b64 %rd8, [mb], 1;", 0),
            (
                5,
                "mbarrier.arrive.noComplete.shared::cta.b64 %rd8, [mb], 4; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (
                5,
                "mbarrier.arrive.noComplete.release.cta.shared::cta.b64 %rd8, [mb], 3; mbarrier.arrive.shared.b64 %rd8, [mb];",
                0,
            ),
            // arrive_drop is an arrival, and the phases after it expect one fewer.
            (2, "mbarrier.arrive_drop.shared.b64 %rd8, [mb];", 0),
            (
                2,
                "mbarrier.arrive_drop.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (
                2,
                "mbarrier.arrive_drop.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                2,
            ),
            (
                3,
                "mbarrier.arrive_drop.shared.b64 %rd8, [mb], 2; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                2,
            ),
            (
                3,
                "mbarrier.arrive.shared.b64 %rd8, [mb], 2; mbarrier.arrive_drop.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (
                3,
                "mbarrier.arrive.shared.b64 %rd8, [mb], 2; mbarrier.arrive_drop.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb], 2;",
                2,
            ),
            (
                3,
                "mbarrier.arrive_drop.noComplete.shared.b64 %rd8, [mb], 2; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                2,
            ),
            (
                2,
                "mbarrier.arrive_drop.release.cta.shared::cta.b64 %rd8, [mb]; mbarrier.arrive_drop.shared::cluster.b64 _, [mb];",
                1,
            ),
            // Bytes: a phase with some missing is not complete.
            (
                1,
                "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mb], 16; mbarrier.arrive.shared.b64 %rd8, [mb];",
                0,
            ),
            (
                1,
                "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mb], 16; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [mb], 12;",
                0,
            ),
            (
                1,
                "mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [mb], 16; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [mb], 12; mbarrier.complete_tx.shared.b64 [mb], 4;",
                1,
            ),
            (
                1,
                "mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [mb], 16; mbarrier.complete_tx.relaxed.cluster.shared::cluster.b64 [mb], 16; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (1, "mbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], 8;", 0),
            (
                1,
                "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %rd8, [mb], 8; mbarrier.complete_tx.shared.b64 [mb], 8;",
                1,
            ),
            (
                1,
                "mbarrier.arrive.expect_tx.shared::cluster.b64 _, [mb], 8; mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb];",
                2,
            ),
            // The count of .expect_tx is bytes; it arrives once.
            (
                2,
                "mbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], 8; mbarrier.complete_tx.shared.b64 [mb], 8;",
                0,
            ),
            (1, "mbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], 0;", 1),
            (
                2,
                "mbarrier.arrive_drop.expect_tx.shared.b64 %rd8, [mb], 8; mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb];",
                2,
            ),
            // The tx-count may go below zero for a while.
            (
                1,
                "mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.expect_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (
                1,
                "mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb];",
                0,
            ),
            (
                1,
                "mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], 8;",
                1,
            ),
            (
                1,
                "mbarrier.complete_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb]; mbarrier.expect_tx.shared.b64 [mb], 8;",
                1,
            ),
            // inval, and a new life as any other object.
            (
                3,
                "mbarrier.arrive.shared.b64 %rd8, [mb], 3; mbarrier.inval.shared.b64 [mb]; mbarrier.init.shared.b64 [mb], 2; mbarrier.arrive.shared.b64 %rd8, [mb];",
                0,
            ),
            (
                3,
                "mbarrier.inval.shared::cta.b64 [mb]; mbarrier.init.shared::cta.b64 [mb], 1; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
            (
                3,
                "mov.u64 %rd2, mb; cvta.shared.u64 %rd2, %rd2; mbarrier.inval.b64 [%rd2]; mbarrier.init.b64 [%rd2], 1; mbarrier.arrive.shared.b64 %rd8, [mb];",
                1,
            ),
        ] {
            phase(t, count, code, want);
        }
    });
}

fn waits() {
    suite("mbarrier waits", |t| {
        // test_wait and try_wait, by state and by parity.
        let forms = [
            "test_wait.shared.b64 %p, [mb], %rd8",
            "test_wait.acquire.cta.shared::cta.b64 %p, [mb], %rd8",
            "test_wait.relaxed.cta.shared::cta.b64 %p, [mb], %rd8",
            "test_wait.parity.shared.b64 %p, [mb], %r1",
            "test_wait.parity.acquire.cluster.shared::cta.b64 %p, [mb], %r1",
            "try_wait.shared.b64 %p, [mb], %rd8",
            "try_wait.shared::cta.b64 %p, [mb], %rd8, 1000",
            "try_wait.acquire.cluster.shared::cta.b64 %p, [mb], %rd8, %r2",
            "try_wait.relaxed.cta.shared::cta.b64 %p, [mb], %rd8",
            "try_wait.parity.shared.b64 %p, [mb], %r1",
            "try_wait.parity.shared::cta.b64 %p, [mb], %r1, %r2",
            "try_wait.parity.acquire.cta.shared::cta.b64 %p, [mb], %r1, 20",
            "test_wait.b64 %p, [%rd9], %rd8",
            "try_wait.parity.b64 %p, [%rd9], %r1",
        ];
        for form in forms {
            // The state is that of the phase before the arrival: phase r, of parity r % 2.
            let mut code =
                "mov.u32 %r2, 100; mov.u64 %rd9, mb; cvta.shared.u64 %rd9, %rd9;\n".to_owned();
            let mut want = Vec::new();
            for round in 0..5 {
                code += &format!("mov.u32 %r1, {};\n", round % 2);
                code += ARRIVE;
                code += &format!("mbarrier.{form};\n{}", observe(want.len(), "%p"));
                want.push(0);
                code += "mbarrier.arrive.shared.b64 _, [mb];\n";
                code += &format!("mbarrier.{form};\n{}", observe(want.len(), "%p"));
                want.push(1);
                // The phase before the current one stays complete while that one is incomplete.
                code += &format!("mbarrier.{form};\n{}", observe(want.len(), "%p"));
                want.push(1);
            }
            t.runs(form, &one(2, &code), 1, &[0], &want);
        }
        // A loop until the phase completes; the arrival comes from another warp.
        for wait in [
            "mbarrier.try_wait.shared.b64 %q, [mb], %rd8;",
            "mbarrier.test_wait.shared.b64 %q, [mb], %rd8;",
            "mbarrier.try_wait.parity.shared.b64 %q, [mb], 0;",
            "mbarrier.test_wait.parity.shared.b64 %q, [mb], 0;",
        ] {
            let body = format!(
                "setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [mb], 64; bar.sync 0;
                mov.u32 %r0, sm; mad.lo.u32 %r1, %t, 4, %r0;
                mad.lo.u32 %r2, %t, %t, 7; st.shared.u32 [%r1], %r2;
                {ARRIVE}
                L: {wait} @!%q bra L;
                xor.b32 %r3, %t, 63; mad.lo.u32 %r3, %r3, 4, %r0;
                ld.shared.u32 %r4, [%r3]; cvt.u64.u32 %rd1, %r4;
                mad.wide.u32 %rd2, %t, 8, %out; st.global.u64 [%rd2], %rd1;"
            );
            let want: Vec<u64> = (0..64).map(|i| (63 - i) * (63 - i) + 7).collect();
            t.runs(wait, &text(MB, &body), 64, &[0], &want);
            // Without the wait it is a race.
            let race = body.replace("@!%q bra L;", "").replace(
                "ld.shared.u32 %r4, [%r3];",
                "ld.shared.u32 %r4, [%r3]; // BAD\n",
            );
            let race = race.replace(wait, "");
            t.fault("no wait", &text(MB, &race), 64, &[0], |k| {
                matches!(k, FaultKind::Race { .. } | FaultKind::Uninitialised { .. })
            });
        }
    });
}

fn states() {
    suite("mbarrier states", |t| {
        // pending_count: the count before the arrive-on operation that gave the state.
        let code = "
            mbarrier.arrive.noComplete.shared.b64 %rd10, [mb], 3;
            mbarrier.arrive.noComplete.shared.b64 %rd11, [mb], 1;
            mbarrier.arrive_drop.noComplete.shared.b64 %rd12, [mb], 2;
            mbarrier.arrive.noComplete.shared.b64 %rd13, [mb], 3;
            mbarrier.arrive.shared.b64 %rd14, [mb];
            mbarrier.arrive.noComplete.shared.b64 %rd15, [mb], 7;
            mbarrier.pending_count.b64 %r0, %rd10; mbarrier.pending_count.b64 %r1, %rd11;
            mbarrier.pending_count.b64 %r2, %rd12; mbarrier.pending_count.b64 %r3, %rd13;
            mbarrier.pending_count.b64 %r4, %rd15;
            st.global.u32 [%out], %r0; st.global.u32 [%out+8], %r1; st.global.u32 [%out+16], %r2;
            st.global.u32 [%out+24], %r3; st.global.u32 [%out+32], %r4;";
        t.runs("pending_count", &one(10, code), 1, &[0], &[10, 7, 6, 4, 8]);
        // Threads that arrive in one instruction arrive one after the other.
        let body = "setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [mb], 33; bar.sync 0;
            mbarrier.arrive.noComplete.shared.b64 %rd8, [mb], 1;
            mbarrier.pending_count.b64 %r0, %rd8;
            mov.u32 %r2, 1; sub.u32 %r3, %r0, 2; shl.b32 %r2, %r2, %r3;
            redux.sync.or.b32 %r4, %r2, -1;
            mad.wide.u32 %rd2, %t, 8, %out; st.global.u32 [%rd2], %r4;";
        t.runs(
            "every count once",
            &text(MB, body),
            32,
            &[0],
            &[0xffff_ffff; 32],
        );
        // Each lane an object of its own.
        let body = "
            mov.u32 %r0, mc; mad.lo.u32 %r0, %t, 8, %r0; add.u32 %r1, %t, 1;
            mbarrier.init.shared.b64 [%r0], %r1; bar.sync 0;
            mov.u32 %r2, mc; sub.u32 %r3, 31, %t; mad.lo.u32 %r2, %r3, 8, %r2; sub.u32 %r4, 32, %t;
            min.u32 %r4, %r4, 9;
            mbarrier.arrive.shared.b64 %rd8, [%r2], %r4; bar.sync 0;
            mbarrier.test_wait.parity.shared.b64 %p, [%r0], 0;
            selp.u64 %rd1, 1, 0, %p; mad.wide.u32 %rd2, %t, 8, %out; st.global.u64 [%rd2], %rd1;";
        let want: Vec<u64> = (0..32).map(|i| u64::from(i < 9)).collect();
        t.runs("objects of lanes", &text(MB, body), 32, &[0], &want);
        // Predicated off, nobody arrives.
        let body = format!(
            "setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [mb], 8; bar.sync 0;
            and.b32 %r0, %t, 3; setp.eq.u32 %p, %r0, 2;
            @%p {ARRIVE} bar.sync 0;
            mbarrier.test_wait.parity.shared.b64 %p, [mb], 0; setp.eq.u32 %q, %t, 0; @!%q exit; {}",
            observe(0, "%p")
        );
        t.runs("predicated, 32", &text(MB, &body), 32, &[0], &[1]);
        t.runs("predicated, 31", &text(MB, &body), 28, &[0], &[0]);
    });
}

/// What the ISA says an object holds.
struct Object {
    phase: u64,
    expected: u32,
    pending: u32,
    tx: i64,
}

impl Object {
    fn arrive(&mut self, n: u32, tx: u32, drop: bool) {
        self.tx += i64::from(tx);
        self.pending -= n;
        self.expected -= if drop { n } else { 0 };
        self.flip();
    }

    fn flip(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
        }
    }
}

fn random_histories() {
    suite("mbarrier histories", |t| {
        let mut rng = Rng(11);
        let (mut flips, mut below_zero) = (0, 0);
        for history in 0..60 {
            let count = 1 + (rng.next() % 12) as u32;
            let mut o = Object {
                phase: 0,
                expected: count,
                pending: count,
                tx: 0,
            };
            let mut code = String::new();
            let mut want = Vec::new();
            // The phase of the state in %rd8.
            let mut state = None;
            for _ in 0..80 {
                let n = 1 + (rng.next() % 4) as u32;
                let tx = (rng.next() % 3 * 16) as u32;
                match rng.next() % 12 {
                    0..=2 if n <= o.pending => {
                        code += &format!("mbarrier.arrive.shared.b64 %rd8, [mb], {n};\n");
                        state = Some(o.phase);
                        o.arrive(n, 0, false);
                    }
                    3 if n < o.pending => {
                        code += &format!(
                            "mbarrier.arrive.noComplete.shared.b64 %rd8, [mb], {n};
                            mbarrier.pending_count.b64 %r0, %rd8; st.global.u32 [%out+{}], %r0;\n",
                            8 * want.len()
                        );
                        want.push(u64::from(o.pending));
                        state = Some(o.phase);
                        o.arrive(n, 0, false);
                    }
                    4 if n <= o.pending && n < o.expected && o.expected > 4 => {
                        code += &format!("mbarrier.arrive_drop.shared.b64 %rd8, [mb], {n};\n");
                        state = Some(o.phase);
                        o.arrive(n, 0, true);
                    }
                    5 if o.pending > 0 => {
                        code +=
                            &format!("mbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], {tx};\n");
                        state = Some(o.phase);
                        o.arrive(1, tx, false);
                    }
                    6 => {
                        code += &format!("mbarrier.expect_tx.shared.b64 [mb], {tx};\n");
                        o.tx += i64::from(tx);
                        o.flip();
                    }
                    7 | 8 => {
                        // Often all that is missing.
                        let tx = if o.tx > 0 && n > 1 { o.tx as u32 } else { tx };
                        code += &format!("mbarrier.complete_tx.shared.b64 [mb], {tx};\n");
                        o.tx -= i64::from(tx);
                        below_zero += u32::from(o.tx < 0);
                        o.flip();
                    }
                    9 | 10 => {
                        let parity = rng.next() % 2;
                        code += &format!(
                            "mbarrier.test_wait.parity.shared.b64 %p, [mb], {parity}; {}",
                            observe(want.len(), "%p")
                        );
                        want.push(u64::from(o.phase % 2 != parity));
                    }
                    _ => {
                        // A state must be of the current phase or the one before.
                        if let Some(s) = state.filter(|s| o.phase - s < 2) {
                            code += &format!(
                                "mbarrier.test_wait.shared.b64 %p, [mb], %rd8; {}",
                                observe(want.len(), "%p")
                            );
                            want.push(u64::from(s < o.phase));
                        }
                    }
                }
            }
            flips += o.phase;
            t.runs(
                &format!("history {history}"),
                &one(count, &code),
                1,
                &[0],
                &want,
            );
        }
        assert!(flips > 60 && below_zero > 60, "{flips} {below_zero}");
    });
}

fn producers_and_consumers() {
    suite("mbarrier pipeline", |t| {
        // Warps 0 and 1 fill two buffers in turn, warps 2 and 3 read them: full[b] and empty[b] at
        // mc[b] and mc[2 + b], all phases several times over.
        for rounds in [1u64, 2, 7, 16] {
            let body = format!(
                "setp.lt.u32 %p, %t, 4; mov.u32 %r0, mc; mad.lo.u32 %r1, %t, 8, %r0;
                @%p mbarrier.init.shared.b64 [%r1], 64; bar.sync 0;
                and.b32 %r2, %t, 63; mov.u32 %r3, 0; mov.u64 %rd5, 0;
                setp.ge.u32 %p, %t, 64;
                LOOP:
                and.b32 %r4, %r3, 1; shr.u32 %r5, %r3, 1; and.b32 %r5, %r5, 1; xor.b32 %r6, %r5, 1;
                mad.lo.u32 %r7, %r4, 8, %r0; mov.u32 %r8, sm; mad.lo.u32 %r8, %r4, 256, %r8;
                @%p bra CONSUME;
                // The first wait for an empty buffer passes: the phase before the first is complete.
                EMPTY: mbarrier.try_wait.parity.shared.b64 %q, [%r7+16], %r6; @!%q bra EMPTY;
                mad.lo.u32 %r9, %r3, 1000, %r2; mad.lo.u32 %r10, %r2, 4, %r8; st.shared.u32 [%r10], %r9;
                mbarrier.arrive.shared.b64 _, [%r7];
                bra NEXT;
                CONSUME:
                FULL: mbarrier.try_wait.parity.shared.b64 %q, [%r7], %r5; @!%q bra FULL;
                xor.b32 %r11, %r2, 45; mad.lo.u32 %r10, %r11, 4, %r8; ld.shared.u32 %r9, [%r10];
                mbarrier.arrive.shared.b64 _, [%r7+16];
                mad.wide.u32 %rd5, %r9, 3, %rd5;
                NEXT:
                add.u32 %r3, %r3, 1; setp.lt.u32 %p1, %r3, {rounds}; @%p1 bra LOOP;
                @!%p exit;
                mad.wide.u32 %rd2, %r2, 8, %out; st.global.u64 [%rd2], %rd5;"
            );
            let want: Vec<u64> = (0..64u64)
                .map(|i| 3 * (rounds * (i ^ 45) + 1000 * (rounds * (rounds - 1) / 2)))
                .collect();
            let body = text(MB, &body);
            t.runs(&format!("{rounds} rounds"), &body, 128, &[0], &want);
            if rounds > 2 {
                // A consumer that does not say that a buffer is empty stops all.
                let stuck = body.replace("mbarrier.arrive.shared.b64 _, [%r7+16];", "");
                let fault = parse(&stuck)
                    .map(|m| launch(&m, 128, &[0], 64))
                    .expect("parses")
                    .expect_err("deadlock");
                let waiters = match fault.kind {
                    FaultKind::Deadlock { ref waiters } => waiters.len(),
                    _ => panic!("{fault}"),
                };
                t.same("waiters", &[waiters], &[4]);
            }
        }
    });
}

fn misuse() {
    suite("mbarrier misuse", |t| {
        let misuse = |k: &FaultKind| matches!(k, FaultKind::MbarrierMisuse(_));
        for (what, code) in [
            ("count 0", "mbarrier.init.shared.b64 [mc], 0; // BAD"),
            (
                "count 2^20",
                "mbarrier.init.shared.b64 [mc], 0x100000; // BAD",
            ),
            (
                "init of an object",
                "mbarrier.init.shared.b64 [mb], 3; // BAD",
            ),
            (
                "arrive before init",
                "mbarrier.arrive.shared.b64 %rd8, [mc]; // BAD",
            ),
            (
                "wait before init",
                "mbarrier.test_wait.parity.shared.b64 %p, [mc], 0; // BAD",
            ),
            (
                "expect_tx before init",
                "mbarrier.expect_tx.shared.b64 [mc], 8; // BAD",
            ),
            (
                "inval before init",
                "mbarrier.inval.shared.b64 [mc]; // BAD",
            ),
            (
                "arrive after inval",
                "mbarrier.inval.shared.b64 [mb];\nmbarrier.arrive.shared.b64 %rd8, [mb]; // BAD",
            ),
            (
                "wait after inval",
                "mbarrier.inval.shared.b64 [mb];\nmbarrier.try_wait.parity.shared.b64 %p, [mb], 0; // BAD",
            ),
            (
                "inval twice",
                "mbarrier.inval.shared.b64 [mb];\nmbarrier.inval.shared.b64 [mb]; // BAD",
            ),
            (
                "too many arrivals",
                "mbarrier.arrive.shared.b64 %rd8, [mb], 4; // BAD",
            ),
            (
                "no arrivals",
                "mbarrier.arrive.shared.b64 %rd8, [mb], 0; // BAD",
            ),
            (
                "too many arrivals with bytes missing",
                "mbarrier.expect_tx.shared.b64 [mb], 8; mbarrier.arrive.shared.b64 %rd8, [mb], 3;\nmbarrier.arrive.shared.b64 %rd8, [mb]; // BAD",
            ),
            (
                "too many arrivals after a drop",
                "mbarrier.arrive_drop.shared.b64 %rd8, [mb]; mbarrier.arrive.shared.b64 %rd8, [mb], 2;\nmbarrier.arrive.shared.b64 %rd8, [mb], 3; // BAD",
            ),
            (
                "noComplete that completes",
                "mbarrier.arrive.noComplete.shared.b64 %rd8, [mb], 3; // BAD",
            ),
            (
                "noComplete drop that completes",
                "mbarrier.arrive_drop.noComplete.shared.b64 %rd8, [mb], 3; // BAD",
            ),
            (
                "more bytes than can be expected",
                "mbarrier.expect_tx.shared.b64 [mb], 0x100000; // BAD",
            ),
            (
                "more than can be expected together",
                "mbarrier.expect_tx.shared.b64 [mb], 0xfffff;\nmbarrier.arrive.expect_tx.shared.b64 %rd8, [mb], 1; // BAD",
            ),
            (
                "more than can arrive early",
                "mbarrier.complete_tx.shared.b64 [mb], 0xfffff;\nmbarrier.complete_tx.shared.b64 [mb], 1; // BAD",
            ),
            ("store", "st.shared.u32 [mb+4], 1; // BAD"),
            ("atomic", "atom.shared.add.u32 %r0, [mb], 1; // BAD"),
            ("copy", "cp.async.ca.shared.global [mb], [%in], 8; // BAD"),
        ] {
            t.fault(what, &one(3, code), 1, &[0], misuse);
        }
        let code = "mov.u32 %r0, mb; mbarrier.init.shared.b64 [%r0+12], 1; // BAD";
        t.fault("misaligned", &one(3, code), 1, &[0], |k| {
            matches!(
                k,
                FaultKind::Misaligned {
                    space: Space::Shared,
                    align: 8,
                    ..
                }
            )
        });
        let code = "mov.u32 %r0, 0x100000; mbarrier.arrive.shared.b64 %rd8, [%r0]; // BAD";
        t.fault("out of bounds", &one(3, code), 1, &[0], |k| {
            matches!(
                k,
                FaultKind::OutOfBounds {
                    space: Space::Shared,
                    ..
                }
            )
        });
        // After inval its memory is ordinary again.
        let code = "mbarrier.inval.shared.b64 [mb]; st.shared.u64 [mb], 77; ld.shared.u64 %rd1, [mb]; st.global.u64 [%out], %rd1;";
        t.runs("reuse", &one(3, code), 1, &[0], &[77]);
        // Another warp must not use an object before it knows of its init.
        let body = format!(
            "setp.eq.u32 %p, %t, 0; @%p mbarrier.init.shared.b64 [mb], 64;\n{ARRIVE} // BAD"
        );
        t.fault("init without a barrier", &text(MB, &body), 64, &[0], |k| {
            matches!(k, FaultKind::Race { .. } | FaultKind::MbarrierMisuse(_))
        });
    });
}

/// `try_wait` may give up before it sees a phase that another warp completed; `test_wait` and a warp that
/// knows of the completion may not.
fn late_completions() {
    suite("mbarrier late completions", |t| {
        let run = |wait: &str, knows: bool, seed| {
            let flag = match knows {
                true => "bar.sync 1, 64;",
                false => "L: ld.volatile.shared.u32 %r1, [%r0]; setp.eq.u32 %q, %r1, 0; @%q bra L;",
            };
            let body = format!(
                "mov.u32 %r0, sm;
                setp.eq.u32 %p, %t, 0;
                @%p mbarrier.init.shared.b64 [mb], 1;
                @%p st.shared.u32 [%r0], 0;
                bar.sync 0;
                setp.lt.u32 %p, %t, 32; @%p bra WAIT;
                setp.ne.u32 %p, %t, 32;
                @!%p mbarrier.arrive.shared.b64 %rd8, [mb];
                @!%p st.volatile.shared.u32 [%r0], 1;
                {} bra END;
                WAIT: {flag}
                mbarrier.{wait}.parity.shared.b64 %p, [mb], 0;
                setp.ne.u32 %q, %t, 0; @%q bra END;
                {}
                END:",
                if knows { flag } else { "" },
                observe(0, "%p")
            );
            let module = parse(&text(MB, &body)).expect("parses");
            let memory = ptx_emulator::Memory::new();
            let out = memory.alloc_zeroed(8).expect("memory");
            let params = ptx_emulator::Params::new().arg(out).arg(out);
            let config = ptx_emulator::LaunchConfig::new(1, 64).seed(seed);
            let ran = module.launch(&memory, "k", &config, params.as_bytes());
            ran.unwrap_or_else(|f| panic!("{f}"));
            memory.download::<u64>(out, 1).expect("memory")[0]
        };
        let seen = |wait: &str, knows| (0..64).map(|s| run(wait, knows, s)).sum::<u64>();
        t.same("test_wait", &[seen("test_wait", false)], &[64]);
        t.same("try_wait that knows", &[seen("try_wait", true)], &[64]);
        let late = seen("try_wait", false);
        t.same(
            &format!("try_wait: {late}"),
            &[late > 16 && late < 64],
            &[true],
        );
    });
}

pub fn trials() -> Vec<Trial> {
    trials![
        arrivals,
        waits,
        states,
        random_histories,
        producers_and_consumers,
        misuse,
        late_completions
    ]
}
