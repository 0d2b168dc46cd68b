//! `mbarrier` objects in shared memory.

use super::block::Block;
use super::shared::{Clock, Entry, Kind, Reach, Who, join};
use super::warp::{Flow, Warp};
use super::{Exec, raise};
use crate::error::{Access, FaultKind, Space};
use crate::ir::regs::lanes;
use crate::ir::{Addr, MbarOp, Phase};

/// What the ISA allows a count to be, of arrivals and (either side of 0) of bytes.
const MAX_COUNT: u32 = (1 << 20) - 1;
/// Of as many waits that could see a phase complete one does not yet, as long as the waiting warp knows
/// nothing of the completion.
const LATE: usize = 4;

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
    /// Its initialisation, which a unit that signals it must see.
    init: Entry,
    clock: Clock,
    done_clock: Clock,
}

/// What a thread waits for at an mbarrier.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PhaseWait {
    address: u32,
    /// The number of the phase, or with `.parity` only whether it is odd.
    phase: u32,
    parity: bool,
}

impl PhaseWait {
    fn over(self, m: &Mbarrier) -> bool {
        match self.parity {
            true => m.phase & 1 != self.phase & 1,
            false => m.phase > self.phase,
        }
    }
}

impl Block<'_> {
    /// Counts bytes that are expected (or, negative, have arrived) and completes the phase if nothing
    /// is missing.
    pub fn count_bytes(&mut self, at: u32, bytes: i64, lane: usize) -> Exec<()> {
        if let Some(m) = self.mbars.get_mut(&at) {
            m.tx += bytes;
            if m.tx.unsigned_abs() > u64::from(MAX_COUNT) {
                let text = format!(
                    "the mbarrier at {at:#x} counts {} bytes; the limit is {MAX_COUNT} either way",
                    m.tx
                );
                return raise(FaultKind::MbarrierMisuse(text), Some(lane));
            }
        }
        self.settle_mbarrier(at);
        Ok(())
    }

    fn settle_mbarrier(&mut self, at: u32) {
        self.progress += 1;
        let Some(m) = self.mbars.get_mut(&at) else {
            return;
        };
        if m.pending == 0 && m.tx == 0 {
            m.phase += 1;
            m.pending = m.expected;
            // The copies that this phase waited for are over for whoever sees it complete.
            if let Some((party, clock)) = self.shared.parties.complete_phase(at) {
                m.clock[party] = clock;
            }
            m.done_clock.copy_from_slice(&m.clock);
        }
    }

    /// The party of an mbarrier that a bulk copy of `who` will signal: its initialisation must be
    /// visible to the asynchronous proxy.
    pub fn track(&mut self, at: u32, who: Who) -> Exec<usize> {
        let misuse = |text: String| raise(FaultKind::MbarrierMisuse(text), Some(who.lane));
        let Some(m) = self.mbars.get(&at) else {
            return misuse(format!("there is no initialised mbarrier at {at:#x}"));
        };
        let init = m.init;
        if let Err(c) = self.shared.note_read(at, 8, who, true) {
            return self.conflict(c, Access::Atomic, 8, who.lane);
        }
        let known = &self.shared.vc[who.warp];
        if self.launch.config.checks.shared_races
            && !self.shared.fences.cover(init, known, Reach::Init)
        {
            let kind = FaultKind::MissingProxyFence {
                space: Space::Shared,
                address: u64::from(at),
                access: Access::Atomic,
                other: self.place_of(init.who()),
            };
            return raise(kind, Some(who.lane));
        }
        match self.shared.parties.mbarrier(at, who.warp) {
            Some(party) => Ok(party),
            None => {
                let text = "bulk copies tracked by more than 64 mbarriers of a block".to_owned();
                raise(FaultKind::Unsupported(text), Some(who.lane))
            }
        }
    }

    pub fn mbarrier_text(&self, wait: PhaseWait) -> String {
        let address = wait.address;
        let awaited = match wait.parity {
            true => format!("a phase of parity {}", wait.phase & 1),
            false => format!("phase {}", wait.phase),
        };
        match self.mbars.get(&address) {
            Some(m) => format!(
                "{awaited} of the mbarrier at {address:#x}, which is in phase {} with {} of {} arrivals and {} bytes missing",
                m.phase, m.pending, m.expected, m.tx
            ),
            None => format!("{awaited} of the mbarrier at {address:#x}"),
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

/// An operand of bytes.
fn bytes(n: u32, lane: usize) -> Exec<i64> {
    if n > MAX_COUNT {
        let text = format!("a count of {n} bytes; the limit is {MAX_COUNT}");
        return raise(FaultKind::MbarrierMisuse(text), Some(lane));
    }
    Ok(i64::from(n))
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
                let zero = vec![0; b.shared.parties.len()];
                let init = Entry::new(who, b.shared.vc[self.id][self.id], Kind::Plain);
                b.mbars.insert(
                    at,
                    Mbarrier {
                        phase: 0,
                        expected: count,
                        pending: count,
                        tx: 0,
                        deferred: Vec::new(),
                        init,
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
                    // Bytes may have been counted before they were expected.
                    let tx = bytes(self.regs.w(*tx)[lane], lane)?;
                    b.count_bytes(at, tx, lane)?;
                }
                MbarOp::CompleteTx { tx } => {
                    let tx = bytes(self.regs.w(*tx)[lane], lane)?;
                    let clock = b.shared.release_clock(self.id);
                    if let Some(m) = b.mbars.get_mut(&at) {
                        join(&mut m.clock, &clock);
                    }
                    b.count_bytes(at, -tx, lane)?;
                }
                MbarOp::Arrive {
                    state,
                    count,
                    tx,
                    drop,
                    no_complete,
                } => {
                    let n = count.map_or(1, |c| self.regs.w(c)[lane]);
                    let tx = tx.map_or(Ok(0), |t| bytes(self.regs.w(t)[lane], lane))?;
                    let token = self.arrive(b, at, n, tx, *drop, *no_complete, lane)?;
                    if let Some(s) = state {
                        self.regs.put_d(*s, &[token; 32], 1 << lane);
                    }
                }
                MbarOp::TestWait {
                    done,
                    phase,
                    may_suspend,
                } => {
                    // Whoever waits makes the copies that the barrier tracks land; not sooner.
                    self.land_deferred(b, at)?;
                    let wait = match phase {
                        Phase::State(s) => PhaseWait {
                            address: at,
                            phase: (self.regs.d(*s)[lane] >> 32) as u32,
                            parity: false,
                        },
                        Phase::Parity(p) => PhaseWait {
                            address: at,
                            phase: self.regs.w(*p)[lane],
                            parity: true,
                        },
                    };
                    let m = &b.mbars[&at];
                    let mut complete = wait.over(m);
                    // The completion may take its time to be seen, until something else orders it
                    // before the wait.
                    if complete
                        && *may_suspend
                        && !b.shared.knows(self.id, &m.done_clock)
                        && b.rng.below(LATE) == 0
                    {
                        complete = false;
                        b.progress += 1;
                    }
                    if complete {
                        b.shared.acquire(self.id, &m.done_clock);
                    } else {
                        not_done |= 1u32 << lane;
                        self.waits_on = Some(wait);
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
        m.pending -= n;
        if drop {
            m.expected -= n.min(m.expected);
        }
        if no_complete && m.pending == 0 {
            return misuse(format!(
                "a .noComplete arrival completes the mbarrier at {at:#x}"
            ));
        }
        // `.expect_tx` comes before the arrival.
        b.count_bytes(at, tx, lane)?;
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
            b.settle_mbarrier(at);
        }
        Ok(())
    }
}
