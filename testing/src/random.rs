//! Random numbers: the same on every machine, wherever a tensor has them in memory, and whatever else is drawn.

use rand::rngs::ChaCha8Rng;
use rand::{RngExt as _, SeedableRng as _};
use rand_distr::{StandardNormal, StandardUniform};

/// The generator of a place, such as a row of a tensor, in the data of a seed and a tag.
pub fn generator(seed: u64, tag: u64, place: [usize; 4]) -> ChaCha8Rng {
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&tag.to_le_bytes());
    for (bytes, index) in key[16..].chunks_exact_mut(4).zip(place) {
        let index = u32::try_from(index).expect("places are counted in 32 bits");
        bytes.copy_from_slice(&index.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// A normal number of variance 1 by its place.
pub fn random(seed: u64, tag: u64, place: [usize; 4]) -> f32 {
    generator(seed, tag, place).sample(StandardNormal)
}

/// Normal numbers of variance 1, without end.
pub fn normal(seed: u64, tag: u64, place: [usize; 4]) -> impl Iterator<Item = f32> {
    generator(seed, tag, place).sample_iter(StandardNormal)
}

/// Numbers from -1 to below 1, evenly distributed, without end.
pub fn uniform(seed: u64) -> impl Iterator<Item = f32> {
    let numbers = generator(seed, 0, [0; 4]).sample_iter(StandardUniform);
    numbers.map(|x: f32| 2.0 * x - 1.0)
}
