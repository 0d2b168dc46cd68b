//! What warp-wide requests cost: shared-memory wavefronts and global sectors.

use crate::ir::regs::lanes;
use crate::report::Counters;

const BANKS: u32 = 32;

/// Wavefronts of one phase: the largest number of distinct words in one bank.
fn wavefronts(words: &[u32]) -> u32 {
    let mut word_of = [u32::MAX; BANKS as usize];
    let mut clash = false;
    for &w in words {
        let slot = &mut word_of[(w % BANKS) as usize];
        if *slot == u32::MAX {
            *slot = w;
        } else if *slot != w {
            clash = true;
        }
    }
    if !clash {
        return u32::from(!words.is_empty());
    }
    let mut sorted = words.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut count = [0u32; BANKS as usize];
    for w in sorted {
        count[(w % BANKS) as usize] += 1;
    }
    count.into_iter().max().unwrap_or(0)
}

/// Counts one shared request of `bytes` per lane. 8-byte accesses go by half warps and 16-byte ones
/// by quarter warps; each phase costs one wavefront without conflicts.
pub(crate) fn shared(c: &mut Counters, addrs: &[u32; 32], mask: u32, bytes: u32) {
    let group = match bytes {
        0..=4 => 32,
        8 => 16,
        _ => 8,
    };
    let per_lane = bytes.div_ceil(4).min(4);
    let (mut total, mut ideal) = (0, 0);
    let mut words = [0u32; 32];
    for phase in 0..32 / group {
        let part = mask & ((((1u64 << group) - 1) as u32) << (phase * group));
        let mut n = 0;
        for lane in lanes(part) {
            for k in 0..per_lane {
                words[n] = addrs[lane] / 4 + k;
                n += 1;
            }
        }
        let waves = wavefronts(&words[..n]);
        total += waves;
        ideal += waves.min(1);
    }
    c.shared_requests += 1;
    c.shared_wavefronts += u64::from(total);
    c.bank_conflicts += u64::from(total - ideal);
}

/// Counts the rows of an `ldmatrix` or `stmatrix`: one phase of eight 16-byte rows per matrix.
pub(crate) fn matrix(c: &mut Counters, addrs: &[u32; 32], matrices: usize) {
    let (mut total, mut words) = (0, [0u32; 32]);
    for m in 0..matrices {
        for row in 0..8 {
            for k in 0..4 {
                words[row * 4 + k] = addrs[m * 8 + row] / 4 + k as u32;
            }
        }
        total += wavefronts(&words);
    }
    c.shared_requests += 1;
    c.shared_wavefronts += u64::from(total);
    c.bank_conflicts += u64::from(total) - matrices as u64;
}

/// Counts one global request of `bytes` per lane.
pub(crate) fn global(c: &mut Counters, addrs: &[u64; 32], mask: u32, bytes: u32) {
    let mut sectors = [0u64; 32];
    let mut n = 0;
    let mut sorted = true;
    for lane in lanes(mask) {
        let s = addrs[lane] / 32;
        if n > 0 && sectors[n - 1] == s {
            continue;
        }
        sorted &= n == 0 || sectors[n - 1] < s;
        sectors[n] = s;
        n += 1;
    }
    if !sorted {
        let list = &mut sectors[..n];
        list.sort_unstable();
        let mut kept = 1.min(n);
        for i in 1..n {
            kept += usize::from(list[i] != list[i - 1]);
        }
        n = kept;
    }
    c.global_requests += 1;
    c.global_sectors += n as u64;
    c.global_bytes += u64::from(mask.count_ones() * bytes);
}
