//! Atomics on global and shared memory, and failed assertions.

use std::sync::Mutex;
use std::sync::atomic::Ordering::SeqCst;

use super::address::Target;
use super::block::Block;
use super::shared::Who;
use super::warp::{Flow, Warp};
use super::warps_global::Span;
use super::{Exec, banks, raise};
use crate::error::{Access, FaultKind, Space};
use crate::fp;
use crate::ir::regs::lanes;
use crate::ir::{Atom, Order, Row};
use crate::window::Window;

/// Atomics of 64 bits touch two words: one at a time.
static WIDE: Mutex<()> = Mutex::new(());

impl Warp {
    pub fn atom(&mut self, b: &mut Block<'_>, a: &Atom, mask: u32) -> Exec<Flow> {
        let addrs = self.addresses(&a.addr);
        let operand = self.wide(a.b);
        let third = a.c.map_or([0; 32], |c| self.wide(c));
        let release = matches!(a.order, Order::Release | Order::AcqRel);
        let mut old = [0u64; 32];
        let (mut shared_mask, mut global_mask) = (0, 0);
        let mut shared_addrs = [0; 32];
        let keep = if a.width == 8 {
            u64::MAX
        } else {
            (1u64 << (a.width * 8)) - 1
        };
        b.progress += 1;
        for lane in lanes(mask) {
            let who = Who {
                warp: self.id,
                lane,
                pc: self.pc,
            };
            let f = |x: u64| (a.f)(x, operand[lane] & keep, third[lane] & keep) & keep;
            old[lane] = match Self::target(a.space, addrs[lane]) {
                Target::Shared(at) => {
                    let at = b.shared.check(at, a.width, Access::Atomic, lane)?;
                    b.guard_mbarrier(at, a.width, lane)?;
                    b.shared.synchronise(u64::from(at), self.id, release);
                    let checked = b.shared.note_read(at, a.width, who, true);
                    if let Err(c) =
                        checked.and_then(|()| b.shared.note_write(at, a.width, who, true))
                    {
                        return b.conflict(c, Access::Atomic, a.width, lane);
                    }
                    shared_mask |= 1 << lane;
                    shared_addrs[lane] = at;
                    let range = at as usize..(at + a.width) as usize;
                    let mut bytes = [0; 8];
                    bytes[..a.width as usize].copy_from_slice(&b.shared.bytes[range.clone()]);
                    let x = u64::from_le_bytes(bytes);
                    b.shared.bytes[range].copy_from_slice(&f(x).to_le_bytes()[..a.width as usize]);
                    x
                }
                Target::Global(at) => {
                    global_mask |= 1 << lane;
                    if a.flush_global {
                        let flush = |x: u64| u64::from(fp::flush(x as u32));
                        let f = |x: u64| flush((a.f)(flush(x), flush(operand[lane] & keep), 0));
                        b.global_atomic(at, a.width, who, release, f)?
                    } else {
                        b.global_atomic(at, a.width, who, release, f)?
                    }
                }
                Target::Local(address) | Target::Param(address) => {
                    let detail = "atomics work on global and shared memory".to_owned();
                    let kind = FaultKind::OutOfBounds {
                        space: Space::Local,
                        access: Access::Atomic,
                        address,
                        len: a.width,
                        detail,
                    };
                    return raise(kind, Some(lane));
                }
            };
        }
        match a.dst {
            Some(Row::W(w)) => self.regs.put_w(w, &old.map(|x| x as u32), mask),
            Some(Row::D(d)) => self.regs.put_d(d, &old, mask),
            None => {}
        }
        if shared_mask != 0 {
            banks::shared(
                &mut b.counters[self.pc],
                &shared_addrs,
                shared_mask,
                a.width,
            );
        }
        if global_mask != 0 {
            banks::global(&mut b.counters[self.pc], &addrs, global_mask, a.width);
        }
        // A lock's spinning must let the holder run.
        Ok(Flow::Yield)
    }

    /// `__assertfail(const char *message, const char *file, unsigned line, const char *function, size_t)`
    pub fn assert_fail(&mut self, b: &mut Block<'_>, params: &[u32], mask: u32) -> Exec<()> {
        let lane = lanes(mask).next().unwrap_or(0);
        let word = |i: usize, len: usize| -> u64 {
            let Some(&at) = params.get(i) else { return 0 };
            let from = lane * self.local_bytes as usize + at as usize;
            let mut bytes = [0; 8];
            if let Some(s) = self.local.get(from..from + len) {
                bytes[..len].copy_from_slice(s);
            }
            u64::from_le_bytes(bytes)
        };
        let message = b.text(word(0, 8), lane);
        let file = b.text(word(1, 8), lane);
        let line = word(2, 4);
        raise(
            FaultKind::Trap(format!("assertion `{message}` failed at {file}:{line}")),
            Some(lane),
        )
    }
}

impl Block<'_> {
    fn global_atomic(
        &mut self,
        address: u64,
        width: u32,
        who: Who,
        release: bool,
        f: impl Fn(u64) -> u64,
    ) -> Exec<u64> {
        let (index, a, offset) = self.global(address, width, Access::Atomic, who.lane)?;
        let launch = self.launch;
        if launch.config.checks.uninit_global && a.tracked() && !a.is_written(offset, width.min(4))
        {
            return raise(
                FaultKind::Uninitialised {
                    space: Space::Global,
                    address,
                    len: width,
                },
                Some(who.lane),
            );
        }
        let races = launch.races.as_ref();
        let _one_step = races.map(|r| r.synchronise(&mut self.party, address, release));
        if let Some(races) = races {
            let thread = (who.warp * 32 + who.lane) as u32;
            if let Err(o) = races.write(&self.party, index, offset, width, thread, who.pc, true) {
                return self.global_race(address, Access::Atomic, o, who.lane);
            }
        }
        self.shared.synchronise(address, who.warp, release);
        self.warps_write(
            address,
            Span {
                allocation: index,
                offset,
                len: width,
            },
            who,
            Access::Atomic,
        )?;
        let Some(page) = a.touch(offset) else {
            return Ok(0);
        };
        page.mark(offset, width.min(4));
        let word = page.word(offset);
        Ok(match width {
            8 => {
                page.mark(offset + 4, 4);
                let _one_at_a_time = WIDE.lock().unwrap_or_else(|e| e.into_inner());
                let x = u64::from(word.load(SeqCst))
                    | u64::from(page.word(offset + 4).load(SeqCst)) << 32;
                let y = f(x);
                word.store(y as u32, SeqCst);
                page.word(offset + 4).store((y >> 32) as u32, SeqCst);
                x
            }
            4 => u64::from(
                word.fetch_update(SeqCst, SeqCst, |x| Some(f(u64::from(x)) as u32))
                    .unwrap_or(0),
            ),
            _ => {
                let (shift, keep) = if width == 2 {
                    ((offset & 2) * 8, 0xffff)
                } else {
                    ((offset & 3) * 8, 0xff)
                };
                let update = |x: u32| {
                    let new = f(u64::from(x >> shift & keep)) as u32;
                    Some((x & !(keep << shift)) | (new & keep) << shift)
                };
                u64::from(word.fetch_update(SeqCst, SeqCst, update).unwrap_or(0) >> shift & keep)
            }
        })
    }

    /// A C string of the module, for an assertion's text.
    fn text(&mut self, address: u64, lane: usize) -> String {
        let mut out = Vec::new();
        while out.len() < 512 && address < Window::SHARED {
            match self.global(address + out.len() as u64, 1, Access::Read, lane) {
                Ok((_, a, offset)) => match a.load(offset, 1) as u8 {
                    0 => break,
                    c => out.push(c),
                },
                Err(_) => break,
            }
        }
        String::from_utf8_lossy(&out).into_owned()
    }
}
