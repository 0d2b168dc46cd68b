//! Which instructions touch the registers of asynchronous tensor operations.

use std::collections::HashMap;

use crate::ir::regs::W;
use crate::ir::{Collective, Inst, Op, Wgmma, WgmmaA};

/// Numbers the registers that are accumulators or fragments of A, and notes for every other instruction
/// which of them it names. `names` has the registers of each instruction.
pub(super) fn track(code: &mut [Inst], names: &[Vec<W>]) {
    let mut numbers = HashMap::new();
    for inst in code.iter_mut() {
        let Some(op) = wgmma(inst) else { continue };
        let mut number = |w: &W| {
            let next = numbers.len() as u32;
            *numbers.entry(*w).or_insert(next)
        };
        op.d_slots = op.d.iter().map(&mut number).collect();
        if let WgmmaA::Registers { regs, slots } = &mut op.a {
            *slots = regs.iter().map(&mut number).collect();
        }
    }
    if numbers.is_empty() {
        return;
    }
    for (inst, names) in code.iter_mut().zip(names) {
        if wgmma(inst).is_none() {
            inst.tracked = names
                .iter()
                .filter_map(|w| numbers.get(w).copied())
                .collect();
        }
    }
}

fn wgmma(inst: &mut Inst) -> Option<&mut Wgmma> {
    match &mut inst.op {
        Op::Collective {
            op: Collective::Wgmma(op),
            ..
        } => Some(op),
        _ => None,
    }
}
