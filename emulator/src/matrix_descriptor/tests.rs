use std::collections::{BTreeSet, HashMap};

use super::{CHUNK, DescriptorError, Major, MatrixDescriptor};
use crate::swizzle::Swizzle;
use crate::tensor_map::{ElementType, TensorMap, Tiled};

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];
/// Elements of 16 bits.
const BYTES: u32 = 2;
/// A shared address at which every pattern begins.
const BASE: u32 = 0x2400;

/// Copies a dense matrix into shared memory, in panels as wide as a row of the swizzle: for each shared address the
/// row and the column of the element there.
fn copied(swizzle: Swizzle, rows: u32, columns: u32) -> HashMap<u32, (u32, u32)> {
    let mut elements = HashMap::new();
    let width = swizzle.span() / BYTES;
    for panel in 0..columns.div_ceil(width) {
        let narrow = width.min(columns - panel * width);
        let extents = [columns.into(), rows.into()];
        let tiled = Tiled::dense(ElementType::F16, 0, &extents, &[narrow, rows]).swizzle(swizzle);
        let map = TensorMap::new(tiled).unwrap();
        let shared = BASE + panel * rows * swizzle.span();
        let tile = map.tile(&[(panel * width) as i32, 0], shared).unwrap();
        for element in tile.elements() {
            let index = element.global.expect("inside the tensor") as u32 / BYTES;
            let before = elements.insert(element.shared, (index / columns, index % columns));
            assert_eq!(before, None, "two elements at {:#x}", element.shared);
        }
    }
    elements
}

/// Whether the operands that `descriptors` give for the steps along K are, together, exactly what was copied.
fn covers(
    copied: &HashMap<u32, (u32, u32)>,
    major: Major,
    rows: u32,
    descriptors: impl Iterator<Item = MatrixDescriptor>,
) {
    let mut seen = BTreeSet::new();
    for (step, descriptor) in (0..).zip(descriptors) {
        let descriptor = MatrixDescriptor::parse(descriptor.bits()).unwrap();
        let operand = descriptor.operand(major, rows, BYTES).unwrap();
        for row in 0..rows {
            for k in 0..16 {
                let address = operand.address(row, k);
                let expected = match major {
                    Major::K => (row, 16 * step + k),
                    Major::Mn => (16 * step + k, row),
                };
                assert_eq!(
                    copied.get(&address),
                    Some(&expected),
                    "{major:?} {} rows {rows} step {step}: element ({row}, {k}) is not at {address:#x}",
                    descriptor.swizzle
                );
                assert!(seen.insert(address), "{address:#x} is read twice");
            }
        }
        let (lines, chunks) = operand.lines_and_chunks();
        assert_eq!(lines * chunks * CHUNK, rows * 32);
        for chunk in operand.chunks() {
            assert!((0..CHUNK).step_by(2).all(|at| seen.contains(&(chunk + at))));
        }
    }
    assert_eq!(seen.len(), copied.len(), "bytes that no step reads");
}

#[test]
fn a_k_major_operand_is_what_a_copy_with_the_same_swizzle_wrote() {
    for swizzle in SWIZZLES {
        for rows in (8..=256).step_by(8) {
            // One row of the swizzle along K; two panels of a chunk without one.
            let columns = swizzle.span().max(32) / BYTES;
            let copied = copied(swizzle, rows, columns);
            let steps = (0..columns / 16).map(|step| MatrixDescriptor {
                start: BASE + 32 * step,
                // From one chunk along K to the next; not used with a swizzle.
                leading: if swizzle == Swizzle::None {
                    16 * rows
                } else {
                    16
                },
                stride: swizzle.pattern(),
                base_offset: 0,
                swizzle,
            });
            covers(&copied, Major::K, rows, steps);
        }
    }
}

#[test]
fn an_mn_major_operand_is_what_a_copy_with_the_same_swizzle_wrote() {
    for swizzle in SWIZZLES {
        for rows in (8..=256).step_by(8) {
            for k in [16, 64] {
                let copied = copied(swizzle, k, rows);
                let panel = k * swizzle.span();
                let steps = (0..k / 16).map(|step| {
                    // Two groups of eight rows of the panel a step.
                    let start = BASE + 2 * swizzle.pattern() * step;
                    let (leading, stride) = match swizzle {
                        Swizzle::None => (swizzle.pattern(), panel),
                        _ => (panel, swizzle.pattern()),
                    };
                    MatrixDescriptor {
                        start,
                        leading,
                        stride,
                        base_offset: 0,
                        swizzle,
                    }
                });
                covers(&copied, Major::Mn, rows, steps);
            }
        }
    }
}

#[test]
fn the_swizzle_exchanges_the_chunks_that_the_isa_shows() {
    // Row `r` of eight, chunk `c`: the chunk where the figures of the ISA have it.
    let at = |swizzle: Swizzle, r: u32, c: u32| {
        let address = swizzle.apply(0x4000 + r * swizzle.span() + c * 16);
        (address - 0x4000 - r * swizzle.span()) / 16
    };
    for r in 0..8 {
        for c in 0..8 {
            assert_eq!(at(Swizzle::B128, r, c), c ^ r);
        }
        for c in 0..4 {
            assert_eq!(at(Swizzle::B64, r, c), c ^ (r / 2));
        }
        for c in 0..2 {
            assert_eq!(at(Swizzle::B32, r, c), c ^ (r / 4));
        }
        assert_eq!(at(Swizzle::None, r, 0), 0);
    }
}

#[test]
fn the_fields_are_where_the_isa_has_them() {
    let descriptor = MatrixDescriptor {
        start: 0x3_fff0,
        leading: 0x10,
        stride: 1024,
        base_offset: 5,
        swizzle: Swizzle::B128,
    };
    let bits = 0x3fff | 1 << 16 | 64 << 32 | 5 << 49 | 1 << 62;
    assert_eq!(descriptor.bits(), bits);
    assert_eq!(MatrixDescriptor::parse(bits), Ok(descriptor));
    for (swizzle, number) in [(Swizzle::None, 0), (Swizzle::B64, 2), (Swizzle::B32, 3)] {
        let parsed = MatrixDescriptor::parse(number << 62).unwrap();
        assert_eq!(parsed.swizzle, swizzle);
        assert_eq!(parsed.bits(), number << 62);
    }
    let named: u64 = 0x3fff | 0x3fff << 16 | 0x3fff << 32 | 7 << 49 | 3 << 62;
    for bit in (0..64).map(|i| 1u64 << i) {
        let found = MatrixDescriptor::parse(bit);
        match named & bit {
            0 => assert_eq!(
                found,
                Err(DescriptorError::Reserved {
                    bits: bit,
                    reserved: bit
                })
            ),
            _ => assert_eq!(found.map(|found| found.bits()), Ok(bit)),
        }
    }
}

/// What is undefined, and the repaired form of each.
#[test]
fn what_the_isa_leaves_undefined_is_refused() {
    let good = MatrixDescriptor {
        start: BASE,
        leading: 16,
        stride: 1024,
        base_offset: 0,
        swizzle: Swizzle::B128,
    };
    let k_major = |descriptor: MatrixDescriptor| descriptor.operand(Major::K, 64, BYTES);
    let swizzle = good.swizzle;
    assert!(k_major(good).is_ok());

    // A panel in the middle of the pattern needs a base offset, which is then refused as such.
    let start = BASE + 3 * 128;
    let moved = MatrixDescriptor { start, ..good };
    let base_offset = |found, expected, start| {
        Err(DescriptorError::BaseOffset {
            found,
            expected,
            start,
            swizzle,
        })
    };
    assert_eq!(k_major(moved), base_offset(0, 3, start));
    let base = |base_offset| MatrixDescriptor {
        base_offset,
        ..moved
    };
    assert_eq!(k_major(base(2)), base_offset(2, 3, start));
    assert_eq!(
        k_major(base(3)),
        Err(DescriptorError::Start { start, swizzle })
    );
    let wrong = MatrixDescriptor {
        base_offset: 1,
        ..good
    };
    assert_eq!(k_major(wrong), base_offset(1, 0, BASE));
    // Half of a row of 128 bytes, which base offsets do not count.
    let half = MatrixDescriptor {
        start: BASE + 64,
        stride: 512,
        swizzle: Swizzle::B64,
        ..good
    };
    let start = half.start;
    let swizzle_64 = half.swizzle;
    assert_eq!(
        k_major(half),
        Err(DescriptorError::Start {
            start,
            swizzle: swizzle_64
        })
    );

    // Along K inside a row, until it ends.
    for first in 0..8 {
        let found = k_major(MatrixDescriptor {
            start: BASE + 16 * first,
            ..good
        });
        let expected = DescriptorError::Row {
            first,
            chunks: 2,
            swizzle,
        };
        assert_eq!(found.err(), (first == 7).then_some(expected));
    }

    // The two offsets exchanged.
    let exchanged = MatrixDescriptor {
        leading: good.stride,
        stride: good.leading,
        ..good
    };
    let offset = |field, found| {
        Err(DescriptorError::Offset {
            field,
            found,
            swizzle,
        })
    };
    assert_eq!(k_major(exchanged), offset("stride", 16));
    let mn_major = |descriptor: MatrixDescriptor| descriptor.operand(Major::Mn, 128, BYTES);
    assert_eq!(mn_major(good), offset("leading", 16));
    assert_eq!(mn_major(exchanged), offset("stride", 16));
    let panels = MatrixDescriptor {
        leading: 8192,
        ..good
    };
    assert!(mn_major(panels).is_ok());

    for rows in [0, 4, 12, 264] {
        assert_eq!(
            good.operand(Major::K, rows, BYTES),
            Err(DescriptorError::Rows { found: rows })
        );
    }
    for (major, bytes, expected) in [
        (Major::K, 1, true),
        (Major::K, 4, true),
        (Major::K, 8, false),
        (Major::Mn, 1, false),
        (Major::Mn, 4, false),
    ] {
        let found = panels.operand(major, 64, bytes);
        assert_eq!(found.is_ok(), expected, "{major:?} {bytes}: {found:?}");
    }
}

#[test]
fn elements_of_one_and_four_bytes_are_where_a_copy_puts_them() {
    for (element, bytes) in [(ElementType::U8, 1), (ElementType::F32, 4)] {
        for swizzle in [Swizzle::B32, Swizzle::B64, Swizzle::B128] {
            let columns = swizzle.span() / bytes;
            let tiled = Tiled::dense(element, 0, &[columns.into(), 64], &[columns, 64]);
            let map = TensorMap::new(tiled.swizzle(swizzle)).unwrap();
            let tile = map.tile(&[0, 0], BASE).unwrap();
            let at: HashMap<_, _> = tile.elements().map(|e| (e.shared, e.global)).collect();
            let step = 32 / bytes;
            for k in 0..columns {
                let descriptor = MatrixDescriptor {
                    start: BASE + k / step * 32,
                    leading: 16,
                    stride: swizzle.pattern(),
                    base_offset: 0,
                    swizzle,
                };
                let operand = descriptor.operand(Major::K, 64, bytes).unwrap();
                for row in 0..64 {
                    let global = u64::from((row * columns + k) * bytes);
                    let address = operand.address(row, k % step);
                    assert_eq!(at.get(&address), Some(&Some(global)));
                }
            }
        }
    }
}
