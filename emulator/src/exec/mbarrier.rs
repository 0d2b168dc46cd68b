//! `mbarrier` objects in shared memory.

use super::block::Block;
use super::shared::{Clock, Who, join};
use super::warp::{Flow, Warp};
use super::{Exec, raise};
use crate::error::{Access, FaultKind};
use crate::ir::regs::lanes;
use crate::ir::{Addr, MbarOp};

/// What the ISA allows a count to be.
const MAX_COUNT: u32 = (1 << 20) - 1;

#[derive(Debug, Clone)]
pub(crate) struct Mbarrier {
    /// Phases completed.
    pub phase: u32,
    /// Arrivals of each phase.
    expected: u32,
    /// Arrivals missing in this phase.
    pending: u32,
    /// Bytes missing in this phase.
    tx: i64,
    /// Arrivals that wait for copies: warp, lane and number of the tie.
    deferred: Vec<(usize, usize, u64)>,
    clock: Clock,
    done_clock: Clock,
}

impl Mbarrier {
    fn complete_if_done(&mut self) {
        if self.pending == 0 && self.tx == 0 {
            self.phase += 1;
            self.pending = self.expected;
            self.done_clock.copy_from_slice(&self.clock);
        }
    }
}

impl Block<'_> {
    pub fn mbarrier_text(&self, address: u32) -> String {
        match self.mbars.get(&address) {
            Some(m) => format!(
                "mbarrier at {address:#x} (phase {}, {} of {} arrivals and {} bytes missing)",
                m.phase, m.pending, m.expected, m.tx
            ),
            None => format!("mbarrier at {address:#x}"),
        }
    }

    /// An ordinary access to an object destroys or bypasses it.
    pub fn guard_mbarrier(&self, offset: u32, len: u32, lane: usize) -> Exec<()> {
        if self.mbars.is_empty() {
            return Ok(());
        }
        let hit = self
            .mbars
            .range(..offset + len)
            .next_back()
            .filter(|(at, _)| **at + 8 > offset);
        match hit {
            Some((at, _)) => raise(
                FaultKind::MbarrierMisuse(format!(
                    "a store into the mbarrier at {at:#x}, which is in use"
                )),
                Some(lane),
            ),
            None => Ok(()),
        }
    }
}

impl Warp {
    pub fn mbar(&mut self, b: &mut Block<'_>, op: &MbarOp, addr: &Addr, mask: u32) -> Exec<Flow> {
        let mut flow = Flow::Next;
        let mut not_done = 0;
        for lane in lanes(mask) {
            let address = self.shared_address(addr, lane);
            let at = b.shared.check(address, 8, Access::Atomic, lane)?;
            let misuse = |m: String| raise(FaultKind::MbarrierMisuse(m), Some(lane));
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            if let MbarOp::Init { count } = op {
                let count = self.regs.w(*count)[lane];
                if count == 0 || count > MAX_COUNT {
                    return misuse(format!("initialised with a count of {count}"));
                }
                if b.mbars.contains_key(&at) {
                    return misuse(format!("the mbarrier at {at:#x} is initialised twice"));
                }
                b.guard_mbarrier(at, 8, lane)?;
                // To the race detector it is a write that every use must be ordered after.
                if let Err(c) = b.shared.note_write(at, 8, who, false) {
                    return b.conflict(c, Access::Write, 8, lane);
                }
                let zero = vec![0; b.launch.warps as usize];
                b.mbars.insert(
                    at,
                    Mbarrier {
                        phase: 0,
                        expected: count,
                        pending: count,
                        tx: 0,
                        deferred: Vec::new(),
                        clock: zero.clone(),
                        done_clock: zero,
                    },
                );
                b.progress += 1;
                continue;
            }
            if !b.mbars.contains_key(&at) {
                return misuse(format!("there is no initialised mbarrier at {at:#x}"));
            }
            if let Err(c) = b.shared.note_read(at, 8, who, true) {
                return b.conflict(c, Access::Atomic, 8, lane);
            }
            match op {
                MbarOp::Init { .. } => {}
                MbarOp::Inval => {
                    b.mbars.remove(&at);
                    if let Err(c) = b.shared.note_write(at, 8, who, false) {
                        return b.conflict(c, Access::Write, 8, lane);
                    }
                }
                MbarOp::ExpectTx { tx } => {
                    let tx = i64::from(self.regs.w(*tx)[lane]);
                    b.progress += 1;
                    // Bytes may have been counted before they were expected.
                    if let Some(m) = b.mbars.get_mut(&at) {
                        m.tx += tx;
                        m.complete_if_done();
                    }
                }
                MbarOp::CompleteTx { tx } => {
                    let tx = i64::from(self.regs.w(*tx)[lane]);
                    let clock = b.shared.release_clock(self.id);
                    b.progress += 1;
                    if let Some(m) = b.mbars.get_mut(&at) {
                        join(&mut m.clock, &clock);
                        m.tx -= tx;
                        m.complete_if_done();
                    }
                }
                MbarOp::Arrive {
                    state,
                    count,
                    tx,
                    drop,
                    no_complete,
                } => {
                    let n = count.map_or(1, |c| self.regs.w(c)[lane]);
                    let tx = tx.map_or(0, |t| i64::from(self.regs.w(t)[lane]));
                    let token = self.arrive(b, at, n, tx, *drop, *no_complete, lane)?;
                    if let Some(s) = state {
                        self.regs.put_d(*s, &[token; 32], 1 << lane);
                    }
                }
                MbarOp::TestWait {
                    done,
                    state,
                    parity,
                } => {
                    // Whoever waits makes the copies that the barrier tracks land; not sooner.
                    self.land_deferred(b, at)?;
                    let m = &b.mbars[&at];
                    let complete = match (state, parity) {
                        (Some(s), _) => m.phase > (self.regs.d(*s)[lane] >> 32) as u32,
                        (None, Some(p)) => m.phase & 1 != self.regs.w(*p)[lane] & 1,
                        (None, None) => false,
                    };
                    if complete {
                        let clock = m.done_clock.clone();
                        b.shared.acquire(self.id, &clock);
                    } else {
                        not_done |= 1u32 << lane;
                        self.waits_on = Some(at);
                        b.retries += 1;
                    }
                    self.regs
                        .put_p(*done, if complete { u32::MAX } else { 0 }, 1 << lane);
                }
                MbarOp::CpAsyncArrive { no_inc } => {
                    let tie = self.tie_copies(b, lane);
                    if let Some(m) = b.mbars.get_mut(&at) {
                        // Without `.noinc` the phase waits for one arrival more.
                        if !no_inc {
                            m.pending += 1;
                        }
                        m.deferred.push((self.id, lane, tie));
                    }
                }
            }
        }
        if not_done != 0 {
            if self.seen == b.progress {
                self.failed_waits += 1;
            } else {
                self.failed_waits = 1;
                self.seen = b.progress;
            }
            flow = Flow::Yield;
        } else if matches!(op, MbarOp::TestWait { .. }) {
            self.failed_waits = 0;
        }
        Ok(flow)
    }

    #[allow(clippy::too_many_arguments, reason = "the operands of one instruction")]
    fn arrive(
        &mut self,
        b: &mut Block<'_>,
        at: u32,
        n: u32,
        tx: i64,
        drop: bool,
        no_complete: bool,
        lane: usize,
    ) -> Exec<u64> {
        let clock = b.shared.release_clock(self.id);
        b.progress += 1;
        let Some(m) = b.mbars.get_mut(&at) else {
            return Ok(0);
        };
        let misuse = |s: String| raise(FaultKind::MbarrierMisuse(s), Some(lane));
        if n == 0 || n > m.pending {
            let s = format!(
                "{n} arrivals at the mbarrier at {at:#x}, which expects {} more",
                m.pending
            );
            return misuse(s);
        }
        let token = u64::from(m.phase) << 32 | u64::from(m.pending);
        join(&mut m.clock, &clock);
        m.tx += tx;
        m.pending -= n;
        if drop {
            m.expected -= n.min(m.expected);
        }
        if no_complete && m.pending == 0 {
            return misuse(format!(
                "a .noComplete arrival completes the mbarrier at {at:#x}"
            ));
        }
        m.complete_if_done();
        Ok(token)
    }

    /// The arrivals that copies trigger happen now.
    fn land_deferred(&mut self, b: &mut Block<'_>, at: u32) -> Exec<()> {
        let Some(m) = b.mbars.get_mut(&at) else {
            return Ok(());
        };
        if m.deferred.is_empty() {
            return Ok(());
        }
        let deferred = std::mem::take(&mut m.deferred);
        for (warp, lane, tie) in deferred {
            // The data and the arrival are the issuing thread's; its copies are kept by the block.
            b.land_tied(warp, lane, tie);
            let clock = b.shared.release_clock(warp);
            b.progress += 1;
            let Some(m) = b.mbars.get_mut(&at) else {
                return Ok(());
            };
            if m.pending == 0 {
                return raise(
                    FaultKind::MbarrierMisuse(format!(
                        "a copy's arrival at the mbarrier at {at:#x}, which expects none"
                    )),
                    Some(lane),
                );
            }
            join(&mut m.clock, &clock);
            m.pending -= 1;
            m.complete_if_done();
        }
        Ok(())
    }
}
