//! What special registers and other constant rows hold.

use super::block::Block;
use crate::ir::{Const, LaneMask};

/// The value of a constant row in one lane.
pub(super) fn constant(block: &Block<'_>, warp: usize, lane: usize, c: Const) -> u64 {
    let launch = block.launch;
    let thread = (warp * 32 + lane) as u32;
    let axis = |(x, y, z): (u32, u32, u32), a: u8| u64::from([x, y, z][usize::from(a.min(2))]);
    let bit = 1u64 << lane;
    match c {
        Const::Imm(v) => v,
        Const::Variable(i, offset) => launch
            .variables
            .get(i as usize)
            .copied()
            .unwrap_or(0)
            .wrapping_add(offset as u64),
        Const::Tid(a) => axis(launch.thread_index(thread), a),
        Const::Ntid(a) => axis(launch.config.block, a),
        Const::Ctaid(a) => axis(block.index, a),
        Const::Nctaid(a) => axis(launch.config.grid, a),
        Const::LaneId => lane as u64,
        Const::WarpId => warp as u64,
        Const::WarpCount => u64::from(launch.warps),
        Const::LaneMask(m) => match m {
            LaneMask::Eq => bit,
            LaneMask::Lt => bit - 1,
            LaneMask::Le => bit | (bit - 1),
            LaneMask::Gt => !(bit | (bit - 1)) & 0xffff_ffff,
            LaneMask::Ge => !(bit - 1) & 0xffff_ffff,
        },
        Const::DynamicShared => u64::from(launch.config.shared_bytes),
        Const::TotalShared => u64::from(launch.shared_bytes),
    }
}
