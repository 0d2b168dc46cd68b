//! mbarrier objects. Their state is kept beside shared memory; the eight bytes of the object only
//! count as initialised.

use super::access::Site;
use super::barrier::join;
use super::block::{Block, Flow};
use super::warp::State;
use super::{Outcome, SHARED_WINDOW, Trouble, WINDOW, trouble};
use crate::decode::{Address, Mbar, Mem, Src};
use crate::fault::{AccessKind, FaultKind, Space};

/// The largest pending count.
const MAX_COUNT: u32 = (1 << 20) - 1;

#[derive(Clone, Debug)]
pub struct MbarState {
    pub phase: u64,
    /// Arrivals that complete a phase, those still missing, and bytes still missing.
    pub expected: u32,
    pub pending: u32,
    pub tx: i64,
    /// What those arrived knew, in this phase and in the one completed.
    arriving: Vec<u32>,
    done: Vec<u32>,
    /// Arrivals that follow the copies of a thread: warp, lane, copies' place in time.
    deferred: Vec<Deferred>,
}

#[derive(Clone, Debug)]
struct Deferred {
    warp: usize,
    lanes: u32,
    /// Copies issued before this many instructions of the warp.
    before: u64,
    clocks: Vec<u32>,
}

impl Block<'_, '_> {
    fn mbar_fault<T>(&self, text: impl Into<String>, lane: u32) -> Outcome<T> {
        trouble(FaultKind::Mbarrier(text.into()), lane)
    }

    /// The object's offset for each active lane.
    fn mbar_offsets(&mut self, mem: Mem, address: &Address) -> Outcome<Vec<(u32, u32)>> {
        let Site { w, s, active, .. } = self.site;
        let base = self.warps[w].row(address.base, s);
        let mut out = Vec::new();
        for (l, &base) in base.iter().enumerate() {
            if active >> l & 1 == 0 {
                continue;
            }
            let mut at = base.wrapping_add(address.offset as u64);
            if mem == Mem::Generic {
                if at.wrapping_sub(SHARED_WINDOW) >= WINDOW {
                    return self.mbar_fault(format!("{at:#x} is not in shared memory"), l as u32);
                }
                at -= SHARED_WINDOW;
            } else {
                at &= 0xffff_ffff;
            }
            if !self.shared.holds(at, 8) {
                let kind = FaultKind::OutOfBounds {
                    space: Space::Shared,
                    access: AccessKind::Atomic,
                    address: at,
                    bytes: 8,
                    detail: format!("the block has {} bytes", self.shared.bytes),
                };
                return trouble(kind, l as u32);
            }
            if at % 8 != 0 {
                let kind = FaultKind::Misaligned {
                    space: Space::Shared,
                    access: AccessKind::Atomic,
                    address: at,
                    align: 8,
                };
                return trouble(kind, l as u32);
            }
            out.push((l as u32, at as u32));
        }
        Ok(out)
    }

    fn mbar(&mut self, at: u32, lane: u32) -> Outcome<&mut MbarState> {
        match self.mbarriers.get_mut(&at) {
            Some(m) => Ok(m),
            None => Err(Box::new(Trouble {
                kind: FaultKind::Mbarrier(format!(
                    "the object at shared {at:#x} is not initialised"
                )),
                lane: Some(lane),
            })),
        }
    }

    fn finish_phase(&mut self, at: u32) {
        if let Some(m) = self.mbarriers.get_mut(&at)
            && m.pending == 0
            && m.tx == 0
        {
            m.phase += 1;
            m.pending = m.expected;
            let arriving = m.arriving.clone();
            join(&mut m.done, &arriving);
            for s in self.warps.iter_mut().flat_map(|w| &mut w.splits) {
                if s.state == State::Mbarrier(at) {
                    s.state = State::Ready;
                }
            }
        }
        self.progress = true;
    }

    fn arrive_at(&mut self, at: u32, lane: u32, count: u32, drop: bool) -> Outcome<()> {
        let w = self.site.w;
        let clocks = self.clocks[w].clone();
        let m = self.mbar(at, lane)?;
        if count == 0 || count > m.pending {
            let text = format!(
                "an arrival of {count} at shared {at:#x}, where {} are pending",
                m.pending
            );
            return self.mbar_fault(text, lane);
        }
        m.pending -= count;
        if drop {
            m.expected -= count.min(m.expected);
        }
        join(&mut m.arriving, &clocks);
        Ok(())
    }

    pub fn mbarrier(&mut self, op: &Mbar, mem: Mem, address: &Address) -> Outcome<Flow> {
        let Site { w, s, active, pc } = self.site;
        let offsets = self.mbar_offsets(mem, address)?;
        match op {
            Mbar::Init(count) => {
                let counts = self.warps[w].row(*count, s);
                for (l, at) in offsets {
                    let n = counts[l as usize] as u32;
                    if n == 0 || n > MAX_COUNT {
                        return self.mbar_fault(format!("an expected count of {n}"), l);
                    }
                    let warps = self.warps.len();
                    let mut clocks = vec![0; warps];
                    join(&mut clocks, &self.clocks[w]);
                    self.mbarriers.insert(
                        at,
                        MbarState {
                            phase: 0,
                            expected: n,
                            pending: n,
                            tx: 0,
                            arriving: vec![0; warps],
                            done: vec![0; warps],
                            deferred: Vec::new(),
                        },
                    );
                    self.store_shared_plain(u64::from(at), l)?;
                }
            }
            Mbar::Inval => {
                for (l, at) in offsets {
                    self.mbar(at, l)?;
                    self.mbarriers.remove(&at);
                }
            }
            Mbar::Arrive {
                state,
                count,
                drop,
                no_complete,
                expect,
            } => {
                let counts = match count {
                    Some(c) => Some(self.warps[w].row(*c, s)),
                    None => None,
                };
                let mut states = [0; 32];
                let mut touched = Vec::new();
                for &(l, at) in &offsets {
                    let n = counts.map_or(1, |c| c[l as usize] as u32);
                    let m = self.mbar(at, l)?;
                    states[l as usize] = m.phase << 20 | u64::from(m.pending);
                    if *expect {
                        m.tx += i64::from(n);
                    }
                    self.arrive_at(at, l, if *expect { 1 } else { n }, *drop)?;
                    let m = self.mbar(at, l)?;
                    if *no_complete && m.pending == 0 && m.tx == 0 {
                        let text = "`.noComplete`, but the phase completes";
                        return self.mbar_fault(text, l);
                    }
                    if m.pending == 0 && m.tx == 0 {
                        self.finish_phase(at);
                    }
                    if touched.last() != Some(&at) {
                        touched.push(at);
                    }
                }
                for at in touched {
                    self.finish_phase_if_done(at);
                }
                self.tick();
                if let Some(d) = state {
                    let warp = &mut self.warps[w];
                    let base = warp.splits[s].base;
                    warp.set(*d, base, active, &states);
                }
            }
            Mbar::ExpectTx(n) | Mbar::CompleteTx(n) => {
                let expect = matches!(op, Mbar::ExpectTx(_));
                let n = self.warps[w].row(*n, s);
                for (l, at) in offsets {
                    let n = i64::from(n[l as usize] as u32);
                    let m = self.mbar(at, l)?;
                    m.tx += if expect { n } else { -n };
                    self.finish_phase_if_done(at);
                }
            }
            Mbar::CopyArrive { noinc } => {
                for (l, at) in offsets {
                    let before = self.warps[w].executed;
                    let clocks = self.clocks[w].clone();
                    let m = self.mbar(at, l)?;
                    if !noinc {
                        m.pending += 1;
                    }
                    m.deferred.push(Deferred {
                        warp: w,
                        lanes: 1 << l,
                        before,
                        clocks,
                    });
                }
                let clock = self.clock();
                for c in &mut self.warps[w].copies {
                    if active >> c.lane & 1 == 1 {
                        c.arrived.get_or_insert(clock);
                    }
                }
                self.tick();
                self.progress = true;
            }
            Mbar::Test {
                result,
                state,
                parity,
            } => {
                let states = self.warps[w].row(*state, s);
                let mut done = 0u32;
                let mut waits_at = 0;
                for &(l, at) in &offsets {
                    self.land_deferred(at, l)?;
                    let m = self.mbar(at, l)?;
                    let v = states[l as usize];
                    let complete = if *parity {
                        // The phase of this parity is complete if the present one is another.
                        m.phase & 1 != v & 1
                    } else {
                        m.phase != v >> 20
                    };
                    if complete {
                        done |= 1 << l;
                        let known = m.done.clone();
                        join(&mut self.clocks[w], &known);
                    } else {
                        waits_at = at;
                    }
                }
                let warp = &mut self.warps[w];
                let pbase = warp.splits[s].pbase;
                warp.set_pred(*result, pbase, active, done);
                if done != active {
                    // `test_wait` suspends like `try_wait`: whoever spins gives way to others.
                    warp.splits[s].pc = pc + 1;
                    warp.splits[s].state = State::Mbarrier(waits_at);
                    return Ok(Flow::Yield);
                }
            }
        }
        Ok(Flow::Next)
    }

    fn finish_phase_if_done(&mut self, at: u32) {
        if self
            .mbarriers
            .get(&at)
            .is_some_and(|m| m.pending == 0 && m.tx == 0)
        {
            self.finish_phase(at);
        } else {
            self.progress = true;
        }
    }

    /// Someone looks at the object: the copies whose completion arrives at it land now.
    fn land_deferred(&mut self, at: u32, lane: u32) -> Outcome<()> {
        let deferred = std::mem::take(&mut self.mbar(at, lane)?.deferred);
        for d in deferred {
            self.land_closed(d.warp, d.lanes, d.before)?;
            let m = self.mbar(at, lane)?;
            if m.pending == 0 {
                let text = format!("more copies arrive at shared {at:#x} than are expected");
                return self.mbar_fault(text, lane);
            }
            m.pending -= 1;
            join(&mut m.arriving, &d.clocks);
            self.finish_phase_if_done(at);
        }
        Ok(())
    }

    pub fn mbarrier_pending(&mut self, dst: u32, state: Src) -> Outcome<Flow> {
        let Site { w, s, active, .. } = self.site;
        let warp = &mut self.warps[w];
        let v = warp.row(state, s);
        let base = warp.splits[s].base;
        let out = std::array::from_fn(|l| v[l] & u64::from(MAX_COUNT));
        warp.set(dst, base, active, &out);
        Ok(Flow::Next)
    }
}
