//! Reads and writes of global memory: bounds, contents, races, data.

use super::block::Block;
use super::shared::{Conflict, Who};
use super::warps_global::Span;
use super::{Exec, raise};
use crate::error::{Access, FaultKind, Space};
use crate::memory::Allocation;

impl<'l> Block<'l> {
    /// The allocation and offset of a global access, checked.
    #[inline]
    pub fn global(
        &mut self,
        address: u64,
        len: u32,
        access: Access,
        lane: usize,
    ) -> Exec<(usize, &'l Allocation, u64)> {
        let list = &self.launch.memory;
        let hit = |i: usize| {
            let a = list.get(i)?;
            let offset = address.wrapping_sub(a.base);
            (offset < a.size && u64::from(len) <= a.size - offset && !a.is_freed())
                .then_some((i, &**a, offset))
        };
        let found = match hit(self.cache) {
            Some(found) => found,
            None => {
                let i = list.partition_point(|a| a.base <= address);
                match i.checked_sub(1).and_then(hit) {
                    Some(found) => {
                        self.cache = found.0;
                        found
                    }
                    None => return self.outside(address, len, access, lane),
                }
            }
        };
        if !address.is_multiple_of(u64::from(len)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Global,
                    address,
                    align: len,
                },
                Some(lane),
            );
        }
        if access != Access::Read && found.1.constant {
            let detail = "a constant variable is read-only".to_owned();
            return raise(
                FaultKind::OutOfBounds {
                    space: Space::Const,
                    access,
                    address,
                    len,
                    detail,
                },
                Some(lane),
            );
        }
        Ok(found)
    }

    #[cold]
    fn outside<T>(&self, address: u64, len: u32, access: Access, lane: usize) -> Exec<T> {
        let list = &self.launch.memory;
        let i = list.partition_point(|a| a.base <= address);
        let below = i.checked_sub(1).and_then(|i| list.get(i));
        if let Some(a) = below
            && a.is_freed()
            && address - a.base < a.size
        {
            return raise(FaultKind::UseAfterFree { address, len }, Some(lane));
        }
        let mut detail = match below {
            Some(a) => format!(
                "{} bytes into an allocation of {} bytes at {:#x}",
                address - a.base,
                a.size,
                a.base
            ),
            None => "below every allocation".to_owned(),
        };
        if let Some(a) = list.get(i) {
            let gap = a.base - address;
            // Only a close one says something.
            if gap < 1 << 20 {
                detail += &format!(
                    "; {gap} bytes before one of {} bytes at {:#x}",
                    a.size, a.base
                );
            }
        }
        raise(
            FaultKind::OutOfBounds {
                space: Space::Global,
                access,
                address,
                len,
                detail,
            },
            Some(lane),
        )
    }

    /// Whether somebody wrote the bytes of an allocation that are read.
    #[inline]
    pub fn written_before(
        &self,
        a: &Allocation,
        address: u64,
        offset: u64,
        len: u32,
        lane: usize,
    ) -> Exec<()> {
        if !self.launch.config.checks.uninit_global || !a.tracked() {
            return Ok(());
        }
        let step = len.min(4);
        for k in (0..len).step_by(step as usize) {
            if !a.is_written(offset + u64::from(k), step) {
                let kind = FaultKind::Uninitialised {
                    space: Space::Global,
                    address: address + u64::from(k),
                    len: step,
                };
                return raise(kind, Some(lane));
            }
        }
        Ok(())
    }

    /// Reads a global (or constant) value of `len` bytes, a power of two.
    pub fn read_global(
        &mut self,
        address: u64,
        out: &mut [u8],
        len: u32,
        who: Who,
        relaxed: bool,
        constant: bool,
    ) -> Exec<()> {
        let (index, a, offset) = self.global(address, len, Access::Read, who.lane)?;
        if constant && !a.constant {
            let detail = "not a constant variable".to_owned();
            let kind = FaultKind::OutOfBounds {
                space: Space::Const,
                access: Access::Read,
                address,
                len,
                detail,
            };
            return raise(kind, Some(who.lane));
        }
        let launch = self.launch;
        let page = a.page(offset);
        self.written_before(a, address, offset, len, who.lane)?;
        if let Some(races) = &launch.races
            && !a.constant
        {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.read(&self.party, index, offset, len, thread, who.pc, relaxed) {
                return self.global_race(address, Access::Read, o, who.lane);
            }
        }
        if let Some(warps) = &mut self.warps_global
            && !a.constant
            && let Err(o) = warps.read(
                &self.shared.vc,
                Span {
                    allocation: index,
                    offset,
                    len,
                },
                who,
                relaxed,
            )
        {
            return self.warps_race(address, Access::Read, o, who.lane);
        }
        let Some(page) = page else { return Ok(()) };
        if len >= 4 {
            for (k, c) in out.chunks_exact_mut(4).enumerate() {
                c.copy_from_slice(&page.load(offset + 4 * k as u64, 4).to_le_bytes());
            }
        } else {
            out.copy_from_slice(&page.load(offset, len).to_le_bytes()[..len as usize]);
        }
        Ok(())
    }

    /// Reads `out.len()` bytes, at most `align` of them, from an address aligned to `align`: the source
    /// of an asynchronous copy.
    pub fn read_global_bytes(
        &mut self,
        address: u64,
        out: &mut [u8],
        align: u32,
        who: Who,
    ) -> Exec<()> {
        let len = out.len() as u32;
        if len == align {
            return self.read_global(address, out, len, who, false, false);
        }
        if !address.is_multiple_of(u64::from(align)) {
            return raise(
                FaultKind::Misaligned {
                    space: Space::Global,
                    address,
                    align,
                },
                Some(who.lane),
            );
        }
        // A short source: as words, then as bytes. The shadow's grain may be a word.
        let mut at = 0;
        while at < out.len() {
            let n = if out.len() - at >= 4 { 4 } else { 1 };
            self.read_global(
                address + at as u64,
                &mut out[at..at + n],
                n as u32,
                who,
                false,
                false,
            )?;
            at += n;
        }
        Ok(())
    }

    pub fn write_global(
        &mut self,
        address: u64,
        bytes: &[u8],
        who: Who,
        relaxed: bool,
    ) -> Exec<()> {
        let len = bytes.len() as u32;
        let (index, a, offset) = self.global(address, len, Access::Write, who.lane)?;
        if let Some(races) = &self.launch.races {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.write(&self.party, index, offset, len, thread, who.pc, relaxed) {
                return self.global_race(address, Access::Write, o, who.lane);
            }
        }
        let access = if relaxed {
            Access::Atomic
        } else {
            Access::Write
        };
        self.warps_write(
            address,
            Span {
                allocation: index,
                offset,
                len,
            },
            who,
            access,
        )?;
        put(a, offset, bytes);
        Ok(())
    }

    /// A write by an asynchronous unit, which the warps of the block know of already.
    pub fn write_for_blocks(&mut self, address: u64, bytes: &[u8], who: Who) -> Exec<()> {
        let len = bytes.len() as u32;
        let (index, a, offset) = self.global(address, len, Access::AsyncWrite, who.lane)?;
        if let Some(races) = &self.launch.races {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.write(&self.party, index, offset, len, thread, who.pc, false) {
                return self.global_race(address, Access::AsyncWrite, o, who.lane);
            }
        }
        put(a, offset, bytes);
        Ok(())
    }

    /// A conflict of a unit's access with what warps or other units of the block did.
    #[cold]
    pub fn unit_conflict<T>(
        &self,
        address: u64,
        access: Access,
        conflict: Conflict,
        lane: usize,
    ) -> Exec<T> {
        match conflict {
            Conflict::Race {
                other,
                other_access,
            } => self.warps_race(address, access, (other, other_access), lane),
            Conflict::Unfenced(other) | Conflict::Pending(other) => {
                let kind = FaultKind::MissingProxyFence {
                    space: Space::Global,
                    address,
                    access,
                    other: self.place_of(other),
                };
                raise(kind, Some(lane))
            }
            // Contents are checked before.
            Conflict::Uninitialised => self.outside(address, 1, access, lane),
        }
    }

    /// Notes a write or atomic for the other warps of the block.
    pub fn warps_write(&mut self, address: u64, span: Span, who: Who, access: Access) -> Exec<()> {
        if let Some(warps) = &mut self.warps_global
            && let Err(o) = warps.write(&self.shared.vc, span, who, access == Access::Atomic)
        {
            return self.warps_race(address, access, o, who.lane);
        }
        Ok(())
    }

    #[cold]
    fn warps_race<T>(
        &self,
        address: u64,
        access: Access,
        (other, other_access): (Who, Access),
        lane: usize,
    ) -> Exec<T> {
        let other = self.place_of(other);
        raise(
            FaultKind::Race {
                space: Space::Global,
                address,
                access,
                other_access,
                other,
            },
            Some(lane),
        )
    }

    #[cold]
    pub fn global_race<T>(
        &self,
        address: u64,
        access: Access,
        o: super::global::Other,
        lane: usize,
    ) -> Exec<T> {
        let block = self.launch.block_index(u64::from(o.block));
        let other = self.launch.place(block, Some(o.thread), o.pc);
        raise(
            FaultKind::Race {
                space: Space::Global,
                address,
                access,
                other_access: o.access,
                other,
            },
            Some(lane),
        )
    }
}

/// Puts bytes, aligned to their number, into an allocation.
#[inline]
fn put(a: &Allocation, offset: u64, bytes: &[u8]) {
    let len = bytes.len() as u32;
    let Some(page) = a.touch(offset) else {
        return;
    };
    if len >= 4 {
        for (k, c) in bytes.chunks_exact(4).enumerate() {
            let v = u32::from_le_bytes([c[0], c[1], c[2], c[3]]);
            page.store(offset + 4 * k as u64, 4, v);
        }
    } else {
        let v = bytes.iter().rev().fold(0, |v, &x| v << 8 | u32::from(x));
        page.store(offset, len, v);
    }
}
