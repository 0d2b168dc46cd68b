//! Shared memory with its shadow: what is initialised, who wrote last, who has read since.
//!
//! # Policy
//!
//! Warps are ordered by vector clocks, which barriers, mbarriers and fenced atomics join. Within a
//! warp, lanes that execute together are ordered by the program; lanes that have parted are ordered
//! by what they did before, and again once they meet. Two lanes that write different values to
//! one place in one instruction race. Accesses that are both atomic or volatile do not.
//!
//! The shadow has one writer per four-byte word, with a mask of its bytes: of several unordered
//! writers to *different* bytes of a word only the last is remembered.

use crate::fault::AccessKind;
use crate::memory::byte_mask;
use crate::module::Checks;

/// An access in the shadow: 28 bits of clock, 20 of program counter, 5 of lane, 5 of warp, 4 of
/// byte mask, one each for strong and asynchronous. No byte is no access.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Entry(u64);

const MAX_CLOCK: u32 = (1 << 28) - 1;

impl Entry {
    fn new(who: &Who<'_>, bytes: u8) -> Entry {
        Entry(
            u64::from(who.clock.min(MAX_CLOCK)) << 36
                | u64::from(who.pc.min((1 << 20) - 1)) << 16
                | u64::from(who.lane & 31) << 11
                | u64::from(who.warp & 31) << 6
                | u64::from(bytes & 15) << 2
                | u64::from(who.strong) << 1
                | u64::from(who.copy),
        )
    }

    fn clock(self) -> u32 {
        (self.0 >> 36) as u32
    }

    pub fn pc(self) -> u32 {
        (self.0 >> 16) as u32 & 0xf_ffff
    }

    pub fn lane(self) -> u32 {
        (self.0 >> 11) as u32 & 31
    }

    pub fn warp(self) -> u32 {
        (self.0 >> 6) as u32 & 31
    }

    fn bytes(self) -> u8 {
        (self.0 >> 2) as u8 & 15
    }

    fn strong(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn copy(self) -> bool {
        self.0 & 1 != 0
    }
}

/// The thread that accesses, and what its warp knows.
#[derive(Clone, Copy)]
pub struct Who<'a> {
    pub warp: u32,
    pub lane: u32,
    pub pc: u32,
    pub clock: u32,
    /// Lanes that execute together with it, and when they parted from the others.
    pub mask: u32,
    pub parted: u32,
    pub strong: bool,
    pub copy: bool,
    pub knows: &'a [u32],
}

/// What is wrong with an access.
pub enum Clash {
    Race(Entry, AccessKind),
    Pending,
}

pub struct Shared {
    pub bytes: u64,
    words: Vec<u32>,
    init: Vec<u8>,
    writer: Vec<Entry>,
    /// Last read by each warp since the last write.
    readers: Vec<Entry>,
    reader_mask: Vec<u32>,
    /// Copies under way to each word.
    pending: Vec<u8>,
    /// The store instruction that last wrote each word.
    serial_of: Vec<u32>,
    serial: u32,
    warps: usize,
    checks: Checks,
}

impl Shared {
    pub fn new(bytes: u64, warps: usize, checks: Checks) -> Self {
        let n = bytes.div_ceil(4) as usize;
        let races = if checks.shared_races { n } else { 0 };
        Shared {
            bytes,
            words: vec![0xffff_ffff; n],
            init: vec![0; n],
            writer: vec![Entry::default(); races],
            readers: vec![Entry::default(); races * warps],
            reader_mask: vec![0; races],
            pending: vec![0; n],
            serial_of: vec![0; races],
            serial: 0,
            warps,
            checks,
        }
    }

    pub fn holds(&self, offset: u64, bytes: u32) -> bool {
        offset
            .checked_add(u64::from(bytes))
            .is_some_and(|end| end <= self.bytes)
    }

    /// A new store instruction begins.
    pub fn begin_store(&mut self) {
        self.serial = self.serial.wrapping_add(1);
    }

    #[inline]
    fn ordered(e: Entry, who: &Who<'_>) -> bool {
        if e.warp() == who.warp {
            return who.mask >> e.lane() & 1 == 1 || e.clock() < who.parted;
        }
        who.knows
            .get(e.warp() as usize)
            .is_some_and(|&c| c >= e.clock())
    }

    /// Reads bytes of one word. The flag says whether they are initialised.
    #[inline]
    pub fn read(&mut self, offset: u64, bytes: u8, who: &Who<'_>) -> Result<(u32, bool), Clash> {
        let i = (offset / 4) as usize;
        if self.checks.pending_copies && self.pending[i] != 0 {
            return Err(Clash::Pending);
        }
        if self.checks.shared_races {
            let e = self.writer[i];
            if e.bytes() & bytes != 0 && !(e.strong() && who.strong) && !Self::ordered(e, who) {
                return Err(Clash::Race(e, kind(e, true)));
            }
            let mine = i * self.warps + who.warp as usize;
            self.readers[mine] = Entry::new(who, bytes | self.merged(i, mine, who));
            self.reader_mask[i] |= 1 << who.warp;
        }
        let init = !self.checks.uninitialised || self.init[i] & bytes == bytes;
        Ok((self.words[i], init))
    }

    /// The bytes that this warp has read at the same time.
    #[inline]
    fn merged(&self, i: usize, mine: usize, who: &Who<'_>) -> u8 {
        let old = self.readers[mine];
        if self.reader_mask[i] >> who.warp & 1 == 1 && old.clock() == who.clock {
            old.bytes()
        } else {
            0
        }
    }

    /// Writes bytes of one word.
    #[inline]
    pub fn write(
        &mut self,
        offset: u64,
        value: u32,
        bytes: u8,
        who: &Who<'_>,
    ) -> Result<(), Clash> {
        let i = (offset / 4) as usize;
        if self.checks.pending_copies && self.pending[i] != 0 {
            return Err(Clash::Pending);
        }
        let m = byte_mask(bytes);
        if self.checks.shared_races {
            let e = self.writer[i];
            let exempt = e.strong() && who.strong;
            if e.bytes() & bytes != 0 && !exempt {
                if !Self::ordered(e, who) {
                    return Err(Clash::Race(e, kind(e, true)));
                }
                let both = byte_mask(e.bytes() & bytes);
                if self.serial_of[i] == self.serial
                    && e.lane() != who.lane
                    && (self.words[i] ^ value) & both != 0
                {
                    return Err(Clash::Race(e, kind(e, true)));
                }
            }
            let mut left = self.reader_mask[i];
            while left != 0 {
                let w = left.trailing_zeros() as usize;
                left &= left - 1;
                let e = self.readers[i * self.warps + w];
                if e.bytes() & bytes != 0 && !(e.strong() && who.strong) && !Self::ordered(e, who) {
                    return Err(Clash::Race(e, kind(e, false)));
                }
            }
            self.reader_mask[i] = 0;
            let same = self.serial_of[i] == self.serial;
            let also = if same { e.bytes() } else { 0 };
            self.writer[i] = Entry::new(who, bytes | also);
            self.serial_of[i] = self.serial;
        }
        self.words[i] = self.words[i] & !m | value & m;
        self.init[i] |= bytes;
        Ok(())
    }

    /// A copy to these words begins; they must not be touched until it lands. Whoever wrote or
    /// read them before must be ordered before the copy.
    pub fn begin_copy(&mut self, offset: u64, bytes: u32, who: &Who<'_>) -> Result<(), Clash> {
        for i in words(offset, bytes) {
            if self.checks.pending_copies && self.pending[i] != 0 {
                return Err(Clash::Pending);
            }
            if !self.checks.shared_races {
                continue;
            }
            let e = self.writer[i];
            if e.bytes() != 0 && !Self::ordered(e, who) {
                return Err(Clash::Race(e, kind(e, true)));
            }
            for w in 0..self.warps {
                let e = self.readers[i * self.warps + w];
                if self.reader_mask[i] >> w & 1 == 1 && !Self::ordered(e, who) {
                    return Err(Clash::Race(e, kind(e, false)));
                }
            }
        }
        for i in words(offset, bytes) {
            self.pending[i] = self.pending[i].saturating_add(1);
        }
        Ok(())
    }

    /// A copy lands.
    pub fn land(&mut self, offset: u64, data: &[u8], who: &Who<'_>) -> Result<(), Clash> {
        let bytes = data.len() as u32;
        for i in words(offset, bytes) {
            self.pending[i] = self.pending[i].saturating_sub(1);
        }
        for (n, chunk) in data.chunks_exact(4).enumerate() {
            let mut b = [0; 4];
            b.copy_from_slice(chunk);
            let i = offset as usize / 4 + n;
            // Checked when it began; what came since was refused because it was pending.
            if self.checks.shared_races {
                self.writer[i] = Entry::new(who, 15);
                self.reader_mask[i] = 0;
            }
            self.words[i] = u32::from_le_bytes(b);
            self.init[i] = 15;
        }
        Ok(())
    }
}

fn kind(e: Entry, write: bool) -> AccessKind {
    match (e.copy(), e.strong(), write) {
        (true, ..) => AccessKind::AsyncWrite,
        (_, _, false) => AccessKind::Read,
        (_, true, _) => AccessKind::Atomic,
        _ => AccessKind::Write,
    }
}

fn words(offset: u64, bytes: u32) -> std::ops::Range<usize> {
    let first = (offset / 4) as usize;
    first..first + bytes.div_ceil(4) as usize
}
