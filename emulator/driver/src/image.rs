//! Module images: PTX text, or fatbins, of which the PTX is used; there is nothing that runs machine code.

use std::collections::HashMap;
use std::fmt::Display;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Read as _;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use ptx_emulator::Module;

use crate::code::{Code, Result};
use crate::device::{Architecture, Only};
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

/// A module, and what its PTX is for: 80 for `sm_80`.
type Loaded = (Arc<Module>, u32);

/// Loads an image. What was parsed once is not parsed again, unless it has variables, which each module has for itself.
pub fn load(image: &[u8]) -> Result<Loaded> {
    static PARSED: LazyLock<Mutex<HashMap<u64, Loaded>>> = LazyLock::new(Mutex::default);
    let mut hasher = DefaultHasher::new();
    image.hash(&mut hasher);
    let hash = hasher.finish();
    let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = parsed.get(&hash) {
        return Ok(loaded.clone());
    }
    let ptx = match image.starts_with(&FATBIN.to_le_bytes()) {
        true => newest_ptx(image)?,
        false => String::from_utf8(image.to_vec()).map_err(|_| Code::INVALID_IMAGE)?,
    };
    let refused = |error: &dyn Display| {
        eprintln!("ptx-emulator-driver: a module was not loaded: {error}");
        Code::INVALID_PTX
    };
    let target =
        target(&ptx).ok_or_else(|| refused(&"its PTX has no .target of the form sm_90a"))?;
    if !SETTINGS.device.runs(target, false) {
        return Err(refused(&format!("its PTX is for sm_{target}")));
    }
    let module = Module::parse(&ptx).map_err(|error| refused(&error))?;
    let loaded = (Arc::new(module), target.number);
    if !ptx.lines().any(declares_variable) {
        parsed.insert(hash, loaded.clone());
    }
    Ok(loaded)
}

fn declares_variable(line: &str) -> bool {
    let mut words = line.split_whitespace();
    let first = words.find(|word| ![".visible", ".extern", ".weak"].contains(word));
    matches!(first, Some(".global" | ".const"))
}

/// The PTX of a fatbin for the newest architecture that the device runs. A driver takes machine code where there is some
/// that the device runs; when its PTX is not there, other PTX is taken, and that is said.
fn newest_ptx(fatbin: &[u8]) -> Result<String> {
    let mut ptx: Option<(Architecture, String)> = None;
    let mut machine: Option<Architecture> = None;
    let mut rest = fatbin.get(16..).ok_or(Code::INVALID_IMAGE)?;
    while !rest.is_empty() {
        let entry = Entry::read(rest).ok_or(Code::INVALID_IMAGE)?;
        rest = &rest[entry.len..];
        let newer = |best: Option<Architecture>| Some(entry.architecture) > best;
        match entry.kind {
            Kind::Ptx
                if SETTINGS.device.runs(entry.architecture, false)
                    && newer(ptx.as_ref().map(|(best, _)| *best)) =>
            {
                let text = entry.unpack().ok_or(Code::INVALID_IMAGE)?;
                let text = text.trim_end_matches('\0').to_owned();
                ptx = Some((entry.architecture, text));
            }
            Kind::Machine if SETTINGS.device.runs(entry.architecture, true) => {
                machine = machine.max(Some(entry.architecture));
            }
            _ => {}
        }
    }
    match (ptx, machine) {
        (None, Some(machine)) => {
            eprintln!(
                "ptx-emulator-driver: a module has machine code for sm_{machine}, which cannot be run here, and no PTX \
                 that the device runs"
            );
            Err(Code::NO_BINARY_FOR_GPU)
        }
        (None, None) => Err(Code::NO_BINARY_FOR_GPU),
        (Some((best, text)), machine) => {
            if let Some(machine) = machine
                && machine != best
            {
                eprintln!(
                    "ptx-emulator-driver: a device would run a module's machine code for sm_{machine}; its PTX for \
                     sm_{best} is run"
                );
            }
            Ok(text)
        }
    }
}

/// What a text is for: its `.target sm_90a`.
fn target(ptx: &str) -> Option<Architecture> {
    let line = ptx.lines().find_map(|line| line.strip_prefix(".target"))?;
    let name = line.trim().split([',', ' ']).next()?;
    Architecture::parse(name.strip_prefix("sm_")?)
}

/// A part of a fatbin: the code for one architecture.
struct Entry<'a> {
    /// Bytes to the next.
    len: usize,
    kind: Kind,
    architecture: Architecture,
    /// Its contents as they are stored.
    stored: &'a [u8],
    flags: u64,
    unpacked_len: usize,
}

#[derive(Clone, Copy)]
enum Kind {
    Ptx,
    Machine,
    Other,
}

impl<'a> Entry<'a> {
    /// Little-endian: kind u16, version u16, header length u32, padded length u64, compressed length u32 (0 if it is
    /// not), ..., architecture u32 at 28, ..., flags u64 at 40, length of what is compressed u64 at 56.
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
        let kind = match word(0)? & 0xffff {
            1 => Kind::Ptx,
            2 => Kind::Machine,
            _ => Kind::Other,
        };
        let only = match flags {
            flags if flags & Self::EXACTLY != 0 => Only::Exactly,
            flags if flags & Self::FAMILY != 0 => Only::Family,
            _ => Only::Anything,
        };
        let architecture = Architecture {
            number: word(28)?,
            only,
        };
        Some(Self {
            len,
            kind,
            architecture,
            stored,
            flags,
            unpacked_len,
        })
    }

    const LZ4: u64 = 0x2000;
    const ZSTD: u64 = 0x8000;
    /// Code for `sm_90a`.
    const EXACTLY: u64 = 0x10_0000;
    /// Code for `sm_120f`.
    const FAMILY: u64 = 0x20_0000;

    fn unpack(&self) -> Option<String> {
        let bytes = match self.flags {
            flags if flags & Self::ZSTD != 0 => {
                let mut bytes = Vec::with_capacity(self.unpacked_len);
                let mut decoder = ruzstd::decoding::StreamingDecoder::new(self.stored).ok()?;
                decoder.read_to_end(&mut bytes).ok()?;
                bytes
            }
            flags if flags & Self::LZ4 != 0 => {
                lz4_flex::block::decompress(self.stored, self.unpacked_len).ok()?
            }
            _ => self.stored.to_vec(),
        };
        String::from_utf8(bytes).ok()
    }
}
