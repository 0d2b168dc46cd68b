//! Random numbers that do not depend on how a tensor is laid out.

/// Random numbers by position: the value of an element does not depend on how the tensor is laid out.
pub fn random(seed: u64, tag: u64, index: [usize; 4]) -> f32 {
    let mut x = seed ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for i in index {
        x = splitmix(x ^ (i as u64).wrapping_mul(0xd1b5_4a32_d192_ed03));
    }
    // The sum of four uniform numbers is close to normal; this one has variance 1.
    let sum: u64 = (0..4).map(|part| x >> (16 * part) & 0xffff).sum();
    (sum as f32 / 65536.0 - 2.0) * 3f32.sqrt()
}

fn splitmix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
