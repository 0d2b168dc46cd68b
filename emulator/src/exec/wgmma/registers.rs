//! Which registers asynchronous tensor operations hold, and which need a `wgmma.fence` first.

use super::super::block::Block;
use super::super::shared::Who;
use super::super::warp::Warp;
use super::super::{Exec, raise};
use crate::error::FaultKind;
use crate::ir::{Wgmma, WgmmaA};

/// A register that is an accumulator or a fragment of A somewhere in the kernel.
#[derive(Debug, Clone, Copy, Default)]
struct Register {
    /// The fences before its last access by another instruction, plus one; 0 if there was none.
    touched: u32,
    touched_at: u32,
    /// The number of the last operation that used it, plus one.
    operation: u64,
    operation_at: u32,
    accumulator: bool,
    /// The columns of that operation.
    n: u32,
    /// The fences before it.
    fences: u32,
}

/// The tracked registers of a warp.
#[derive(Debug, Default)]
pub(crate) struct Held {
    registers: Vec<Register>,
    /// `wgmma.fence`s executed.
    fences: u32,
}

impl Held {
    pub fn fence(&mut self) {
        self.fences += 1;
    }

    fn get(&mut self, slot: u32) -> &mut Register {
        let i = slot as usize;
        if self.registers.len() <= i {
            self.registers.resize(i + 1, Register::default());
        }
        &mut self.registers[i]
    }
}

impl Warp {
    fn hazard<T>(&self, b: &Block<'_>, detail: &str, other: u32) -> Exec<T> {
        let who = Who {
            warp: self.id,
            lane: 0,
            pc: other as usize,
        };
        let kind = FaultKind::RegisterHazard {
            detail: detail.to_owned(),
            other: b.place_of(who),
        };
        raise(kind, Some(0))
    }

    /// An instruction other than `wgmma` reads or writes tracked registers.
    #[inline(never)]
    pub(in crate::exec) fn touch(&mut self, b: &Block<'_>, slots: &[u32], at: usize) -> Exec<()> {
        let done = self.tensor.done;
        for &slot in slots {
            let fences = self.tensor.held.fences;
            let r = self.tensor.held.get(slot);
            if r.operation > done {
                let at = r.operation_at;
                let detail = match r.accumulator {
                    true => {
                        "accumulator in flight: no wgmma.wait_group covers the tensor operation that writes this register"
                    }
                    false => {
                        "fragment of A in flight: no wgmma.wait_group covers the tensor operation that reads this register"
                    }
                };
                return self.hazard(b, detail, at);
            }
            r.touched = fences + 1;
            r.touched_at = at as u32;
        }
        Ok(())
    }

    /// An operation takes its registers.
    pub(super) fn hold(&mut self, b: &Block<'_>, op: &Wgmma) -> Exec<()> {
        let fences = self.tensor.held.fences;
        if fences == 0 {
            let at = self.pc as u32;
            let detail =
                "missing wgmma.fence: there is none before the warp's first tensor operation";
            return self.hazard(b, detail, at);
        }
        let a: &[u32] = match &op.a {
            WgmmaA::Registers { slots, .. } => slots,
            WgmmaA::Shared(_) => &[],
        };
        let (done, at) = (self.tensor.done, self.pc as u32);
        let next = Register {
            touched: 0,
            touched_at: 0,
            operation: self.tensor.issued + 1,
            operation_at: at,
            accumulator: true,
            n: op.n,
            fences,
        };
        let uses = op
            .d_slots
            .iter()
            .map(|s| (*s, true))
            .chain(a.iter().map(|s| (*s, false)));
        for (slot, accumulator) in uses {
            let r = *self.tensor.held.get(slot);
            if r.touched > fences {
                let detail = "missing wgmma.fence: an instruction accessed a register of this tensor operation after the last one";
                return self.hazard(b, detail, r.touched_at);
            }
            let in_flight = r.operation > done;
            if in_flight && r.accumulator != accumulator {
                let detail = "register in flight: it is an accumulator of one tensor operation and a fragment of A of another, and no wgmma.wait_group is between";
                return self.hazard(b, detail, r.operation_at);
            }
            let other_shape = r.operation > 0 && accumulator && (!r.accumulator || r.n != op.n);
            if other_shape && r.fences == fences {
                let detail = "missing wgmma.fence: a tensor operation of another shape used this accumulator after the last one";
                return self.hazard(b, detail, r.operation_at);
            }
            *self.tensor.held.get(slot) = Register {
                accumulator,
                ..next
            };
        }
        Ok(())
    }
}
