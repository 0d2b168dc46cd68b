//! How the lanes of a warp part and meet again, and wait for each other.

use super::Exec;
use super::block::Block;
use super::warp::Warp;
use crate::ir::{Bar, Collective, NONE};

/// What a split is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Ready,
    /// At the meeting point of its branch.
    Arrived,
    /// At a warp-wide instruction whose members are not all here.
    Member {
        need: u32,
    },
    /// At an aligned barrier that not all lanes of the warp have reached.
    PartialBarrier,
    /// Waits for a generation of a barrier to complete.
    Barrier {
        id: u32,
        generation: u64,
    },
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Split {
    pub pc: u32,
    pub mask: u32,
    /// Meeting point it belongs to, or `NONE`.
    pub meeting: u32,
    pub state: State,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Meeting {
    pub pc: u32,
    pub mask: u32,
    pub parent: u32,
}

/// After so many instructions without anybody arriving, lanes at a meeting point go on alone: the
/// others may be waiting for them.
pub(super) const PATIENCE: u64 = 1_000_000;

impl Warp {
    pub(super) fn release_arrived(&mut self) {
        for s in &mut self.splits {
            if s.state == State::Arrived {
                let m = &mut self.meetings[s.meeting as usize];
                m.mask &= !s.mask;
                s.meeting = m.parent;
                s.state = State::Ready;
            }
        }
    }

    /// Replaces a split by one per target.
    pub(super) fn part(&mut self, i: usize, parts: &[(u32, u32)], reconverge: u32) {
        let Split { mask, meeting, .. } = self.splits[i];
        let same = meeting != NONE && self.meetings[meeting as usize].pc == reconverge;
        let meeting = if reconverge == NONE || same {
            meeting
        } else {
            let m = Meeting {
                pc: reconverge,
                mask,
                parent: meeting,
            };
            match self.free.pop() {
                Some(f) => {
                    self.meetings[f as usize] = m;
                    f
                }
                None => {
                    self.meetings.push(m);
                    (self.meetings.len() - 1) as u32
                }
            }
        };
        let mut splits = parts.iter().map(|&(pc, mask)| Split {
            pc,
            mask,
            meeting,
            state: State::Ready,
        });
        if let Some(first) = splits.next() {
            self.splits[i] = first;
        }
        self.splits.extend(splits);
    }

    /// Parts a split without moving it. Its halves meet again right after the instruction: a warp-wide
    /// instruction whose groups name different masks.
    pub(super) fn part_here(&mut self, i: usize, first: u32) {
        let Split { pc, mask, .. } = self.splits[i];
        self.part(i, &[(pc, first), (pc, mask & !first)], pc + 1);
    }

    /// Some lanes of a split go on elsewhere; they keep its meeting point.
    pub(super) fn split_off(&mut self, i: usize, mask: u32, pc: u32) {
        let meeting = self.splits[i].meeting;
        self.splits.push(Split {
            pc,
            mask,
            meeting,
            state: State::Ready,
        });
    }

    /// Merges splits whose meeting is complete.
    pub(super) fn settle(&mut self) {
        'again: loop {
            for i in 0..self.splits.len() {
                let Split {
                    pc,
                    meeting,
                    state: State::Arrived,
                    ..
                } = self.splits[i]
                else {
                    continue;
                };
                let here = |s: &Split| s.state == State::Arrived && s.meeting == meeting;
                let arrived = self
                    .splits
                    .iter()
                    .filter(|s| here(s))
                    .fold(0, |m, s| m | s.mask);
                let m = self.meetings[meeting as usize];
                if m.mask & self.live & !arrived != 0 {
                    continue;
                }
                self.splits.retain(|s| !here(s));
                let parent_here = m.parent != NONE && self.meetings[m.parent as usize].pc == pc;
                self.splits.push(Split {
                    pc,
                    mask: arrived,
                    meeting: m.parent,
                    state: if parent_here {
                        State::Arrived
                    } else {
                        State::Ready
                    },
                });
                self.free.push(meeting);
                self.patience = PATIENCE;
                continue 'again;
            }
            return;
        }
    }

    /// Executes a warp-wide instruction once all its members wait at it.
    pub(super) fn gather(
        &mut self,
        b: &mut Block<'_>,
        i: usize,
        op: &Collective,
        need: u32,
    ) -> Exec<()> {
        let pc = self.splits[i].pc;
        // A warp barrier may be a different instruction for each member.
        let anywhere = matches!(op, Collective::Sync);
        let waits = |s: &Split| s.state == State::Member { need } && (s.pc == pc || anywhere);
        let here = self
            .splits
            .iter()
            .filter(|s| waits(s))
            .fold(self.splits[i].mask, |m, s| m | s.mask);
        let c = &mut b.counters[pc as usize];
        if here & need & self.live != need & self.live {
            // It counts when it executes.
            c.warp_instructions -= 1;
            c.lane_instructions -= u64::from(self.splits[i].mask.count_ones());
            self.splits[i].state = State::Member { need };
            return Ok(());
        }
        c.lane_instructions += u64::from((here & !self.splits[i].mask).count_ones());
        self.collective(b, op, here)?;
        for (j, s) in self.splits.iter_mut().enumerate() {
            if waits(s) || j == i {
                s.pc += 1;
                s.state = State::Ready;
            }
        }
        Ok(())
    }

    pub(super) fn at_barrier(&mut self, b: &mut Block<'_>, i: usize, bar: &Bar) -> Exec<()> {
        let Split { pc, mut mask, .. } = self.splits[i];
        if bar.aligned {
            let waits = |s: &Split| s.state == State::PartialBarrier && s.pc == pc;
            let here = self
                .splits
                .iter()
                .filter(|s| waits(s))
                .fold(mask, |m, s| m | s.mask);
            if here != self.live {
                let c = &mut b.counters[pc as usize];
                c.warp_instructions -= 1;
                c.lane_instructions -= u64::from(mask.count_ones());
                self.splits[i].state = State::PartialBarrier;
                return Ok(());
            }
            b.counters[pc as usize].lane_instructions += u64::from((here & !mask).count_ones());
            mask = here;
        }
        let wait = b.arrive_barrier(self, bar, mask)?;
        let aligned = bar.aligned;
        for (j, s) in self.splits.iter_mut().enumerate() {
            if j == i || (aligned && s.state == State::PartialBarrier && s.pc == pc) {
                match wait {
                    Some((id, generation)) => s.state = State::Barrier { id, generation },
                    None => {
                        s.pc += 1;
                        s.state = State::Ready;
                    }
                }
            }
        }
        Ok(())
    }
}
