//! `wgmma`: tensor operations of four warps, which run beside them.
//!
//! The four warps of a warpgroup issue an operation one after the other; it begins when the last has, and
//! reads its operands from shared memory at a moment that the seed chooses: at once, or when the first
//! warp waits for it. A warp's registers belong to the operation until that warp's own wait, where the
//! results appear in them. An operation is the warpgroup's: once one warp has waited for it, none of its
//! operands in shared memory is needed any more. Kernels rely on that when one thread of a warpgroup tells
//! the producer that a stage is free.

mod multiply;
mod registers;

use std::collections::VecDeque;
use std::sync::Arc;

use super::block::Block;
use super::regs_pool::Pool;
use super::shared::{UnitRead, Who};
use super::warp::Warp;
use super::{Exec, raise};
use crate::error::{Access, FaultKind};
use crate::ir::regs::FULL;
use crate::ir::{Collective, Op, Wgmma, WgmmaA};
use crate::matrix_descriptor::{DescriptorError, Major, MatrixDescriptor, Operand};
use multiply::Operands;
pub(crate) use registers::Held;

/// Warps of a warpgroup.
pub(super) const WARPS: usize = 4;
const ALL: u8 = (1 << WARPS) - 1;

/// An operation that at least one warp has issued and at least one has not waited for.
struct Operation {
    who: Who,
    a: Option<u64>,
    b: u64,
    scale_d: bool,
    /// The warps that have issued it, and those that have its results.
    issued: u8,
    finished: u8,
    operands: Option<Arc<Operands>>,
}

/// What the warps of a warpgroup share.
#[derive(Default)]
pub(crate) struct Warpgroup {
    operations: VecDeque<Operation>,
    /// The number of the first of them.
    first: u64,
    /// Where each warp executed `setmaxnreg`, in its order.
    pub(super) pool: Pool,
}

/// What a warp has issued and waited for.
#[derive(Debug, Default)]
pub(crate) struct WarpTensor {
    issued: u64,
    /// Operations that are over for this warp: those before this number.
    done: u64,
    /// Groups that were committed and not waited for: the operations before each number.
    groups: VecDeque<u64>,
    held: Held,
}

impl Warp {
    fn tensor_misuse<T>(text: String) -> Exec<T> {
        raise(FaultKind::AsyncMisuse(text), Some(0))
    }

    /// The warpgroup of this warp, which must be whole.
    pub(super) fn warpgroup(&self, b: &Block<'_>) -> Exec<usize> {
        let group = self.id / WARPS;
        if (group + 1) * WARPS > b.launch.warps as usize {
            return Self::tensor_misuse(format!(
                "an instruction of a warpgroup in warp {} of a block of {}: a warpgroup is four warps, of which the first is a multiple of 4",
                self.id, b.launch.warps
            ));
        }
        Ok(group)
    }

    /// The value of a row that must be the same in all lanes.
    fn uniform(&self, r: crate::ir::regs::D, name: &str) -> Exec<u64> {
        let row = self.regs.d(r);
        match row.iter().position(|x| *x != row[0]) {
            None => Ok(row[0]),
            Some(lane) => {
                let text = format!(
                    "the {name} descriptor is {:#x} in lane 0 and {:#x} in lane {lane}",
                    row[0], row[lane]
                );
                raise(FaultKind::AsyncMisuse(text), Some(lane))
            }
        }
    }

    pub(super) fn wgmma(&mut self, b: &mut Block<'_>, op: &Wgmma) -> Exec<()> {
        let group = self.warpgroup(b)?;
        let desc_b = self.uniform(op.b, "B")?;
        let desc_a = match &op.a {
            WgmmaA::Shared(d) => Some(self.uniform(*d, "A")?),
            WgmmaA::Registers { .. } => None,
        };
        let p = self.regs.p(op.scale_d.0) ^ if op.scale_d.1 { FULL } else { 0 };
        if p != 0 && p != FULL {
            return Self::tensor_misuse(format!("scale-d is true in lanes {p:#010x} only"));
        }
        let who = Who {
            warp: self.id,
            lane: 0,
            pc: self.pc,
        };
        self.hold(b, op)?;
        let mine = Operation {
            who,
            a: desc_a,
            b: desc_b,
            scale_d: p != 0,
            issued: 0,
            finished: 0,
            operands: None,
        };
        let number = self.tensor.issued;
        b.join_operation(group, number, mine)?;
        self.note_operands(b, op, desc_a, desc_b, group, number)?;
        let bit = 1 << (self.id % WARPS);
        let operation = b.groups[group].operation(number);
        operation.issued |= bit;
        if operation.issued == ALL && b.rng.below(2) == 0 {
            b.read_operands(group, number);
        }
        b.counters[self.pc].tensor_flops += 2 * 16 * 16 * u64::from(op.n);
        self.tensor.issued += 1;
        Ok(())
    }

    /// Checks and notes the reading of the operands.
    fn note_operands(
        &self,
        b: &mut Block<'_>,
        op: &Wgmma,
        a: Option<u64>,
        bits: u64,
        group: usize,
        number: u64,
    ) -> Exec<()> {
        let who = Who {
            warp: self.id,
            lane: 0,
            pc: self.pc,
        };
        let read = UnitRead {
            party: b.shared.parties.warpgroup(group),
            clock: number as u32 + 1,
            column: group,
        };
        let a = a.map(|bits| ("A", operand(bits, op.trans_a, 64)));
        for (name, operand) in a
            .into_iter()
            .chain([("B", operand(bits, op.trans_b, op.n))])
        {
            let operand = match operand {
                Ok(o) => o,
                Err(e) => return Self::tensor_misuse(format!("operand {name} of wgmma: {e}")),
            };
            for chunk in operand.chunks() {
                let at = b
                    .shared
                    .check(u64::from(chunk), 16, Access::AsyncRead, who.lane)?;
                if let Err(c) = b.shared.note_unit_read(at, 16, who, read) {
                    return b.conflict(c, Access::AsyncRead, 16, who.lane);
                }
            }
        }
        Ok(())
    }

    pub(super) fn wgmma_fence(&mut self, b: &Block<'_>) -> Exec<()> {
        self.warpgroup(b)?;
        self.tensor.held.fence();
        Ok(())
    }

    pub(super) fn wgmma_commit(&mut self, b: &Block<'_>) -> Exec<()> {
        self.warpgroup(b)?;
        self.tensor.groups.push_back(self.tensor.issued);
        Ok(())
    }

    /// `wait_group n`. The warp stalls when another has not issued what it waits for.
    pub(super) fn wgmma_wait(&mut self, b: &mut Block<'_>, n: u32) -> Exec<()> {
        self.warpgroup(b)?;
        let mut until = self.tensor.done;
        while self.tensor.groups.len() > n as usize {
            until = self.tensor.groups.pop_front().unwrap_or(until);
        }
        if !self.finish_operations(b, until) {
            self.stall = Some(super::stall::Stall::Tensor { until });
        }
        Ok(())
    }

    /// The operations before a number are over, if all warps have issued them.
    pub(super) fn finish_operations(&mut self, b: &mut Block<'_>, until: u64) -> bool {
        let group = self.id / WARPS;
        if b.groups[group].missing(self.tensor.done..until).is_some() {
            return false;
        }
        let code = &b.launch.kernel.code;
        for number in self.tensor.done..until {
            let operands = b.read_operands(group, number);
            let operation = b.groups[group].operation(number);
            operation.finished |= 1 << (self.id % WARPS);
            let (pc, scale_d) = (operation.who.pc, operation.scale_d);
            if let Op::Collective {
                op: Collective::Wgmma(op),
                ..
            } = &code[pc].op
            {
                multiply::multiply(&mut self.regs, op, &operands, scale_d, self.id % WARPS);
            }
        }
        self.tensor.done = until;
        b.groups[group].forget();
        let party = b.shared.parties.warpgroup(group);
        let known = &mut b.shared.vc[self.id];
        if let Some(k) = known.get_mut(party) {
            *k = (*k).max(until as u32);
        }
        true
    }

    /// The number of the first tensor operation that is not over for this warp.
    pub(super) fn tensor_done(&self) -> u64 {
        self.tensor.done
    }

    /// The warp ends.
    pub(super) fn end_tensor(&self, b: &Block<'_>) -> Exec<()> {
        if self.tensor.done == self.tensor.issued {
            return Ok(());
        }
        let other = b.place_of(b.groups[self.id / WARPS].place(self.tensor.done));
        let detail =
            "the warp ends before wgmma.wait_group has waited for a tensor operation".into();
        raise(FaultKind::RegisterHazard { detail, other }, Some(0))
    }
}

impl Warpgroup {
    fn operation(&mut self, number: u64) -> &mut Operation {
        &mut self.operations[(number - self.first) as usize]
    }

    fn place(&self, number: u64) -> Who {
        self.operations[(number - self.first) as usize].who
    }

    /// The first of some operations that a warp has not issued, and the warps that have.
    pub(super) fn missing(&self, numbers: std::ops::Range<u64>) -> Option<(Who, u8)> {
        numbers
            .map(|n| &self.operations[(n - self.first) as usize])
            .find(|o| o.issued != ALL)
            .map(|o| (o.who, o.issued))
    }

    fn forget(&mut self) {
        while self.operations.front().is_some_and(|o| o.finished == ALL) {
            self.operations.pop_front();
            self.first += 1;
        }
    }
}

impl Block<'_> {
    /// A warp issues its operation of this number: the same as the other warps of the group.
    fn join_operation(&mut self, group: usize, number: u64, mine: Operation) -> Exec<()> {
        let g = &mut self.groups[group];
        let Some(first) = g.operations.get((number - g.first) as usize) else {
            g.operations.push_back(mine);
            return Ok(());
        };
        let code = |who: Who| &self.launch.kernel.meta[who.pc].text;
        let detail = if first.who.pc != mine.who.pc {
            format!(
                "one executes `{}`, another `{}`",
                code(first.who),
                code(mine.who)
            )
        } else if first.b != mine.b {
            format!(
                "their descriptors of B are {:#x} and {:#x}",
                first.b, mine.b
            )
        } else if first.a != mine.a {
            let bits = |d: Option<u64>| d.unwrap_or(0);
            let (x, y) = (bits(first.a), bits(mine.a));
            format!("their descriptors of A are {x:#x} and {y:#x}")
        } else if first.scale_d != mine.scale_d {
            "scale-d is true in one and false in another".to_owned()
        } else {
            return Ok(());
        };
        let other = first.who;
        let other = self.place_of(other);
        raise(FaultKind::WarpgroupMismatch { detail, other }, Some(0))
    }

    /// The operands of an operation that all warps have issued.
    fn read_operands(&mut self, group: usize, number: u64) -> Arc<Operands> {
        let code = &self.launch.kernel.code;
        let bytes = &self.shared.bytes;
        let operation = self.groups[group].operation(number);
        let (a, b) = (operation.a, operation.b);
        let read = || match &code[operation.who.pc].op {
            Op::Collective {
                op: Collective::Wgmma(op),
                ..
            } => Operands::read(bytes, op, a, b),
            _ => Operands::default(),
        };
        operation
            .operands
            .get_or_insert_with(|| Arc::new(read()))
            .clone()
    }
}

/// The operand of 16-bit elements that a descriptor is of.
fn operand(bits: u64, transposed: bool, rows: u32) -> Result<Operand, DescriptorError> {
    let major = if transposed { Major::Mn } else { Major::K };
    MatrixDescriptor::parse(bits)?.operand(major, rows, 2)
}
