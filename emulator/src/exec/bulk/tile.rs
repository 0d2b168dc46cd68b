//! The chunks of a bulk copy: its operands and what they may be.

use super::super::address::{Target, param_bytes};
use super::super::block::Block;
use super::super::shared::Who;
use super::super::warp::Warp;
use super::super::{Exec, raise};
use crate::error::{Access, FaultKind, Space};
use crate::ir::{Addr, BulkCopy, BulkDirection, BulkGlobal, MemSpace};
use crate::tensor_map::{Chunk, TENSOR_MAP_BYTES, TensorMap};

/// What the address of a tensor map must be a multiple of.
const MAP_ALIGN: u64 = 64;

fn misuse<T>(lane: usize, text: String) -> Exec<T> {
    raise(FaultKind::AsyncMisuse(text), Some(lane))
}

impl Warp {
    /// The chunks a lane's copy moves, and what is outside the tensor. Their shared addresses are
    /// checked.
    pub(super) fn bulk_chunks(
        &mut self,
        b: &mut Block<'_>,
        c: &BulkCopy,
        lane: usize,
    ) -> Exec<(Vec<Chunk>, [u8; 16])> {
        let shared = match &c.shared {
            Some(a) => self.shared_address(a, lane),
            // A prefetch.
            None => 0,
        };
        let access = match c.direction {
            BulkDirection::Load { .. } => Access::AsyncWrite,
            _ => Access::AsyncRead,
        };
        // All of it is in shared memory, before anything as large is made; a prefetch needs no chunks.
        let fits = |b: &Block<'_>, bytes: u32| match (&c.shared, bytes) {
            (_, 0) => Ok(true),
            (None, _) => Ok(false),
            (Some(_), n) => {
                let last = shared.saturating_add(u64::from(n) - 16);
                b.shared.check(last, 16, access, lane).map(|_| true)
            }
        };
        let (chunks, fill) = match &c.global {
            BulkGlobal::Plain { addr, size } => {
                let size = self.regs.w(*size)[lane];
                let global = self.addresses(addr)[lane];
                check_plain(shared, global, size, lane)?;
                let chunks = match fits(b, size)? {
                    true => plain(shared, global, size),
                    false => Vec::new(),
                };
                (chunks, [0; 16])
            }
            BulkGlobal::Tensor { map, coordinates } => {
                let map = self.tensor_map(b, map, lane)?;
                let at: Vec<i32> = coordinates
                    .iter()
                    .map(|w| self.regs.w(*w)[lane] as i32)
                    .collect();
                let tile = match map.tile(&at, shared as u32) {
                    Ok(t) if u64::from(shared as u32) == shared => t,
                    Ok(_) => return misuse(lane, format!("{shared:#x} is no shared address")),
                    Err(e) => return misuse(lane, e.to_string()),
                };
                let chunks = match fits(b, map.shared_bytes())? {
                    true => tile.chunks().collect(),
                    false => Vec::new(),
                };
                (chunks, map.fill_bytes())
            }
        };
        Ok((chunks, fill))
    }

    /// The tensor map at a generic address.
    fn tensor_map(&mut self, b: &mut Block<'_>, addr: &Addr, lane: usize) -> Exec<TensorMap> {
        let address = self.addresses(addr)[lane];
        let mut bytes = [0; TENSOR_MAP_BYTES];
        let misaligned = |space, address: u64| {
            let kind = FaultKind::Misaligned {
                space,
                address,
                align: MAP_ALIGN as u32,
            };
            raise(kind, Some(lane))
        };
        match Self::target(MemSpace::Generic, address) {
            Target::Param(at) => {
                if !at.is_multiple_of(MAP_ALIGN) {
                    return misaligned(Space::Param, at);
                }
                for (i, part) in bytes.chunks_exact_mut(MAP_ALIGN as usize).enumerate() {
                    param_bytes(b, at + i as u64 * MAP_ALIGN, part, Some(lane))?;
                }
            }
            Target::Global(at) => {
                if !at.is_multiple_of(MAP_ALIGN) {
                    return misaligned(Space::Global, at);
                }
                let who = Who {
                    warp: self.id,
                    lane,
                    pc: self.pc,
                };
                for (i, part) in bytes.chunks_exact_mut(16).enumerate() {
                    b.read_global(at + 16 * i as u64, part, 16, who, false, false)?;
                }
            }
            Target::Shared(_) | Target::Local(_) => {
                let text = format!(
                    "a tensor map at {address:#x}, which is not in global, constant or parameter memory"
                );
                return misuse(lane, text);
            }
        }
        match TensorMap::decode(&bytes) {
            Ok(map) if map.tiled().element.copies_bits() => Ok(map),
            Ok(map) => {
                let text = format!("copies of elements {:?}", map.tiled().element);
                raise(FaultKind::Unsupported(text), Some(lane))
            }
            Err(e) => misuse(lane, format!("no tensor map at {address:#x}: {e}")),
        }
    }
}

/// What the operands of a copy without a tensor map may be.
fn check_plain(shared: u64, global: u64, size: u32, lane: usize) -> Exec<()> {
    if !size.is_multiple_of(16) {
        let text = format!("a bulk copy of {size} bytes; the size must be a multiple of 16");
        return misuse(lane, text);
    }
    for (space, address) in [(Space::Shared, shared), (Space::Global, global)] {
        if !address.is_multiple_of(16) {
            let kind = FaultKind::Misaligned {
                space,
                address,
                align: 16,
            };
            return raise(kind, Some(lane));
        }
    }
    Ok(())
}

/// Its chunks.
fn plain(shared: u64, global: u64, size: u32) -> Vec<Chunk> {
    let chunk = |at: u32| Chunk {
        shared: shared as u32 + at,
        inside: 0..16,
        global: global.wrapping_add(u64::from(at)),
    };
    (0..size).step_by(16).map(chunk).collect()
}
