//! Counts per instruction, summed over blocks; the sums do not depend on who ran what.

use crate::decode::Program;
use crate::report::{Count, Report};

pub struct Counters {
    /// Warp- and lane-instructions by program counter.
    pub issued: Vec<(u64, u64)>,
    pub conflicts: Vec<u64>,
    pub shared_requests: u64,
    pub shared_wavefronts: u64,
    pub loads: Traffic,
    pub stores: Traffic,
    pub flops: u64,
    pub divergent: u64,
}

#[derive(Clone, Copy, Default)]
pub struct Traffic {
    pub requests: u64,
    pub sectors: u64,
    pub bytes: u64,
}

impl Traffic {
    fn add(&mut self, o: Traffic) {
        self.requests += o.requests;
        self.sectors += o.sectors;
        self.bytes += o.bytes;
    }
}

impl Counters {
    pub fn new(code: usize) -> Self {
        Counters {
            issued: vec![(0, 0); code],
            conflicts: vec![0; code],
            shared_requests: 0,
            shared_wavefronts: 0,
            loads: Traffic::default(),
            stores: Traffic::default(),
            flops: 0,
            divergent: 0,
        }
    }

    pub fn merge(mut self, o: Counters) -> Counters {
        for (a, b) in self.issued.iter_mut().zip(&o.issued) {
            a.0 += b.0;
            a.1 += b.1;
        }
        for (a, b) in self.conflicts.iter_mut().zip(&o.conflicts) {
            *a += b;
        }
        self.shared_requests += o.shared_requests;
        self.shared_wavefronts += o.shared_wavefronts;
        self.loads.add(o.loads);
        self.stores.add(o.stores);
        self.flops += o.flops;
        self.divergent += o.divergent;
        self
    }

    /// Counts a shared-memory request: each active lane's word, in groups that the hardware
    /// serves together (32 lanes for up to 4 bytes, 16 for 8, 8 for 16).
    pub fn shared_request(&mut self, pc: u32, addresses: &[u64; 32], mask: u32, bytes: u32) {
        let group = match bytes {
            0..=4 => 32,
            5..=8 => 16,
            _ => 8,
        };
        let words = u64::from(bytes.div_ceil(4).max(1));
        let (mut wavefronts, mut fewest) = (0, 0);
        for g in (0..32).step_by(group) {
            let lanes = mask >> g & (u32::MAX >> (32 - group));
            if lanes == 0 {
                continue;
            }
            let n = wavefronts_of(&addresses[g..g + group], lanes, words);
            wavefronts += n;
            fewest += 1;
        }
        self.shared_requests += 1;
        self.shared_wavefronts += wavefronts;
        if let Some(c) = self.conflicts.get_mut(pc as usize) {
            *c += wavefronts - fewest;
        }
    }

    /// Counts a global request.
    pub fn global_request(&mut self, addresses: &[u64; 32], mask: u32, bytes: u32, store: bool) {
        let mut sectors = [0u64; 64];
        let mut n = 0;
        let mut sorted = true;
        for (lane, a) in addresses.iter().enumerate() {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let last = a.wrapping_add(u64::from(bytes) - 1) / 32;
            for s in [a / 32, last] {
                if n > 0 && sectors[n - 1] == s {
                    continue;
                }
                sorted &= n == 0 || sectors[n - 1] < s;
                sectors[n] = s;
                n += 1;
            }
        }
        let mut distinct = n as u64;
        if !sorted {
            sectors[..n].sort_unstable();
            distinct = 1 + sectors[..n].windows(2).filter(|w| w[0] != w[1]).count() as u64;
        }
        let t = if store {
            &mut self.stores
        } else {
            &mut self.loads
        };
        t.requests += 1;
        t.sectors += distinct;
        t.bytes += u64::from(mask.count_ones() * bytes);
    }

    pub fn report(&self, program: &Program, blocks: u64) -> Report {
        let mut r = Report {
            kernel: program.kernel.clone(),
            blocks,
            shared_requests: self.shared_requests,
            shared_wavefronts: self.shared_wavefronts,
            global_load_requests: self.loads.requests,
            global_load_sectors: self.loads.sectors,
            global_load_bytes: self.loads.bytes,
            global_store_requests: self.stores.requests,
            global_store_sectors: self.stores.sectors,
            global_store_bytes: self.stores.bytes,
            tensor_flops: self.flops,
            divergent_branches: self.divergent,
            ..Report::default()
        };
        for ((&(warps, lanes), info), &conflicts) in
            self.issued.iter().zip(&program.info).zip(&self.conflicts)
        {
            if warps == 0 {
                continue;
            }
            let c = Count { warps, lanes };
            r.total += c;
            *r.by_class.entry(info.class).or_default() += c;
            *r.by_line.entry(info.line).or_default() += c;
            if let Some(name) = program.mnemonics.get(info.mnemonic as usize) {
                *r.by_mnemonic.entry(name.clone()).or_default() += c;
            }
            if conflicts != 0 {
                r.bank_conflicts += conflicts;
                *r.conflicts_by_line.entry(info.line).or_default() += conflicts;
            }
        }
        r
    }
}

/// The most distinct words that fall into one bank.
fn wavefronts_of(addresses: &[u64], lanes: u32, words: u64) -> u64 {
    // The first word seen in each bank; the others are few, or the kernel is slow anyway.
    let mut first = [u64::MAX; 32];
    let mut count = [0u8; 32];
    let mut others = [0u64; 32];
    let mut n = 0;
    let mut most = 1;
    for (i, a) in addresses.iter().enumerate() {
        if lanes >> i & 1 == 0 {
            continue;
        }
        for w in a / 4..a / 4 + words {
            let bank = (w % 32) as usize;
            if first[bank] == u64::MAX {
                first[bank] = w;
                count[bank] = 1;
            } else if first[bank] != w && !others[..n].contains(&w) {
                if n < others.len() {
                    others[n] = w;
                    n += 1;
                }
                count[bank] += 1;
                most = most.max(u64::from(count[bank]));
            }
        }
    }
    most
}
