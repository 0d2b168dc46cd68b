use super::{
    BadTensorMap, Dimension, Element, ElementType, Fill, Interleave, L2Promotion, TensorMap,
    TensorMapError, TileError, Tiled,
};
use crate::swizzle::Swizzle;

/// Something valid with a different value in every field.
fn example() -> Tiled {
    let dimension = |extent, stride, box_extent, element_stride| Dimension {
        extent,
        stride,
        box_extent,
        element_stride,
    };
    Tiled {
        element: ElementType::Bf16,
        address: 0x10_0000_0040,
        dimensions: vec![
            dimension(100, 2, 32, 1),
            dimension(1 << 32, 208, 256, 1),
            dimension(3, (1 << 40) - 16, 4, 2),
            dimension(1, 16, 1, 8),
            dimension(7, 4096, 3, 3),
        ],
        interleave: Interleave::None,
        swizzle: Swizzle::B64,
        l2_promotion: L2Promotion::B256,
        fill: Fill::Nan,
    }
}

#[test]
fn what_was_encoded_is_decoded() {
    let mut tiled = example();
    for rank in (1..=5).rev() {
        tiled.dimensions.truncate(rank);
        let map = TensorMap::new(tiled.clone()).unwrap();
        assert_eq!(map.tiled(), &tiled);
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
    }
    for number in 0..13 {
        let element = ElementType::from_number(number).unwrap();
        assert_eq!(element.number(), number);
        let tiled = Tiled::dense(element, 256, &[64, 2], &[16, 2]);
        let map = TensorMap::new(tiled).unwrap();
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
    }
    assert_eq!(ElementType::from_number(13), None);
}

#[test]
fn bytes_that_were_not_made_here_are_recognised() {
    let bytes = TensorMap::new(example()).unwrap().encode();
    assert_eq!(TensorMap::decode(&[0; 128]), Err(BadTensorMap::NotMade));
    for i in 0..128 {
        for bit in 0..8 {
            let mut changed = bytes;
            changed[i] ^= 1 << bit;
            let expected = match i {
                0..8 => BadTensorMap::NotMade,
                _ => BadTensorMap::Changed,
            };
            assert_eq!(TensorMap::decode(&changed), Err(expected), "byte {i}");
        }
    }
}

#[test]
fn another_address_is_checked_as_the_first_was() {
    let map = TensorMap::new(example()).unwrap();
    assert_eq!(map.with_address(0x50).unwrap().tiled().address, 0x50);
    let error = map.with_address(0x58).unwrap_err();
    assert_eq!(
        error.to_string(),
        "globalAddress is 0x58, expected a multiple of 16"
    );
}

/// One change to something valid, and what is said of it; `None` for what is allowed.
#[test]
fn each_argument_is_checked() {
    type Change = fn(&mut Tiled);
    let table: &[(Change, Option<&str>)] = &[
        (|_| {}, None),
        (
            |t| t.dimensions.clear(),
            Some("tensorRank is 0, expected 1 to 5"),
        ),
        (
            |t| t.dimensions.push(t.dimensions[4]),
            Some("tensorRank is 6, expected 1 to 5"),
        ),
        (
            |t| {
                t.interleave = Interleave::B16;
                t.dimensions.truncate(2);
            },
            Some("tensorRank is 2, expected 3 to 5"),
        ),
        (
            |t| t.address += 8,
            Some("globalAddress is 0x1000000048, expected a multiple of 16"),
        ),
        (
            |t| {
                t.interleave = Interleave::B32;
                t.address = 0x30;
            },
            Some("globalAddress is 0x30, expected a multiple of 32"),
        ),
        (
            |t| t.dimensions[2].extent = 0,
            Some("globalDim[2] is 0, expected 1 to 4294967296"),
        ),
        (
            |t| t.dimensions[1].extent += 1,
            Some("globalDim[1] is 4294967297, expected 1 to 4294967296"),
        ),
        (
            |t| t.dimensions[1].stride = 200,
            Some("globalStrides[0] is 0xc8, expected a multiple of 16"),
        ),
        (
            |t| t.dimensions[2].stride += 16,
            Some("globalStrides[1] is 1099511627776, expected 16 to 1099511627760"),
        ),
        (
            |t| t.dimensions[4].stride = 0,
            Some("globalStrides[3] is 0, expected 16 to 1099511627760"),
        ),
        (
            |t| {
                t.interleave = Interleave::B32;
                t.dimensions[1].stride = 48;
            },
            Some("globalStrides[0] is 0x30, expected a multiple of 32"),
        ),
        (
            |t| t.dimensions[1].box_extent = 257,
            Some("boxDim[1] is 257, expected 1 to 256"),
        ),
        (
            |t| t.dimensions[3].box_extent = 0,
            Some("boxDim[3] is 0, expected 1 to 256"),
        ),
        (
            |t| t.dimensions[3].element_stride = 9,
            Some("elementStrides[3] is 9, expected 1 to 8"),
        ),
        (
            |t| t.dimensions[0].element_stride = 0,
            Some("elementStrides[0] is 0, expected 1 to 8"),
        ),
        (|t| t.dimensions[0].element_stride = 8, None),
        (
            |t| t.dimensions[0].box_extent = 20,
            Some("a row of boxDim[0] elements has 40 bytes, expected a multiple of 16"),
        ),
        (
            |t| t.dimensions[0].box_extent = 40,
            Some(
                "a row of boxDim[0] elements has 80 bytes, expected at most 64 with a 64-byte swizzle",
            ),
        ),
        (
            |t| {
                t.dimensions[0].box_extent = 40;
                t.swizzle = Swizzle::B128;
            },
            None,
        ),
        (
            |t| {
                t.dimensions[0].box_extent = 256;
                t.swizzle = Swizzle::None;
            },
            None,
        ),
        (
            |t| {
                t.interleave = Interleave::B32;
                t.address = 64;
                t.dimensions.iter_mut().for_each(|d| d.stride = 32);
            },
            Some(
                "swizzle is 64-byte swizzle, expected a 32-byte swizzle with a 32-byte interleave",
            ),
        ),
        (
            |t| t.interleave = Interleave::B16,
            Some("an interleaved tensor map is not supported by the emulator"),
        ),
        (
            |t| t.element = ElementType::U16,
            Some("oobFill asks for NaNs, expected zeros: the elements are integers"),
        ),
    ];
    for (i, (change, expected)) in table.iter().enumerate() {
        let mut tiled = example();
        change(&mut tiled);
        let found = TensorMap::new(tiled).err().map(|error| error.to_string());
        assert_eq!(found.as_deref(), *expected, "row {i}");
    }
    assert!(matches!(
        TensorMap::new(Tiled::dense(ElementType::U8, 0, &[], &[])),
        Err(TensorMapError::Rank { found: 0, least: 1 })
    ));
}

/// Elements of a box, from the definition: in a tensor of rank 3 with strides that are not those of a dense one.
#[test]
fn a_box_takes_the_elements_at_its_coordinates() {
    let size = 4;
    let mut tiled = Tiled::dense(ElementType::F32, 0x1000, &[10, 7, 5], &[8, 4, 3]);
    tiled.dimensions[1].stride = 48;
    tiled.dimensions[2].stride = 1024;
    for element_stride in 1..=3 {
        tiled.dimensions[1].element_stride = element_stride;
        let map = TensorMap::new(tiled.clone()).unwrap();
        let count = 4u32.div_ceil(element_stride);
        assert_eq!(map.transaction_bytes(), 8 * count * 3 * size);
        assert_eq!(map.shared_bytes(), map.transaction_bytes());
        for [x, y, z] in [
            [0, 0, 0],
            [3, -2, 3],
            [-9, 1, -1],
            [8, 6, 4],
            [i32::MAX; 3],
            [i32::MIN; 3],
        ] {
            let mut shared = 0x300;
            let mut expected = Vec::new();
            for c in 0..3i64 {
                for b in 0..i64::from(count) {
                    for a in 0..8i64 {
                        let at = [
                            i64::from(x) + a,
                            i64::from(y) + b * i64::from(element_stride),
                            i64::from(z) + c,
                        ];
                        let inside = at.iter().zip([10, 7, 5]).all(|(i, n)| (0..n).contains(i));
                        let global =
                            inside.then(|| (0x1000 + 4 * at[0] + 48 * at[1] + 1024 * at[2]) as u64);
                        expected.push(Element { shared, global });
                        shared += size;
                    }
                }
            }
            let tile = map.tile(&[x, y, z], 0x300).unwrap();
            assert_eq!(tile.elements().collect::<Vec<_>>(), expected, "{x} {y} {z}");
        }
    }
}

#[test]
fn a_box_of_any_rank_begins_at_its_coordinates() {
    let mut tiled = example();
    tiled.dimensions[1].extent = 9;
    tiled.dimensions[1].box_extent = 2;
    for rank in (1..=5).rev() {
        tiled.dimensions.truncate(rank);
        let map = TensorMap::new(tiled.clone()).unwrap();
        let coordinates = &[3, 2, 1, 0, 4][..rank];
        let tile = map.tile(coordinates, 0).unwrap();
        let steps = coordinates.iter().zip(&tiled.dimensions);
        let address = steps.fold(tiled.address, |address, (&i, d)| {
            address + i as u64 * d.stride
        });
        assert_eq!(tile.elements().next().unwrap().global, Some(address));
        let found = map.tile(&[0; 5][..rank - 1], 0).err();
        let expected = TileError::Rank {
            found: rank - 1,
            expected: rank,
        };
        assert_eq!(found, Some(expected));
    }
}

#[test]
fn chunks_at_the_edges_are_partly_inside() {
    let tiled = Tiled::dense(ElementType::F16, 0x1000, &[24, 2], &[16, 2]);
    let map = TensorMap::new(tiled).unwrap();
    let found = |x, y| -> Vec<_> {
        let tile = map.tile(&[x, y], 0x80).unwrap();
        let chunks = tile
            .chunks()
            .map(|c| (c.shared, c.inside.clone(), c.global));
        chunks.filter(|(_, inside, _)| !inside.is_empty()).collect()
    };
    assert_eq!(
        found(-5, -1),
        [(0xa0, 10..16, 0x1000), (0xb0, 0..16, 0x1006)]
    );
    assert_eq!(found(19, 1), [(0x80, 0..10, 0x1030 + 38)]);
    assert_eq!(found(24, 0), []);
    assert_eq!(found(-16, 0), []);
    let misaligned = map.tile(&[0, 0], 0x40).err();
    assert_eq!(misaligned, Some(TileError::Misaligned { found: 0x40 }));
}

#[test]
fn rows_shorter_than_the_span_leave_the_rest_of_it_alone() {
    let tiled = Tiled::dense(ElementType::U8, 0, &[64, 8], &[64, 8]).swizzle(Swizzle::B128);
    let map = TensorMap::new(tiled).unwrap();
    assert_eq!((map.transaction_bytes(), map.shared_bytes()), (512, 1024));
    let tile = map.tile(&[0, 0], 0x400).unwrap();
    for (i, chunk) in (0..).zip(tile.chunks()) {
        let (row, column) = (i / 4, i % 4);
        assert_eq!(chunk.shared, 0x400 + 128 * row + 16 * (column ^ row));
        assert_eq!(chunk.global, u64::from(64 * row + 16 * column));
    }
}

#[test]
fn the_swizzle_is_that_of_the_shared_address() {
    let tiled = Tiled::dense(ElementType::U8, 0, &[128, 1], &[128, 1]).swizzle(Swizzle::B128);
    let map = TensorMap::new(tiled).unwrap();
    for row in 0..16 {
        let tile = map.tile(&[0, 0], 128 * row).unwrap();
        for (i, chunk) in (0..).zip(tile.chunks()) {
            assert_eq!(chunk.shared, 128 * row + 16 * (i ^ (row % 8)));
        }
    }
}

#[test]
fn outside_the_tensor_are_zeros_or_nans() {
    let fill = |element, fill| {
        let mut tiled = Tiled::dense(element, 0, &[16, 1], &[16, 1]);
        tiled.fill = fill;
        TensorMap::new(tiled).unwrap().fill_bytes()
    };
    assert_eq!(fill(ElementType::U8, Fill::Zeros), [0; 16]);
    assert_eq!(fill(ElementType::F32, Fill::Zeros), [0; 16]);
    let halves = fill(ElementType::F16, Fill::Nan);
    assert!(half::f16::from_le_bytes([halves[2], halves[3]]).is_nan());
    let doubles = fill(ElementType::F64, Fill::Nan);
    let (first, _) = doubles.split_first_chunk().unwrap();
    assert!(f64::from_le_bytes(*first).is_nan());
}
