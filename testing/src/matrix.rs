//! The cases that every path of the prefill kernel is tested on, emulated or on a device.

use flash_alibi::Mask;
use half::bf16;

use crate::strategy::pick;
use crate::{Case, LaidOut, Lengths, Memory, Rows, SlopeKind};

/// All head dimensions that there are kernels for.
pub fn head_dims() -> Vec<Case> {
    let of = |head_dim| Case::dense(1, 67, 131, (2, 1), head_dim);
    (8..=256).step_by(8).map(of).collect()
}

/// Rows and keys beside the edges of blocks and tiles.
pub fn edges_of_tiles() -> Vec<Case> {
    let mut cases = Vec::new();
    for q in [1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 257] {
        for k in [1, 63, 64, 65, 127, 128, 129, 192, 257] {
            let case = Case::dense(1, q, k, (1, 1), 64);
            cases.push(case.clone());
            cases.push(Case {
                mask: Mask::Bidirectional,
                head_dim: 80,
                ..case
            });
        }
    }
    cases
}

/// FlashAttention-2's, 3's and 4's and FlashInfer's, of those that take the emulator no more than seconds.
pub fn shapes_that_peers_test() -> Vec<Case> {
    let shapes = [
        (113, 203),
        (128, 217),
        (113, 211),
        (108, 256),
        (256, 512),
        (512, 256),
        (1, 147),
        (3, 1024),
        (1, 339),
        (64, 800),
        (3, 799),
        (64, 2048),
        (16, 20_000),
        (128, 128),
        (256, 256),
        (1024, 3),
        (339, 1),
        (800, 64),
        (97, 97),
        (200, 200),
        (384, 384),
        (1, 1),
        (64, 128),
        (128, 192),
        (239, 1),
        (384, 256),
        (1, 9),
        (1, 81),
        (1, 729),
        (17, 17),
        (17, 81),
        (81, 81),
        (17, 987),
        (81, 987),
    ];
    let case = |(turn, (q, k))| {
        let case = Case {
            seed: turn as u64,
            ..Case::dense(
                1,
                q,
                k,
                [(2, 2), (4, 2), (3, 1)][turn % 3],
                [64, 128, 96, 40][turn % 4],
            )
        };
        match turn % 5 {
            0 => case,
            1 => Case {
                mask: Mask::Bidirectional,
                slopes: SlopeKind::PerSequence(0.3),
                ..case
            },
            2 => Case {
                window: (Some(57), None),
                ..case
            },
            3 => Case {
                mask: Mask::Bidirectional,
                window: (Some(33), Some(20)),
                slopes: SlopeKind::PerHead(0.3),
                ..case
            },
            _ => Case {
                softcap: Some(50.0),
                amplitude: 5.0,
                ..case
            },
        }
    };
    shapes.into_iter().enumerate().map(case).collect()
}

/// Packed, with empty sequences and padding.
pub fn variable_lengths() -> Vec<Case> {
    let sequence = |q, k, leftpad, unused| Lengths {
        q,
        k,
        leftpad,
        unused,
    };
    let lists = [
        vec![
            sequence(1, 1, 0, 0),
            sequence(130, 130, 0, 0),
            sequence(1, 300, 0, 0),
        ],
        vec![
            sequence(0, 0, 0, 0),
            sequence(5, 0, 0, 9),
            sequence(0, 5, 0, 0),
            sequence(200, 70, 3, 5),
        ],
        vec![
            sequence(33, 20, 0, 0),
            sequence(65, 64, 64, 0),
            sequence(129, 257, 130, 1),
        ],
    ];
    let mut cases = Vec::new();
    for sequences in lists {
        let case = Case {
            sequences,
            packed: true,
            slopes: SlopeKind::PerSequence(0.3),
            ..Case::dense(0, 0, 0, (4, 2), 64)
        };
        cases.push(case.clone());
        cases.push(Case {
            mask: Mask::Bidirectional,
            ..case
        });
    }
    cases
}

/// Buffers that are not aligned to 16 bytes, and rows that are not.
pub fn unaligned_tensors() -> Vec<Case> {
    let case = |(offset, gaps)| {
        let memory = Memory {
            order: 4,
            gaps,
            offset,
            ..Memory::default()
        };
        Case {
            memory: [memory; 4],
            ..Case::dense(2, 70, 150, (4, 2), 72)
        }
    };
    [(1, [0, 0, 0]), (0, [0, 1, 0]), (8, [3, 0, 5])]
        .map(case)
        .to_vec()
}

/// Of any sign and size.
pub fn scales() -> Vec<Case> {
    let case = |scale| Case {
        scale: Some(scale),
        ..Case::dense(1, 70, 140, (2, 2), 64)
    };
    [0.0, -0.0, -0.125, 1e-20, -1e-35, 4.0].map(case).to_vec()
}

/// From tight to loose.
pub fn softcaps() -> Vec<Case> {
    let case = |softcap| Case {
        softcap: Some(softcap),
        amplitude: 3.0,
        ..Case::dense(1, 70, 140, (2, 2), 64)
    };
    [0.01, 1.0, 30.0, 1000.0].map(case).to_vec()
}

/// Puts `value` into one element of V: it must reach the rows that see it and no other.
pub fn not_finite(
    mut case: Case,
    place: [f64; 4],
    value: f32,
    attend: impl Fn(&LaidOut<bf16>) -> Result<Vec<Rows>, String>,
) -> Result<(), String> {
    for memory in &mut case.memory {
        memory.broadcast = [false; 3];
    }
    let b = pick(place[0], case.sequences.len());
    let Lengths { q, k, leftpad, .. } = case.sequences[b];
    if k <= leftpad {
        return Ok(());
    }
    let (j, head_k) = (
        leftpad + pick(place[1], k - leftpad),
        pick(place[2], case.heads_k),
    );
    let c = pick(place[3], case.head_dim);
    let mut laid_out = case.lay_out::<bf16>();
    let before = attend(&laid_out)?;
    let [entry, row] = laid_out.row_k(b, j);
    let at = laid_out.v.at([entry, row, head_k]) + c;
    laid_out.v.data[at] = bf16::from_f32(value);
    let mut after = attend(&laid_out)?;

    // What must not be finite is looked at here, and what is left compared as ever.
    let heads = case.heads_q();
    for i in 0..q {
        for head in (0..heads).filter(|head| head / case.group == head_k) {
            let at = (i * heads + head) * case.head_dim + c;
            let (was, is) = (before[b].out[at], after[b].out[at]);
            let finite = f32::from_bits(is).is_finite();
            match case.sees(b, i, j) {
                // A weight may be too small for f32: then it is zero, and what it multiplies is lost, or NaN.
                true if !finite || is == was => after[b].out[at] = was,
                false if finite => {}
                sees => return Err(format!("row {i}, head {head}: {is:#x}, and sees: {sees}")),
            }
        }
    }
    laid_out.check(&after)
}
