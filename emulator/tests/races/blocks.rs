//! Races on global memory between blocks, which take their parts by a ticket.
//!
//! One host thread runs a short block to its end before the next, so the parts are acted in order and
//! a flag is seen without polling. An order in time is none in the memory model: it takes a fence, a
//! flag and a look at the flag.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fmt::Write;

use ptx_emulator::{Access, Fault, FaultKind, LaunchConfig, Memory, Module, Params, Space};

use super::program::{GLOBAL, Kind};

#[derive(Debug, Clone, Copy)]
enum Step {
    Do(Kind),
    Fence,
    /// Sets a flag, by an atomic or a volatile store.
    Set(usize, bool),
    /// Looks at a flag.
    See(usize),
    /// Looks until it is set.
    Poll(usize),
}

use Step::{Do, Fence, Poll, See, Set};

const SEEDS: u64 = 16;

fn ptx(parts: &[Vec<Step>], word: usize) -> String {
    let mut t = String::from(
        ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n\
         .shared .align 16 .b8 s[512];\n.reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .pred %p<4>;\n\
         ld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\nshl.b32 %r4, %r1, 4;\nmov.u32 %r5, s;\n\
         add.u32 %r10, %r5, %r4;\ncvt.u64.u32 %rd2, %r4;\nadd.s64 %rd10, %rd1, %rd2;\n\
         mov.u32 %r2, 0;\nsetp.eq.u32 %p1, %r1, 0;\n@%p1 atom.global.add.u32 %r2, [%rd1+3968], 1;\n\
         shfl.sync.idx.b32 %r2, %r2, 0, 31, -1;\n",
    );
    for (part, steps) in parts.iter().enumerate() {
        let _ = writeln!(t, "setp.ne.u32 %p1, %r2, {part};\n@%p1 bra SKIP{part};");
        for s in steps {
            let flag = |f: &usize| 2048 + 128 * f;
            t += &match s {
                Do(kind) => kind.text(Space::Global, word),
                Fence => "membar.gl;".into(),
                Set(f, true) => format!("atom.global.exch.b32 %r20, [%rd1+{}], 1;", flag(f)),
                Set(f, false) => format!(
                    "mov.u32 %r21, 1;\nst.volatile.global.u32 [%rd1+{}], %r21;",
                    flag(f)
                ),
                See(f) => format!("ld.volatile.global.u32 %r20, [%rd1+{}];", flag(f)),
                Poll(f) => format!(
                    "POLL:\nld.volatile.global.u32 %r20, [%rd1+{}];\nsetp.eq.u32 %p2, %r20, 0;\n\
                     @%p2 bra POLL;",
                    flag(f)
                ),
            };
            t.push('\n');
        }
        let _ = writeln!(t, "bra END;\nSKIP{part}:");
    }
    t + "END:\nret;\n}\n"
}

fn run(parts: &[Vec<Step>], word: usize, threads: usize, check: impl Fn(Option<&Fault>)) {
    let module = Module::parse(&ptx(parts, word)).expect("the text is well formed");
    // Polling takes long: a block gives way after millions of instructions.
    let polls = parts.iter().flatten().any(|s| matches!(s, Poll(_)));
    for seed in 0..if polls { 1 } else { SEEDS } {
        let memory = Memory::new();
        let p = memory.alloc_zeroed(4096).expect("memory");
        let config = LaunchConfig::new(parts.len() as u32, 32)
            .seed(seed)
            .threads(threads);
        let params = Params::new().arg(p);
        let result = module.launch(&memory, "k", &config, params.as_bytes());
        check(result.err().as_deref());
    }
}

/// Every seed reports the access `b` against `a`, and the blocks' ranks stand in both orders.
fn found(parts: &[Vec<Step>], a: Kind, b: Kind) {
    for word in [0, 3] {
        let orders = RefCell::new(BTreeSet::new());
        run(parts, word, 1, |f| {
            let Some(f) = f else {
                panic!("nothing found: {parts:?}")
            };
            let FaultKind::Race {
                space: Space::Global,
                access,
                other,
                other_access,
                ..
            } = &f.kind
            else {
                panic!("{f}")
            };
            orders.borrow_mut().insert(other.block.cmp(&f.place.block));
            let reads = |k: Kind| !k.writes(Space::Global);
            assert!(f.place.instruction.starts_with(b.mnemonic()), "{f}");
            assert!(other.instruction.starts_with(a.mnemonic()), "{f}");
            assert_eq!(*access == Access::Read, reads(b), "{f}");
            assert_eq!(*other_access == Access::Read, reads(a), "{f}");
        });
        let both = BTreeSet::from([Ordering::Less, Ordering::Greater]);
        assert_eq!(orders.into_inner(), both);
    }
}

fn silent(parts: &[Vec<Step>]) {
    run(parts, 0, 1, |f| {
        if let Some(f) = f {
            panic!("{f}\n{parts:?}")
        }
    });
}

const SPACE: Space = Space::Global;

#[test]
fn pairs_across_blocks() {
    for a in GLOBAL {
        for b in GLOBAL {
            for flag in [Set(0, true), Set(0, false)] {
                let second = vec![See(0), Fence, Do(b)];
                silent(&[vec![Do(a), Fence, flag], second.clone()]);
                let unordered = [
                    // No fence, or one that does not cover the access.
                    [vec![Do(a), flag], second.clone()],
                    [vec![Fence, Do(a), flag], second],
                    // Nobody looked at the flag, or at another one.
                    [vec![Do(a), Fence, flag], vec![Do(b)]],
                    [vec![Do(a), Fence, flag], vec![See(1), Do(b)]],
                    // An earlier access is published, this one is not.
                    [
                        vec![Do(a), Fence, flag, Do(a), Set(1, true)],
                        vec![See(0), See(1), Do(b)],
                    ],
                ];
                for parts in unordered {
                    match a.conflicts(b, SPACE) {
                        true => found(&parts, a, b),
                        false => silent(&parts),
                    }
                }
            }
            // At the same time, on two host threads.
            let both = [vec![Do(a)], vec![Do(b)]];
            run(&both, 0, 2, |f| {
                assert_eq!(f.is_some(), a.conflicts(b, SPACE), "{a:?} {b:?} {f:?}");
            });
        }
    }
}

/// What a block does next to the same words does not hide what it did.
#[test]
fn each_access_of_a_block_counts() {
    for a in GLOBAL {
        for b in GLOBAL {
            for c in GLOBAL {
                if a.conflicts(b, SPACE) && !c.conflicts(b, SPACE) {
                    found(&[vec![Do(a), Do(c)], vec![Do(b)]], a, b);
                    // Behind a fence a store that the other looks at would publish the access.
                    if !c.writes(SPACE) {
                        found(&[vec![Do(a), Fence, Do(c)], vec![Do(b)]], a, b);
                    }
                }
            }
        }
    }
}

/// Order is handed on: who looks at the flag of one that has looked at another's is behind both.
#[test]
fn order_is_handed_on() {
    for a in GLOBAL {
        for b in GLOBAL {
            silent(&[
                vec![Do(a), Fence, Set(0, true)],
                vec![See(0), Fence, Set(1, true)],
                vec![See(1), Fence, Do(b)],
            ]);
        }
    }
}

/// A block that did something first does not stand for another that did it too.
#[test]
fn a_block_is_not_taken_for_all() {
    for a in [Kind::Read, Kind::Atomic] {
        let parts = [
            vec![Do(a), Poll(0), Do(Kind::Write)],
            vec![Do(a), Set(0, true)],
        ];
        run(&parts, 0, 1, |f| {
            let f = f.expect("the other's access is not forgotten");
            assert!(matches!(f.kind, FaultKind::Race { .. }), "{f}");
        });
    }
}

/// Two blocks did the same before a third that has acquired nothing: one of them is named.
#[test]
fn many_blocks_are_not_forgotten() {
    for a in GLOBAL {
        for b in GLOBAL {
            if a.conflicts(a, SPACE) || !a.conflicts(b, SPACE) {
                continue;
            }
            found(&[vec![Do(a)], vec![Do(a)], vec![Do(b)]], a, b);
            silent(&[
                vec![Do(a), Fence, Set(0, true)],
                vec![See(0), Do(a), Fence, Set(1, true)],
                vec![See(1), Do(b)],
            ]);
        }
    }
}
