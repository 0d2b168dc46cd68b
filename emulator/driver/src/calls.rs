//! Counts the calls of each function, for tests of what a program does and does not call.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

static CALLS: Mutex<BTreeMap<&'static str, u64>> = Mutex::new(BTreeMap::new());

fn calls() -> MutexGuard<'static, BTreeMap<&'static str, u64>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call.
pub fn count(name: &'static str) {
    *calls().entry(name).or_default() += 1;
}

/// How often a function was called.
pub fn of(name: &str) -> u64 {
    calls().get(name).copied().unwrap_or(0)
}

/// Writes the counts into the file that `PTX_EMULATOR_CALLS` names, when the process ends: a line a function.
#[cfg(target_os = "linux")]
extern "C" fn write_counts() {
    use std::fmt::Write as _;

    let Some(file) = std::env::var_os("PTX_EMULATOR_CALLS") else {
        return;
    };
    let mut text = String::new();
    for (name, count) in calls().iter() {
        let _ = writeln!(text, "{name} {count}");
    }
    // The library may have been loaded and unloaded without a call: what another load of it wrote stays.
    if !text.is_empty()
        && let Err(error) = std::fs::write(&file, text)
    {
        eprintln!("ptx-emulator-driver: {}: {error}", file.display());
    }
}

// SAFETY: the loader calls the functions of this section, without arguments, when it unloads the library.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = write_counts;
