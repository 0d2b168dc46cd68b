//! Device memory: exact bounds, sparse pages, per-byte knowledge of what was written.

mod sparse;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, RwLock};

pub(crate) use sparse::Sparse;

use crate::config::Scalar;
use crate::error::MemoryError;

/// An address in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// The null pointer.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    #[must_use]
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl std::fmt::Display for DevicePtr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// First address handed out; everything below is never valid, so small integers are caught.
const FIRST: u64 = 0x10_0000_0000;
/// One past the last address of device memory; the windows of other spaces lie above.
const LAST: u64 = 0x8000_0000_0000;
const ALIGN: u64 = 256;

pub(crate) const PAGE: u64 = 16 * 1024;
const PAGE_WORDS: usize = (PAGE / 4) as usize;

/// Bytes of device memory. Words are relaxed atomics: blocks run in parallel and a racing kernel
/// must not be undefined behaviour of the emulator. On usual hosts they cost what plain words cost.
pub(crate) struct Page {
    words: Box<[AtomicU32]>,
    /// A bit per byte: written by host or kernel. `None` if the allocation began initialised.
    written: Option<Box<[AtomicU32]>>,
}

fn zeros(n: usize) -> Box<[AtomicU32]> {
    (0..n).map(|_| AtomicU32::new(0)).collect()
}

impl Page {
    fn new(tracked: bool) -> Self {
        Self {
            words: zeros(PAGE_WORDS),
            written: tracked.then(|| zeros(PAGE as usize / 32)),
        }
    }

    #[inline]
    pub fn word(&self, offset: u64) -> &AtomicU32 {
        &self.words[(offset as usize / 4) % PAGE_WORDS]
    }

    /// Loads `len` (1, 2 or 4) bytes of one word.
    #[inline]
    pub fn load(&self, offset: u64, len: u32) -> u32 {
        let w = self.word(offset).load(Relaxed);
        match len {
            4 => w,
            2 => (w >> ((offset & 2) * 8)) & 0xffff,
            _ => (w >> ((offset & 3) * 8)) & 0xff,
        }
    }

    /// Stores `len` (1, 2 or 4) bytes of one word.
    #[inline]
    pub fn store(&self, offset: u64, len: u32, value: u32) {
        let word = self.word(offset);
        if len == 4 {
            word.store(value, Relaxed);
        } else {
            let (shift, mask) = if len == 2 {
                ((offset & 2) * 8, 0xffff)
            } else {
                ((offset & 3) * 8, 0xff)
            };
            let mask: u32 = mask << shift;
            let value = (value << shift) & mask;
            // Another block may write the rest of the word at the same time.
            word.fetch_update(Relaxed, Relaxed, |w| Some((w & !mask) | value))
                .ok();
        }
        self.mark(offset, len);
    }

    /// Notes that `len` bytes inside one word are written.
    #[inline]
    pub fn mark(&self, offset: u64, len: u32) {
        if let Some(written) = &self.written {
            let offset = offset % PAGE;
            let bits = ((1u32 << len) - 1) << (offset % 32);
            let word = &written[(offset / 32) as usize];
            if word.load(Relaxed) & bits != bits {
                word.fetch_or(bits, Relaxed);
            }
        }
    }

    #[inline]
    fn is_written(&self, offset: u64, len: u32) -> bool {
        self.written.as_ref().is_none_or(|written| {
            let offset = offset % PAGE;
            let bits = ((1u32 << len) - 1) << (offset % 32);
            written[(offset / 32) as usize].load(Relaxed) & bits == bits
        })
    }
}

/// One allocation. Offsets given to its methods are inside it; the callers check.
pub(crate) struct Allocation {
    pub base: u64,
    pub size: u64,
    pages: Sparse<Page>,
    tracked: bool,
    /// A `.const` variable: stores through any address are faults.
    pub constant: bool,
    freed: AtomicBool,
}

impl Allocation {
    pub fn is_freed(&self) -> bool {
        self.freed.load(Relaxed)
    }

    #[inline]
    pub fn page(&self, offset: u64) -> Option<&Page> {
        self.pages.get(offset / PAGE)
    }

    #[inline]
    pub fn touch(&self, offset: u64) -> Option<&Page> {
        self.pages.touch(offset / PAGE, || Page::new(self.tracked))
    }

    /// Whether all of `len` bytes, inside one word, were written.
    #[inline]
    pub fn is_written(&self, offset: u64, len: u32) -> bool {
        !self.tracked || self.page(offset).is_some_and(|p| p.is_written(offset, len))
    }

    pub fn tracked(&self) -> bool {
        self.tracked
    }

    #[inline]
    pub fn load(&self, offset: u64, len: u32) -> u32 {
        self.page(offset).map_or(0, |p| p.load(offset, len))
    }

    #[inline]
    pub fn store(&self, offset: u64, len: u32, value: u32) {
        if let Some(p) = self.touch(offset) {
            p.store(offset, len, value);
        }
    }

    pub(crate) fn read(&self, mut offset: u64, mut out: &mut [u8]) {
        while !out.is_empty() {
            if offset.is_multiple_of(4) && out.len() >= 4 {
                out[..4].copy_from_slice(&self.load(offset, 4).to_le_bytes());
                out = &mut out[4..];
                offset += 4;
            } else {
                out[0] = self.load(offset, 1) as u8;
                out = &mut out[1..];
                offset += 1;
            }
        }
    }

    fn write(&self, mut offset: u64, mut bytes: &[u8]) {
        while let Some(&first) = bytes.first() {
            if offset.is_multiple_of(4)
                && let Some((word, rest)) = bytes.split_first_chunk::<4>()
            {
                self.store(offset, 4, u32::from_le_bytes(*word));
                bytes = rest;
                offset += 4;
            } else {
                self.store(offset, 1, u32::from(first));
                bytes = &bytes[1..];
                offset += 1;
            }
        }
    }
}

/// The allocations of a moment, sorted by address.
pub(crate) type Snapshot = Arc<Vec<Arc<Allocation>>>;

/// Device memory. Shared between launches; all methods take `&self`.
#[derive(Default)]
pub struct Memory {
    allocations: RwLock<Snapshot>,
    /// Variables of the modules launched on this memory, by module identity.
    modules: Mutex<HashMap<u64, Arc<Vec<u64>>>>,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory")
            .field("allocations", &self.snapshot().len())
            .finish()
    }
}

impl Memory {
    /// Empty memory.
    pub fn new() -> Self {
        Self::default()
    }

    /// Allocates `bytes` uninitialised bytes, aligned to 256. Reading one before it is written is a
    /// fault while [`Checks::uninit_global`](crate::Checks) is on; it reads as 0 otherwise.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when the address space is used up.
    pub fn alloc(&self, bytes: u64) -> Result<DevicePtr, MemoryError> {
        self.allocate(bytes, true, false)
    }

    /// Allocates zeroed bytes, aligned to 256.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when the address space is used up.
    pub fn alloc_zeroed(&self, bytes: u64) -> Result<DevicePtr, MemoryError> {
        self.allocate(bytes, false, false)
    }

    /// Allocates and fills an array.
    ///
    /// # Errors
    /// [`MemoryError::TooLarge`] when the address space is used up.
    pub fn upload<T: Scalar>(&self, values: &[T]) -> Result<DevicePtr, MemoryError> {
        let mut bytes = Vec::with_capacity(values.len() * T::SIZE);
        values.iter().for_each(|v| v.put(&mut bytes));
        let ptr = self.alloc_zeroed(bytes.len() as u64)?;
        self.write(ptr, &bytes)?;
        Ok(ptr)
    }

    /// Reads an array of `count` elements.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn download<T: Scalar>(&self, ptr: DevicePtr, count: usize) -> Result<Vec<T>, MemoryError> {
        let len = count as u64 * T::SIZE as u64;
        let (allocation, offset) = self.find(ptr, len)?;
        let mut bytes = vec![0; len as usize];
        allocation.read(offset, &mut bytes);
        Ok(bytes.chunks_exact(T::SIZE).map(T::get).collect())
    }

    /// Writes an array.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn write_slice<T: Scalar>(&self, ptr: DevicePtr, values: &[T]) -> Result<(), MemoryError> {
        let mut bytes = Vec::with_capacity(values.len() * T::SIZE);
        values.iter().for_each(|v| v.put(&mut bytes));
        self.write(ptr, &bytes)
    }

    /// Frees an allocation; kernels that touch it later fault.
    ///
    /// # Errors
    /// [`MemoryError::NotAllocated`] unless `ptr` is what an `alloc` returned and still live.
    pub fn free(&self, ptr: DevicePtr) -> Result<(), MemoryError> {
        let mut list = self.allocations.write().unwrap_or_else(|e| e.into_inner());
        let not_allocated = MemoryError::NotAllocated { address: ptr.0 };
        let Ok(i) = list.binary_search_by_key(&ptr.0, |a| a.base) else {
            return Err(not_allocated);
        };
        let old = &list[i];
        if old.is_freed() {
            return Err(not_allocated);
        }
        // A stub without pages stays, so that a later access can be named.
        let stub = Allocation {
            base: old.base,
            size: old.size,
            pages: Sparse::new(0),
            tracked: false,
            constant: false,
            freed: AtomicBool::new(true),
        };
        Arc::make_mut(&mut list)[i] = Arc::new(stub);
        Ok(())
    }

    /// Copies bytes to device memory.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn write(&self, ptr: DevicePtr, bytes: &[u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.find(ptr, bytes.len() as u64)?;
        allocation.write(offset, bytes);
        Ok(())
    }

    /// Copies bytes from device memory. Bytes nobody wrote are 0.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn read(&self, ptr: DevicePtr, out: &mut [u8]) -> Result<(), MemoryError> {
        let (allocation, offset) = self.find(ptr, out.len() as u64)?;
        allocation.read(offset, out);
        Ok(())
    }

    /// Copies `len` bytes from device memory into a vector.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn read_vec(&self, ptr: DevicePtr, len: usize) -> Result<Vec<u8>, MemoryError> {
        self.download(ptr, len)
    }

    /// Sets `len` bytes to `value`.
    ///
    /// # Errors
    /// [`MemoryError::OutOfBounds`] when the range is not inside one live allocation.
    pub fn fill(&self, ptr: DevicePtr, value: u8, len: u64) -> Result<(), MemoryError> {
        let (allocation, offset) = self.find(ptr, len)?;
        let block = [value; 4096];
        let mut at = 0;
        while at < len {
            let n = (len - at).min(4096);
            allocation.write(offset + at, &block[..n as usize]);
            at += n;
        }
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        self.allocations
            .read()
            .unwrap_or_else(|e| e.into_inner())
            .clone()
    }

    /// Addresses of a module's variables, laid out by `load` upon the first call for `module`.
    pub(crate) fn module(
        &self,
        module: u64,
        load: impl FnOnce() -> Result<Vec<u64>, MemoryError>,
    ) -> Result<Arc<Vec<u64>>, MemoryError> {
        let mut modules = self.modules.lock().unwrap_or_else(|e| e.into_inner());
        if let Some(found) = modules.get(&module) {
            return Ok(found.clone());
        }
        let loaded = Arc::new(load()?);
        modules.insert(module, loaded.clone());
        Ok(loaded)
    }

    pub(crate) fn alloc_const(&self, bytes: u64) -> Result<DevicePtr, MemoryError> {
        self.allocate(bytes, false, true)
    }

    fn allocate(
        &self,
        bytes: u64,
        tracked: bool,
        constant: bool,
    ) -> Result<DevicePtr, MemoryError> {
        let mut list = self.allocations.write().unwrap_or_else(|e| e.into_inner());
        // A gap as large as the neighbour, within reason, so that an index error lands in nothing.
        let gap = |size: u64| size.clamp(64 * 1024, 4 << 30);
        let too_large = MemoryError::TooLarge { bytes };
        let start = list.last().map_or(FIRST, |a| a.base + a.size + gap(a.size));
        let base = start.next_multiple_of(ALIGN);
        let end = base.checked_add(bytes).ok_or(too_large.clone())?;
        if end > LAST - (8 << 30) {
            return Err(too_large);
        }
        let allocation = Allocation {
            base,
            size: bytes,
            pages: Sparse::new(bytes.div_ceil(PAGE)),
            tracked,
            constant,
            freed: AtomicBool::new(false),
        };
        Arc::make_mut(&mut list).push(Arc::new(allocation));
        Ok(DevicePtr(base))
    }

    fn find(&self, ptr: DevicePtr, len: u64) -> Result<(Arc<Allocation>, u64), MemoryError> {
        let out = MemoryError::OutOfBounds {
            address: ptr.0,
            len,
        };
        let list = self.snapshot();
        let i = list.partition_point(|a| a.base <= ptr.0);
        let a = i
            .checked_sub(1)
            .and_then(|i| list.get(i))
            .ok_or(out.clone())?;
        let offset = ptr.0 - a.base;
        if a.is_freed() || offset > a.size || len > a.size - offset {
            return Err(out);
        }
        Ok((a.clone(), offset))
    }
}
