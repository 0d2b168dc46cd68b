//! ISA: barrier.cluster, mapa, getctarank, the special registers of clusters, elect.sync,
//! griddepcontrol: for clusters of one block.

use crate::harness::{parse, suite, text};
use libtest_mimic::Trial;
use ptx_emulator::{LaunchConfig, Memory, Params};

/// The output words of a kernel, or its fault.
fn run(body: &str, threads: u32, seed: u64) -> Result<Vec<u64>, String> {
    let module = parse(&text("", body)).map_err(|e| e.to_string())?;
    let memory = Memory::new();
    let out = memory.alloc_zeroed(8 * 256).expect("memory");
    let params = Params::new().arg(out).arg(out);
    let config = LaunchConfig::new(3, threads).seed(seed);
    module
        .launch(&memory, "k", &config, params.as_bytes())
        .map_err(|f| f.to_string())?;
    Ok(memory.download(out, 256).expect("memory"))
}

fn barriers() {
    let write = "mov.u32 %r0, sm; mad.lo.u32 %r1, %t, 4, %r0; st.shared.u32 [%r1], %t;";
    let read = "xor.b32 %r2, %t, 63; mad.lo.u32 %r2, %r2, 4, %r0; ld.shared.u32 %r3, [%r2];";
    let rows: &[(&str, String, Option<&str>)] = &[
        ("both halves", format!("{write} barrier.cluster.arrive; barrier.cluster.wait; {read}"), None),
        ("with semantics", format!("{write} barrier.cluster.arrive.release; barrier.cluster.wait.acquire; {read}"), None),
        ("aligned", format!("{write} barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned; {read}"), None),
        ("all modifiers", format!("{write} barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned; {read}"), None),
        ("twice", format!("barrier.cluster.arrive; barrier.cluster.wait; {write} barrier.cluster.arrive; barrier.cluster.wait; {read}"), None),
        ("work between", format!("{write} barrier.cluster.arrive; add.u32 %r5, %t, 1; barrier.cluster.wait; {read}"), None),
        ("relaxed orders nothing", format!("{write} barrier.cluster.arrive.relaxed; barrier.cluster.wait; {read}"), Some("race on shared")),
        ("no wait", format!("{write} barrier.cluster.arrive; {read} barrier.cluster.wait;"), Some("race on shared")),
        ("arrives twice", "barrier.cluster.arrive; barrier.cluster.arrive;".into(), Some("arrives again before it has waited")),
        ("waits first", "barrier.cluster.wait;".into(), Some("waits without having arrived")),
        ("somebody does not come", "setp.ge.u32 %p, %t, 32; @!%p barrier.cluster.arrive; @!%p barrier.cluster.wait; @%p bar.sync 1, 64;".into(),
            Some("the barrier of the cluster (32 of 64 threads arrived)")),
        ("who has ended is not awaited", "setp.ge.u32 %p, %t, 40; @%p exit; barrier.cluster.arrive; barrier.cluster.wait;".into(), None),
        ("who arrived and ended is not awaited", "barrier.cluster.arrive; setp.ge.u32 %p, %t, 32; @%p exit; barrier.cluster.wait; barrier.cluster.arrive; barrier.cluster.wait;".into(), None),
    ];
    suite("barrier.cluster", |t| {
        for (what, body, want) in rows {
            // A race is found whichever warp runs first, unless that is an uninitialised read.
            for seed in 0..12 {
                let found = run(body, 64, seed).err();
                let right = match (want, &found) {
                    (None, None) => true,
                    (Some(w), Some(f)) => {
                        f.contains(w) || (w.contains("race") && f.contains("uninitialised"))
                    }
                    _ => false,
                };
                t.same(
                    &format!("{what}: {found:?}, want {want:?}"),
                    &[right],
                    &[true],
                );
            }
        }
    });
}

fn addresses_and_registers() {
    suite("cluster addresses", |t| {
        let store = |i: usize, r: &str| {
            format!(
                "cvt.u64.u32 %rd9, {r}; st.volatile.global.u64 [%out+{}], %rd9;",
                8 * i
            )
        };
        let body = format!(
            "setp.ne.u32 %p, %t, 0; @%p exit; mov.u32 %r9, %ctaid.x; setp.ne.u32 %p, %r9, 2; @%p exit;
            mov.u32 %r0, sm; add.u32 %r0, %r0, 64; mapa.shared::cluster.u32 %r1, %r0, 0; sub.u32 %r2, %r1, %r0; {}
            getctarank.shared::cluster.u32 %r3, %r1; {}
            cvt.u64.u32 %rd0, %r0; cvta.shared.u64 %rd0, %rd0; mapa.u64 %rd1, %rd0, 0; sub.u64 %rd2, %rd1, %rd0; cvt.u32.u64 %r2, %rd2; {}
            getctarank.u64 %r3, %rd1; {}
            mov.u32 %r4, %cluster_ctarank; {} mov.u32 %r4, %cluster_nctarank; {}
            mov.u32 %r4, %cluster_ctaid.x; {} mov.u32 %r4, %cluster_nctaid.y; {}
            mov.u32 %r4, %clusterid.x; {} mov.u32 %r4, %nclusterid.x; {}
            mapa.shared::cluster.u32 %r5, %r0, 3; getctarank.shared::cluster.u32 %r4, %r5; {}
            griddepcontrol.wait; griddepcontrol.launch_dependents;",
            store(0, "%r2"), store(1, "%r3"), store(2, "%r2"), store(3, "%r3"),
            store(4, "%r4"), store(5, "%r4"), store(6, "%r4"), store(7, "%r4"),
            store(8, "%r4"), store(9, "%r4"), store(10, "%r4"),
        );
        let got = run(&body, 32, 0).unwrap_or_else(|e| panic!("{e}"));
        t.same("values", &got[..11], &[0, 0, 0, 0, 0, 1, 0, 1, 2, 3, 3]);
        // Another block's memory is not there.
        let far = "mov.u32 %r0, sm; mapa.shared::cluster.u32 %r1, %r0, 1; st.shared::cluster.u32 [%r1], %t;";
        let found = run(far, 1, 0).expect_err("no such block");
        t.same(&found, &[found.contains("out of bounds")], &[true]);
    });
}

fn elections() {
    suite("elect.sync by seed", |t| {
        // One leader of each mask, the same one every time; any lane may be it.
        let mut leaders = std::collections::BTreeSet::new();
        for seed in 0..32 {
            let body = "setp.ge.u32 %p, %t, 12; @%p exit;
                mov.u32 %r0, 99; elect.sync %r0|%p, 0xfff; elect.sync _|%q, 0xfff; xor.pred %q, %p, %q;
                vote.sync.any.pred %q, %q, 0xfff; selp.u32 %r2, 1, 0, %q;
                @!%p bra END; setp.eq.u32 %p, %r0, %t; selp.u32 %r3, 1, 0, %p;
                mov.u32 %r9, %ctaid.x; setp.ne.u32 %p, %r9, 0; @%p exit;
                cvt.u64.u32 %rd0, %r0; st.global.u64 [%out], %rd0; cvt.u64.u32 %rd0, %r2; st.global.u64 [%out+8], %rd0;
                cvt.u64.u32 %rd0, %r3; st.global.u64 [%out+16], %rd0; END:";
            let got = run(body, 32, seed).unwrap_or_else(|e| panic!("{e}"));
            t.same("the same leader again, who knows it", &got[1..3], &[0, 1]);
            leaders.insert(got[0]);
        }
        let all: Vec<u64> = leaders.into_iter().collect();
        t.same("leaders", &all, &(0..12).collect::<Vec<u64>>());
    });
}

pub fn trials() -> Vec<Trial> {
    trials![barriers, addresses_and_registers, elections]
}
