//! Pointers that callers of the C API pass. Nothing else makes values of these types, and what the API says of its
//! arguments makes their methods sound: a pointer is null, or it is valid for what the function does with it.

use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;

use crate::code::{Code, Result};

/// Where a result goes.
#[repr(transparent)]
pub struct Out<T>(*mut T);

impl<T> Out<T> {
    /// Stores the result.
    pub fn set(self, value: T) -> Result {
        self.set_if_wanted(value)
            .then_some(())
            .ok_or(Code::INVALID_VALUE)
    }

    /// Stores a result that callers may do without; whether they want it.
    pub fn set_if_wanted(self, value: T) -> bool {
        if self.0.is_null() {
            return false;
        }
        // SAFETY: not null, so the caller has a T there (see the module).
        unsafe { self.0.write(value) };
        true
    }
}

impl Out<c_char> {
    /// Stores as much of a text as fits in `len` bytes with its NUL.
    pub fn set_text(self, text: &str, len: i32) -> Result {
        let len = usize::try_from(len).map_err(|_| Code::INVALID_VALUE)?;
        if self.0.is_null() || len == 0 {
            return Err(Code::INVALID_VALUE);
        }
        let count = text.len().min(len - 1);
        // SAFETY: not null, so the caller has `len` bytes there (see the module), of which count + 1 are written.
        unsafe {
            std::ptr::copy_nonoverlapping(text.as_ptr(), self.0.cast(), count);
            self.0.add(count).write(0);
        }
        Ok(())
    }
}

/// A C string.
#[repr(transparent)]
pub struct Text(*const c_char);

impl Text {
    /// The string, if it is UTF-8.
    pub fn get(&self) -> Result<&str> {
        if self.0.is_null() {
            return Err(Code::INVALID_VALUE);
        }
        // SAFETY: not null, so a string that ends in a NUL (see the module).
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str().map_err(|_| Code::INVALID_VALUE)
    }
}

/// Memory of the host that is copied from or to, or read as an image.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct Host(*mut c_void);

// SAFETY: an address. Whoever enqueues a copy keeps its memory valid until the copy has been made, by whichever thread.
unsafe impl Send for Host {}

impl Host {
    /// The address.
    pub fn address(self) -> usize {
        self.0.addr()
    }

    /// The pointer itself.
    pub fn as_ptr(self) -> *mut c_void {
        self.0
    }

    /// The `len` bytes at `offset`.
    ///
    /// # Safety
    /// They must be valid to read until the result is dropped.
    pub unsafe fn read<'a>(self, offset: usize, len: usize) -> &'a [u8] {
        if len == 0 {
            return &[];
        }
        // SAFETY: as the caller says.
        unsafe { std::slice::from_raw_parts(self.0.cast::<u8>().add(offset), len) }
    }

    /// The bytes of a range, which may never have been written.
    ///
    /// # Safety
    /// They must be valid to write, and nothing else may use them, until the result is dropped.
    pub unsafe fn write<'a>(self, range: Range<usize>) -> &'a mut [u8] {
        // SAFETY: as the caller says; bytes are only ever stored through the result.
        unsafe { std::slice::from_raw_parts_mut(self.0.cast::<u8>().add(range.start), range.len()) }
    }

    /// A copy of the value at `offset`.
    ///
    /// # Safety
    /// There must be a value there, aligned or not.
    pub unsafe fn value<T: Copy>(self, offset: usize) -> T {
        // SAFETY: as the caller says.
        unsafe { self.0.cast::<u8>().add(offset).cast::<T>().read_unaligned() }
    }

    /// Whether it is null.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }
}

/// Arguments of a kernel: an array of pointers to them (`kernelParams`), or names and values (`extra`).
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Arguments(*mut *mut c_void);

impl Arguments {
    /// None.
    pub const NONE: Self = Self(std::ptr::null_mut());

    /// Whether there are none.
    pub fn is_null(self) -> bool {
        self.0.is_null()
    }

    /// The pointer numbered `i`.
    ///
    /// # Safety
    /// There must be as many.
    pub unsafe fn get(self, i: usize) -> Host {
        // SAFETY: as the caller says.
        Host(unsafe { self.0.add(i).read() })
    }
}
