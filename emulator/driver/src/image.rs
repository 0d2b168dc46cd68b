//! Module images: PTX text, or fatbins, of which the PTX is used; there is nothing that runs machine code.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ptx_emulator::Module;

use crate::code::{Code, Result};
use crate::ffi::Host;
use crate::settings::SETTINGS;

/// A fatbin, and the structure with which nvcc points to one.
const FATBIN: u32 = 0xba55_ed50;
const FATBIN_POINTER: u32 = 0x4662_43b1;

/// An image of unknown length.
///
/// # Safety
/// It must be one of the images that `cuModuleLoadData` takes.
pub unsafe fn bytes<'a>(image: Host) -> Result<&'a [u8]> {
    if image.is_null() {
        return Err(Code::INVALID_VALUE);
    }
    // SAFETY: every image has at least four bytes: a magic number, or a text that is not shorter.
    let magic = unsafe { image.value::<u32>(0) };
    match magic {
        FATBIN_POINTER => {
            // SAFETY: a magic number, a version, and a pointer to a fatbin.
            unsafe { bytes(image.value::<Host>(8)) }
        }
        FATBIN => {
            // SAFETY: the header is 16 bytes, and says how long itself and the rest are.
            unsafe {
                let header = usize::from(image.value::<u16>(6));
                Ok(image.read(0, header + image.value::<u64>(8) as usize))
            }
        }
        // Machine code.
        _ if magic.to_le_bytes() == *b"\x7fELF" => Err(Code::NO_BINARY_FOR_GPU),
        _ => {
            // SAFETY: what is left is text that ends in a NUL.
            unsafe {
                let len = (0..).find(|&i| image.value::<u8>(i) == 0).unwrap_or(0);
                Ok(image.read(0, len))
            }
        }
    }
}

/// Loads an image. What was parsed once is not parsed again, unless it has variables, which each module has for itself.
pub fn load(image: &[u8]) -> Result<Arc<Module>> {
    static PARSED: LazyLock<Mutex<HashMap<u64, Arc<Module>>>> = LazyLock::new(Mutex::default);
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    let hash = hasher.finish();
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(module) = parsed.get(&hash) {
        return Ok(module.clone());
    }
    let ptx = match image.starts_with(&FATBIN.to_le_bytes()) {
        true => newest_ptx(image)?,
        false => String::from_utf8(image.to_vec()).map_err(|_| Code::INVALID_IMAGE)?,
    };
    let module = Module::parse(&ptx).map_err(|error| {
        eprintln!("ptx-emulator-driver: a module was not loaded: {error}");
        Code::INVALID_PTX
    })?;
    let module = Arc::new(module);
    if !ptx.lines().any(declares_variable) {
        parsed.insert(hash, module.clone());
    }
    Ok(module)
}

fn declares_variable(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let first = words.find(|word| ![".visible", ".extern", ".weak"].contains(word));
    matches!(first, Some(".global" | ".const"))
}

/// The PTX of a fatbin for the newest architecture that is not newer than the device.
fn newest_ptx(fatbin: &[u8]) -> Result<String> {
    let mut best: Option<(u32, String)> = None;
    let mut rest = fatbin.get(16..).ok_or(Code::INVALID_IMAGE)?;
    while !rest.is_empty() {
        let entry = Entry::read(rest).ok_or(Code::INVALID_IMAGE)?;
        rest = &rest[entry.len..];
        let Some(compressed) = entry.ptx else {
            continue;
        };
        let text = entry.unpack(compressed).ok_or(Code::INVALID_IMAGE)?;
        let text = text.trim_end_matches('\0');
        let (major, minor) = SETTINGS.compute_capability;
        let device = (10 * major + minor) as u32;
        match target(text) {
            // What is for one architecture only (such as sm_90a) runs on no later one.
            Some((number, true)) if number != device => {}
            Some((number, _))
                if number <= device && best.as_ref().is_none_or(|(found, _)| number > *found) =>
            {
                best = Some((number, text.to_owned()));
            }
            _ => {}
        }
    }
    Ok(best.ok_or(Code::NO_BINARY_FOR_GPU)?.1)
}

/// The number of a text's `.target sm_90a`, and whether it has a letter.
fn target(ptx: &str) -> Option<(u32, bool)> {
    let line = ptx.lines().find_map(|line| line.strip_prefix(".target"))?;
    let name = line.trim().split(',').next()?.strip_prefix("sm_")?;
    let number = name.trim_end_matches(char::is_alphabetic);
    Some((number.parse().ok()?, number != name))
}

/// A part of a fatbin: the code for one architecture.
struct Entry<'a> {
    /// Bytes to the next.
    len: usize,
    /// Its contents as they are stored, if they are PTX.
    ptx: Option<&'a [u8]>,
    flags: u64,
    unpacked_len: usize,
}

impl<'a> Entry<'a> {
    /// Little-endian: kind u16, version u16, header length u32, padded length u64, compressed length u32 (0 if it is
    /// not), ..., flags u64 at 40, length of what is compressed u64 at 56.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let long = |at: usize| Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        let header = word(4)? as usize;
        let padded = usize::try_from(long(8)?).ok()?;
        let compressed = word(16)? as usize;
        let len = header.checked_add(padded)?;
        let contents = bytes.get(header..len)?;
        let (flags, unpacked_len) = (long(40)?, long(56)? as usize);
        let stored = match flags & (Self::LZ4 | Self::ZSTD) {
            0 => contents,
            _ => contents.get(..compressed)?,
        };
        Some(Self {
            len,
            ptx: (word(0)? & 0xffff == 1).then_some(stored),
            flags,
            unpacked_len,
        })
    }

    const LZ4: u64 = 0x2000;
    const ZSTD: u64 = 0x8000;

    fn unpack(&self, stored: &[u8]) -> Option<String> {
        let bytes = match self.flags {
            flags if flags & Self::ZSTD != 0 => {
                let mut bytes = Vec::with_capacity(self.unpacked_len);
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(stored).ok()?;
                decoder.read_to_end(&mut bytes).ok()?;
                bytes
            }
            flags if flags & Self::LZ4 != 0 => {
                lz4_flex::block::decompress(stored, self.unpacked_len).ok()?
            }
            _ => stored.to_vec(),
        };
        String::from_utf8(bytes).ok()
    }
}
