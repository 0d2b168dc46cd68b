//! Device memory: a sparse 64-bit address space of bounded allocations.
//!
//! Pages are materialised when first written, so an allocation may be far larger than the host's
//! memory. Words are relaxed atomics: blocks run on several host threads, and a racy kernel must
//! not be a racy host program.

use crate::ast;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, RwLock};

/// Bytes in a page.
pub(crate) const PAGE: u64 = 16384;
const WORDS: usize = (PAGE / 4) as usize;
/// Pages in a directory of the two-level page table.
const DIR: usize = 1024;
/// The first device address: high, so that a 32-bit truncation of an address is out of bounds.
const BASE: u64 = 0x7f00_0000_0000;
/// Unmapped bytes between allocations, so that overruns do not land in a neighbour.
const GAP: u64 = 1 << 26;
/// Device addresses end here; the windows of the other spaces lie above.
const END: u64 = 1 << 56;

/// An address in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The address `bytes` further on.
    pub fn offset(self, bytes: u64) -> DevicePtr {
        DevicePtr(self.0.wrapping_add(bytes))
    }
}

/// Why the host could not allocate or access device memory.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// A range that is not inside one allocation.
    #[error("{bytes} bytes at {address:#x} are not inside one allocation")]
    OutOfBounds {
        /// First address.
        address: u64,
        /// Length.
        bytes: u64,
    },
    /// The address space is used up.
    #[error("no address space left for {0} bytes")]
    Exhausted(u64),
    /// A module variable whose initialiser cannot be evaluated.
    #[error("initialiser of `{0}` cannot be evaluated")]
    Initialiser(String),
}

mod sealed {
    pub trait Sealed {}
}

/// Scalars that can be copied to and from device memory.
pub trait Plain: Copy + sealed::Sealed {
    /// Size in bytes.
    const SIZE: usize;
    /// Appends the little-endian bytes.
    fn put(self, out: &mut Vec<u8>);
    /// From `SIZE` little-endian bytes.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! plain {
    ($($t:ty),*) => {$(
        impl sealed::Sealed for $t {}
        impl Plain for $t {
            const SIZE: usize = size_of::<$t>();
            fn put(self, out: &mut Vec<u8>) {
                out.extend_from_slice(&self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> Self {
                let mut b = [0; size_of::<$t>()];
                b.copy_from_slice(bytes);
                <$t>::from_le_bytes(b)
            }
        }
    )*};
}
plain!(
    u8,
    i8,
    u16,
    i16,
    u32,
    i32,
    u64,
    i64,
    f32,
    f64,
    half::f16,
    half::bf16
);

struct Page {
    words: [AtomicU32; WORDS],
    /// Per word, which of its four bytes have been written.
    init: [AtomicU8; WORDS],
}

impl Page {
    fn new(init: u8) -> Box<Page> {
        Box::new(Page {
            words: [const { AtomicU32::new(0) }; WORDS],
            init: std::array::from_fn(|_| AtomicU8::new(init)),
        })
    }
}

type Dir = [OnceLock<Box<Page>>; DIR];

/// One allocation.
pub(crate) struct Allocation {
    pub base: u64,
    pub size: u64,
    pub zeroed: bool,
    pub read_only: bool,
    dirs: Box<[OnceLock<Box<Dir>>]>,
}

impl Allocation {
    fn new(base: u64, size: u64, zeroed: bool, read_only: bool) -> Self {
        let dirs = size.div_ceil(PAGE * DIR as u64) as usize;
        Allocation {
            base,
            size,
            zeroed,
            read_only,
            dirs: (0..dirs).map(|_| OnceLock::new()).collect(),
        }
    }

    /// The page of an offset within the allocation, if something was written there.
    fn page(&self, offset: u64) -> Option<&Page> {
        let page = (offset / PAGE) as usize;
        self.dirs.get(page / DIR)?.get()?[page % DIR]
            .get()
            .map(|p| &**p)
    }

    fn page_mut(&self, offset: u64) -> Option<&Page> {
        let page = (offset / PAGE) as usize;
        let dir = self
            .dirs
            .get(page / DIR)?
            .get_or_init(|| Box::new([const { OnceLock::new() }; DIR]));
        let init = if self.zeroed { 0xf } else { 0 };
        Some(dir[page % DIR].get_or_init(|| Page::new(init)))
    }

    /// Whether `bytes` at `offset` lie inside.
    pub fn holds(&self, offset: u64, bytes: u64) -> bool {
        offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.size)
    }

    /// Reads up to four bytes that lie in one word: the value, and which bytes are initialised.
    #[inline]
    pub fn load_word(&self, offset: u64) -> (u32, u8) {
        match self.page(offset) {
            Some(p) => {
                let w = (offset % PAGE / 4) as usize;
                (p.words[w].load(Relaxed), p.init[w].load(Relaxed))
            }
            None => (0, if self.zeroed { 0xf } else { 0 }),
        }
    }

    /// Writes the bytes of a word that `mask` names (one bit per byte).
    #[inline]
    pub fn store_word(&self, offset: u64, value: u32, mask: u8) {
        let Some(p) = self.page_mut(offset) else {
            return;
        };
        let w = (offset % PAGE / 4) as usize;
        if mask == 0xf {
            p.words[w].store(value, Relaxed);
            if p.init[w].load(Relaxed) != 0xf {
                p.init[w].store(0xf, Relaxed);
            }
        } else {
            let m = byte_mask(mask);
            let _ = p.words[w].fetch_update(Relaxed, Relaxed, |old| Some(old & !m | value & m));
            p.init[w].fetch_or(mask, Relaxed);
        }
    }

    /// Compare-and-swap of a word, for atomics. Serialised by the caller when wider.
    pub fn swap_word(&self, offset: u64, expected: u32, new: u32) -> Result<u32, u32> {
        let Some(p) = self.page_mut(offset) else {
            return Ok(expected);
        };
        let w = (offset % PAGE / 4) as usize;
        let r = p.words[w].compare_exchange(expected, new, Relaxed, Relaxed);
        if r.is_ok() {
            p.init[w].store(0xf, Relaxed);
        }
        r
    }
}

/// Expands one bit per byte to a bit mask.
pub(crate) fn byte_mask(mask: u8) -> u32 {
    let m = mask as u32;
    let spread = (m & 1) | (m & 2) << 7 | (m & 4) << 14 | (m & 8) << 21;
    spread * 0xff
}

#[derive(Default)]
struct Inner {
    allocations: Vec<Arc<Allocation>>,
    next: u64,
    modules: HashMap<u64, Arc<HashMap<String, u64>>>,
}

/// The memory of a device: what launches read and write.
#[derive(Default)]
pub struct Memory {
    inner: RwLock<Inner>,
    /// Serialises 64-bit and sub-word atomics, whose words cannot be swapped at once.
    pub(crate) atomics: Mutex<()>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let n = self.snapshot().len();
        f.debug_struct("Memory").field("allocations", &n).finish()
    }
}

impl Memory {
    /// A device with nothing allocated.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes`, uninitialised: reading before writing is a fault. The address is a
    /// multiple of 512. Costs next to nothing, whatever the size, until written.
    pub fn alloc(&self, bytes: u64) -> Result<DevicePtr, MemoryError> {
        self.allocate(bytes, false, false)
    }

    /// Allocates `bytes` of zeros.
    pub fn alloc_zeroed(&self, bytes: u64) -> Result<DevicePtr, MemoryError> {
        self.allocate(bytes, true, false)
    }

    /// Allocates exactly what `values` needs and copies them in.
    pub fn alloc_from<T: Plain>(&self, values: &[T]) -> Result<DevicePtr, MemoryError> {
        let ptr = self.alloc((values.len() * T::SIZE) as u64)?;
        self.write_slice(ptr, values)?;
        Ok(ptr)
    }

    /// Frees an allocation by its first address. Later accesses are out of bounds.
    pub fn free(&self, ptr: DevicePtr) -> Result<(), MemoryError> {
        let mut inner = self.lock_mut();
        let at = inner.allocations.iter().position(|a| a.base == ptr.0);
        let at = at.ok_or(MemoryError::OutOfBounds {
            address: ptr.0,
            bytes: 0,
        })?;
        inner.allocations.remove(at);
        Ok(())
    }

    /// Copies bytes to the device.
    pub fn write(&self, ptr: DevicePtr, bytes: &[u8]) -> Result<(), MemoryError> {
        let (a, offset) = self.find(ptr, bytes.len() as u64)?;
        write_bytes(&a, offset, bytes);
        Ok(())
    }

    /// Copies bytes from the device. Bytes never written read as zero.
    pub fn read(&self, ptr: DevicePtr, bytes: &mut [u8]) -> Result<(), MemoryError> {
        let (a, offset) = self.find(ptr, bytes.len() as u64)?;
        for (i, b) in bytes.iter_mut().enumerate() {
            let at = offset + i as u64;
            *b = a.load_word(at & !3).0.to_le_bytes()[(at & 3) as usize];
        }
        Ok(())
    }

    /// Copies scalars to the device.
    pub fn write_slice<T: Plain>(&self, ptr: DevicePtr, values: &[T]) -> Result<(), MemoryError> {
        let mut bytes = Vec::with_capacity(values.len() * T::SIZE);
        values.iter().for_each(|v| v.put(&mut bytes));
        self.write(ptr, &bytes)
    }

    /// Copies `count` scalars from the device.
    pub fn read_vec<T: Plain>(&self, ptr: DevicePtr, count: usize) -> Result<Vec<T>, MemoryError> {
        let mut bytes = vec![0; count * T::SIZE];
        self.read(ptr, &mut bytes)?;
        Ok(bytes.chunks_exact(T::SIZE).map(T::get).collect())
    }

    /// Whether every byte of a range has been written.
    pub fn is_initialised(&self, ptr: DevicePtr, bytes: u64) -> Result<bool, MemoryError> {
        let (a, offset) = self.find(ptr, bytes)?;
        Ok((offset..offset + bytes).all(|at| a.load_word(at & !3).1 >> (at & 3) & 1 == 1))
    }

    fn allocate(
        &self,
        bytes: u64,
        zeroed: bool,
        read_only: bool,
    ) -> Result<DevicePtr, MemoryError> {
        let mut inner = self.lock_mut();
        let base = inner.next.max(BASE);
        let end = base.checked_add(bytes).filter(|&e| e < END - 2 * GAP);
        let end = end.ok_or(MemoryError::Exhausted(bytes))?;
        inner.next = (end + GAP).next_multiple_of(512);
        inner
            .allocations
            .push(Arc::new(Allocation::new(base, bytes, zeroed, read_only)));
        Ok(DevicePtr(base))
    }

    fn find(&self, ptr: DevicePtr, bytes: u64) -> Result<(Arc<Allocation>, u64), MemoryError> {
        let inner = match self.inner.read() {
            Ok(i) => i,
            Err(poisoned) => poisoned.into_inner(),
        };
        let at = inner.allocations.partition_point(|a| a.base <= ptr.0);
        at.checked_sub(1)
            .and_then(|i| inner.allocations.get(i))
            .filter(|a| a.holds(ptr.0 - a.base, bytes))
            .map(|a| (a.clone(), ptr.0 - a.base))
            .ok_or(MemoryError::OutOfBounds {
                address: ptr.0,
                bytes,
            })
    }

    /// The allocations, by address.
    pub(crate) fn snapshot(&self) -> Vec<Arc<Allocation>> {
        match self.inner.read() {
            Ok(i) => i.allocations.clone(),
            Err(poisoned) => poisoned.into_inner().allocations.clone(),
        }
    }

    /// Creates a module's variables in this memory, once.
    pub(crate) fn instantiate(
        &self,
        id: u64,
        module: &ast::Module,
    ) -> Result<Arc<HashMap<String, u64>>, MemoryError> {
        if let Some(v) = self.lock_mut().modules.get(&id) {
            return Ok(v.clone());
        }
        let mut vars = HashMap::new();
        for v in &module.globals {
            let ptr = self.allocate(v.size, true, v.space == ast::VarSpace::Const)?;
            vars.insert(v.name.clone(), ptr.0);
        }
        for v in &module.globals {
            let Some(init) = &v.init else { continue };
            let mut bytes = init.bytes.clone();
            for (at, width, symbol, addend) in &init.symbols {
                let function = || {
                    let place = module.functions.iter().position(|f| f.name == *symbol)?;
                    Some(crate::decode::FUNCTION_BASE_ADDRESS + place as u64)
                };
                let base = vars
                    .get(symbol)
                    .copied()
                    .or_else(function)
                    .ok_or_else(|| MemoryError::Initialiser(v.name.clone()))?;
                let value = base.wrapping_add(*addend as u64).to_le_bytes();
                let (at, width) = (*at, (*width).min(8));
                bytes
                    .get_mut(at..at + width)
                    .ok_or_else(|| MemoryError::Initialiser(v.name.clone()))?
                    .copy_from_slice(&value[..width]);
            }
            self.write(DevicePtr(vars[&v.name]), &bytes)?;
        }
        let vars = Arc::new(vars);
        self.lock_mut().modules.insert(id, vars.clone());
        Ok(vars)
    }

    fn lock_mut(&self) -> std::sync::RwLockWriteGuard<'_, Inner> {
        match self.inner.write() {
            Ok(i) => i,
            Err(poisoned) => poisoned.into_inner(),
        }
    }
}

fn write_bytes(a: &Allocation, offset: u64, bytes: &[u8]) {
    let mut i = 0;
    while i < bytes.len() {
        let at = offset + i as u64;
        let first = (at & 3) as usize;
        let n = (4 - first).min(bytes.len() - i);
        let mut word = [0; 4];
        word[first..first + n].copy_from_slice(&bytes[i..i + n]);
        let mask = (((1u32 << n) - 1) << first) as u8;
        a.store_word(at & !3, u32::from_le_bytes(word), mask);
        i += n;
    }
}
