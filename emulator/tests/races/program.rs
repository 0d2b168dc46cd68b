//! Small programs of a few warps, as PTX, and what must be said of them.
//!
//! A program is a sequence of steps that is one possible schedule; each warp runs its own steps in
//! that order. Barriers are the only synchronisation and always pair the same arrivals, so whether
//! two accesses are ordered depends on the program alone: the emulator has to find a race on every
//! seed, or on none.

use std::fmt::Write;

use ptx_emulator::{Fault, FaultKind, LaunchConfig, Memory, Module, Params, Space};

/// What a warp does to its lanes' four words, or to one word of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Read,
    ReadAll,
    /// `ldmatrix`, of shared memory.
    ReadMatrix,
    Write,
    WriteAll,
    VolatileRead,
    VolatileWrite,
    Atomic,
    Reduction,
    /// `cp.async`: into shared memory, or out of global memory.
    Copy,
    CopyAll,
}

use Kind::*;

pub const SHARED: [Kind; 11] = [
    Read,
    ReadAll,
    ReadMatrix,
    Write,
    WriteAll,
    VolatileRead,
    VolatileWrite,
    Atomic,
    Reduction,
    Copy,
    CopyAll,
];
pub const GLOBAL: [Kind; 10] = [
    Read,
    ReadAll,
    Write,
    WriteAll,
    VolatileRead,
    VolatileWrite,
    Atomic,
    Reduction,
    Copy,
    CopyAll,
];

impl Kind {
    pub fn is_copy(self) -> bool {
        matches!(self, Copy | CopyAll)
    }
    pub fn writes(self, space: Space) -> bool {
        match self {
            Read | ReadAll | ReadMatrix | VolatileRead => false,
            Copy | CopyAll => space == Space::Shared,
            Write | WriteAll | VolatileWrite | Atomic | Reduction => true,
        }
    }
    /// Whether it needs no order to others of its sort.
    fn strong(self) -> bool {
        matches!(self, VolatileRead | VolatileWrite | Atomic | Reduction)
    }
    fn all_words(self) -> bool {
        matches!(self, ReadAll | ReadMatrix | WriteAll | CopyAll)
    }
    /// Whether two accesses without an order between them are a race.
    pub fn conflicts(self, other: Self, space: Space) -> bool {
        (self.writes(space) || other.writes(space)) && !(self.strong() && other.strong())
    }
    /// The beginning of its instruction.
    pub fn mnemonic(self) -> &'static str {
        match self {
            Read | ReadAll | VolatileRead => "ld.",
            ReadMatrix => "ldmatrix.",
            Write | WriteAll | VolatileWrite => "st.",
            Atomic => "atom.",
            Reduction => "red.",
            Copy | CopyAll => "cp.async.",
        }
    }
    /// Its text, on the words at `%r10` or `%rd10`.
    pub fn text(self, space: Space, word: usize) -> String {
        let (sp, a) = match space {
            Space::Shared => ("shared", "%r10"),
            _ => ("global", "%rd10"),
        };
        let at = format!("[{a}+{}]", 4 * word);
        let copy = |how: &str, at: &str, n: u32| match space {
            Space::Shared => format!("cp.async.{how}.shared.global {at}, [%rd11], {n};"),
            _ => format!("cp.async.{how}.shared.global [%r10], {at}, {n};\ncp.async.wait_all;"),
        };
        match self {
            Read => format!("ld.{sp}.u32 %r20, {at};"),
            ReadAll => format!("ld.{sp}.v4.u32 {{%r20,%r21,%r22,%r23}}, [{a}];"),
            ReadMatrix => {
                format!("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%r20,%r21,%r22,%r23}}, [{a}];")
            }
            Write => format!("st.{sp}.u32 {at}, %r1;"),
            WriteAll => format!("st.{sp}.v4.u32 [{a}], {{%r1,%r1,%r1,%r1}};"),
            VolatileRead => format!("ld.volatile.{sp}.u32 %r20, {at};"),
            VolatileWrite => format!("st.volatile.{sp}.u32 {at}, %r1;"),
            Atomic => format!("atom.{sp}.add.u32 %r20, {at}, 1;"),
            Reduction => format!("red.{sp}.add.u32 {at}, 1;"),
            Copy => copy("ca", &at, 4),
            CopyAll => copy("cg", &format!("[{a}]"), 16),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Do {
        warp: usize,
        kind: Kind,
        word: usize,
    },
    /// Waits for the warp's copies.
    Wait { warp: usize },
    /// These warps meet at the barrier that only they use.
    Sync { warps: Vec<usize> },
    /// One warp arrives at a barrier of its own, another waits there.
    Arrive { from: usize, to: usize },
    /// Long enough for the other warps to go on to their next barrier or delay.
    Delay { warp: usize },
}

#[derive(Debug, Clone)]
pub struct Program {
    pub space: Space,
    pub warps: usize,
    pub steps: Vec<Step>,
    /// Whether all arrivals are at one barrier. They have to come one after the other then.
    one_barrier: bool,
}

impl Program {
    pub fn new(space: Space, warps: usize) -> Self {
        Self {
            space,
            warps,
            steps: Vec::new(),
            one_barrier: false,
        }
    }
    pub fn one_barrier(self) -> Self {
        Self {
            one_barrier: true,
            ..self
        }
    }
    pub fn does(mut self, warp: usize, kind: Kind, word: usize) -> Self {
        self.steps.push(Step::Do { warp, kind, word });
        self
    }
    pub fn wait(mut self, warp: usize) -> Self {
        self.steps.push(Step::Wait { warp });
        self
    }
    pub fn sync(mut self, warps: &[usize]) -> Self {
        self.steps.push(Step::Sync {
            warps: warps.to_vec(),
        });
        self
    }
    pub fn arrive(mut self, from: usize, to: usize) -> Self {
        self.steps.push(Step::Arrive { from, to });
        self
    }
    pub fn delay(mut self, warp: usize) -> Self {
        self.steps.push(Step::Delay { warp });
        self
    }

    /// Barrier 0 is all warps'; every other set and every arrival has a number of its own.
    fn barriers(&self) -> Vec<u32> {
        let mut sets: Vec<&Vec<usize>> = Vec::new();
        let mut next = 1;
        let mut of_set = Vec::new();
        self.steps
            .iter()
            .map(|s| match s {
                Step::Sync { warps } if warps.len() == self.warps => 0,
                Step::Sync { warps } => match sets.iter().position(|&x| x == warps) {
                    Some(i) => of_set[i],
                    None => {
                        sets.push(warps);
                        of_set.push(next);
                        next += 1;
                        next - 1
                    }
                },
                Step::Arrive { .. } if self.one_barrier => 15,
                Step::Arrive { .. } => {
                    next += 1;
                    next - 1
                }
                _ => 0,
            })
            .collect()
    }

    /// Whether the sixteen barriers of a block suffice.
    pub fn fits(&self) -> bool {
        self.barriers().iter().all(|&b| b < 16)
    }

    pub fn ptx(&self) -> String {
        let mut t = String::from(
            ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 p)\n{\n\
             .shared .align 16 .b8 s[2048];\n.reg .b32 %r<32>; .reg .b64 %rd<16>; .reg .pred %p<4>;\n\
             ld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\nshr.u32 %r2, %r1, 5;\nand.b32 %r3, %r1, 31;\n\
             shl.b32 %r4, %r3, 4;\nmov.u32 %r5, s;\nadd.u32 %r10, %r5, %r4;\ncvt.u64.u32 %rd2, %r4;\n\
             add.s64 %rd10, %rd1, %rd2;\nadd.s64 %rd11, %rd10, 512;\nmov.u32 %r6, 0;\n",
        );
        if self.space == Space::Global {
            // The copies' destinations, a place for each warp.
            t += "shl.b32 %r7, %r2, 9;\nadd.u32 %r10, %r10, %r7;\n";
        }
        t += "setp.ne.u32 %p1, %r2, 0;\n@%p1 bra READY;\n";
        t += &WriteAll.text(self.space, 0);
        t += "\nREADY:\nbar.sync 0;\n";
        let barriers = self.barriers();
        for warp in 0..self.warps {
            let _ = writeln!(t, "setp.ne.u32 %p1, %r2, {warp};\n@%p1 bra SKIP{warp};");
            for (i, (s, id)) in self.steps.iter().zip(&barriers).enumerate() {
                let line = match s {
                    Step::Do {
                        warp: w,
                        kind,
                        word,
                    } if *w == warp => kind.text(self.space, *word),
                    Step::Wait { warp: w } if *w == warp => "cp.async.wait_all;".into(),
                    Step::Sync { warps } if warps.contains(&warp) => {
                        format!("bar.sync {id}, {};", 32 * warps.len())
                    }
                    Step::Arrive { from, .. } if *from == warp => format!("bar.arrive {id}, 64;"),
                    Step::Arrive { to, .. } if *to == warp => format!("bar.sync {id}, 64;"),
                    Step::Delay { warp: w } if *w == warp => format!(
                        "mov.u32 %r8, 0;\nSPIN{i}:\nadd.u32 %r8, %r8, 1;\nsetp.lt.u32 %p2, %r8, 1500;\n@%p2 bra SPIN{i};"
                    ),
                    _ => continue,
                };
                t += &line;
                t.push('\n');
            }
            let _ = writeln!(t, "bra END;\nSKIP{warp}:");
        }
        t + "END:\nret;\n}\n"
    }

    /// Runs on seeds `0..seeds`.
    pub fn run(&self, seeds: u64) -> Vec<Result<(), Box<Fault>>> {
        let module = Module::parse(&self.ptx()).expect("the text is well formed");
        (0..seeds)
            .map(|seed| {
                let memory = Memory::new();
                let p = memory.alloc_zeroed(1024).expect("memory");
                let config = LaunchConfig::new(1, 32 * self.warps as u32).seed(seed);
                let params = Params::new().arg(p);
                module
                    .launch(&memory, "k", &config, params.as_bytes())
                    .map(|_| ())
            })
            .collect()
    }

    /// Whether two conflicting accesses have no order: every pair is looked at, and everything that
    /// a warp knows is carried along, so nothing can be forgotten.
    pub fn races(&self) -> bool {
        struct Event {
            warp: usize,
            kind: Kind,
            word: usize,
            /// Its number among its warp's steps, and that of the wait that ends a copy.
            begin: usize,
            end: usize,
            /// What its warp knew of the others' steps when it began.
            known: Vec<usize>,
        }
        let n = self.warps;
        // known[w][v]: so many steps of v are ordered before what w does next.
        let mut known = vec![vec![0; n]; n];
        let mut events: Vec<Event> = Vec::new();
        let join = |known: &mut Vec<Vec<usize>>, into: usize, from: &[usize]| {
            for (a, b) in known[into].iter_mut().zip(from) {
                *a = (*a).max(*b);
            }
        };
        for s in &self.steps {
            match s {
                Step::Do { warp, kind, word } => {
                    let begin = known[*warp][*warp];
                    known[*warp][*warp] += 1;
                    let late = kind.is_copy() && self.space == Space::Shared;
                    events.push(Event {
                        warp: *warp,
                        kind: *kind,
                        word: *word,
                        begin,
                        end: if late { usize::MAX } else { begin },
                        known: known[*warp].clone(),
                    });
                }
                Step::Wait { warp } => {
                    let now = known[*warp][*warp];
                    known[*warp][*warp] += 1;
                    for e in &mut events {
                        if e.warp == *warp && e.end == usize::MAX {
                            e.end = now;
                        }
                    }
                }
                Step::Sync { warps } => {
                    let before: Vec<_> = warps.iter().map(|&w| known[w].clone()).collect();
                    for &w in warps {
                        for b in &before {
                            join(&mut known, w, b);
                        }
                    }
                }
                Step::Arrive { from, to } => {
                    let before = known[*from].clone();
                    join(&mut known, *to, &before);
                }
                Step::Delay { .. } => {}
            }
        }
        let ordered = |a: &Event, b: &Event| a.end < b.known[a.warp];
        events.iter().enumerate().any(|(i, a)| {
            events[i + 1..].iter().any(|b| {
                let overlap = a.word == b.word || a.kind.all_words() || b.kind.all_words();
                // A warp's own pending copy is in its way as well.
                let apart = a.warp != b.warp || a.end > b.begin;
                overlap
                    && apart
                    && a.kind.conflicts(b.kind, self.space)
                    && !ordered(a, b)
                    && !ordered(b, a)
            })
        })
    }
}

/// Whether the fault is one of the race detector's.
pub fn is_race(f: &Fault) -> bool {
    matches!(
        f.kind,
        FaultKind::Race { .. } | FaultKind::AsyncPending { .. }
    )
}
