//! Addresses of lanes: spaces, windows, local memory and parameters.

use super::block::Block;
use super::warp::Warp;
use super::{Exec, raise};
use crate::error::{Access, FaultKind, Space};
use crate::ir::regs::LANES;
use crate::ir::{Addr, MemSpace, Row};
use crate::window::Window;

/// A lane's address after resolving the space.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Target {
    Global(u64),
    Shared(u64),
    Local(u64),
    Param(u64),
}

impl Warp {
    pub fn addresses(&self, a: &Addr) -> [u64; LANES] {
        let off = a.offset as u64;
        match a.base {
            // Addresses of at most 32 bits wrap there.
            Row::W(w) => self
                .regs
                .w(w)
                .map(|x| u64::from(x.wrapping_add(off as u32))),
            Row::D(d) => self.regs.d(d).map(|x| x.wrapping_add(off)),
        }
    }

    /// An address in the shared window or a generic one that points there.
    pub fn shared_address(&self, a: &Addr, lane: usize) -> u64 {
        let off = a.offset as u64;
        let x = match a.base {
            Row::W(w) => u64::from(self.regs.w(w)[lane].wrapping_add(off as u32)),
            Row::D(d) => self.regs.d(d)[lane].wrapping_add(off),
        };
        if x >= Window::SHARED && x - Window::SHARED < Window::SIZE {
            x - Window::SHARED
        } else {
            x
        }
    }

    pub fn target(space: MemSpace, a: u64) -> Target {
        let inside = |base: u64| a >= base && a - base < Window::SIZE;
        match space {
            MemSpace::Shared => Target::Shared(a),
            MemSpace::Local => Target::Local(a),
            MemSpace::Param => Target::Param(a),
            MemSpace::Global | MemSpace::Const => Target::Global(a),
            MemSpace::Generic if inside(Window::SHARED) => Target::Shared(a - Window::SHARED),
            MemSpace::Generic if inside(Window::LOCAL) => Target::Local(a - Window::LOCAL),
            MemSpace::Generic if inside(Window::PARAM) => Target::Param(a - Window::PARAM),
            MemSpace::Generic => Target::Global(a),
        }
    }

    /// The lane's bytes of local memory.
    pub(super) fn local_range(
        &self,
        at: u64,
        len: u32,
        access: Access,
        lane: usize,
    ) -> Exec<std::ops::Range<usize>> {
        let size = u64::from(self.local_bytes);
        if at.checked_add(u64::from(len)).is_none_or(|end| end > size) {
            let detail = format!("the thread has {size} bytes of local memory");
            return raise(
                FaultKind::OutOfBounds {
                    space: Space::Local,
                    access,
                    address: at,
                    len,
                    detail,
                },
                Some(lane),
            );
        }
        if !at.is_multiple_of(u64::from(len)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Local,
                    address: at,
                    align: len,
                },
                Some(lane),
            );
        }
        let from = lane * self.local_bytes as usize + at as usize;
        Ok(from..from + len as usize)
    }
}

/// Bytes of the kernel parameters.
pub(super) fn param_bytes(b: &Block<'_>, at: u64, out: &mut [u8], lane: Option<usize>) -> Exec<()> {
    let params = &b.launch.params;
    let end = at
        .checked_add(out.len() as u64)
        .filter(|e| *e <= params.len() as u64);
    let Some(end) = end else {
        let detail = format!("the kernel has {} bytes of parameters", params.len());
        let len = out.len() as u32;
        return raise(
            FaultKind::OutOfBounds {
                space: Space::Param,
                access: Access::Read,
                address: at,
                len,
                detail,
            },
            lane,
        );
    };
    if !at.is_multiple_of(out.len() as u64) {
        return raise(
            FaultKind::Misaligned {
                space: Space::Param,
                address: at,
                align: out.len() as u32,
            },
            lane,
        );
    }
    out.copy_from_slice(&params[at as usize..end as usize]);
    Ok(())
}
