//! The bytes of a box, in global and in shared memory.

use std::ops::Range;

use super::{ElementType, Fill, MAX_RANK, TensorMap};

/// Bytes of a chunk: what a swizzle moves as a whole.
const CHUNK: u32 = 16;

/// What the shared address of a box must be a multiple of.
const SHARED_ALIGN: u32 = 128;

/// Why a box cannot be copied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TileError {
    /// Coordinates for another number of dimensions.
    #[error("the copy has {found} coordinates, expected {expected}: the rank of the tensor map")]
    Rank {
        /// Coordinates of the copy.
        found: usize,
        /// Dimensions of the map.
        expected: usize,
    },
    /// A shared address that is not aligned.
    #[error("the shared address of the box is {found:#x}, expected a multiple of {SHARED_ALIGN}")]
    Misaligned {
        /// The shared address.
        found: u32,
    },
}

/// A box of a tensor at some coordinates, and its place in shared memory.
#[derive(Debug, Clone)]
pub struct Tile<'a> {
    map: &'a TensorMap,
    coordinates: [i64; MAX_RANK],
    shared: u32,
}

/// Sixteen bytes of a box that stay together in shared memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its shared address.
    pub shared: u32,
    /// Which of its bytes belong to elements of the tensor. The others are filled by a load and not written by a store.
    pub inside: Range<u32>,
    /// The global address of the first byte inside; of no meaning when there is none.
    pub global: u64,
}

/// An element of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Element {
    /// Its shared address.
    pub shared: u32,
    /// Its global address, unless it is outside the tensor.
    pub global: Option<u64>,
}

impl TensorMap {
    /// The box whose first element has these coordinates, the innermost first, at a shared address. Coordinates may be
    /// negative, and past the end.
    ///
    /// # Errors
    /// Coordinates for another rank, or a shared address that is not aligned to 128 bytes.
    pub fn tile(&self, coordinates: &[i32], shared: u32) -> Result<Tile<'_>, TileError> {
        if coordinates.len() != self.rank() {
            return Err(TileError::Rank {
                found: coordinates.len(),
                expected: self.rank(),
            });
        }
        if !shared.is_multiple_of(SHARED_ALIGN) {
            return Err(TileError::Misaligned { found: shared });
        }
        let mut wide = [0; MAX_RANK];
        for (wide, &coordinate) in wide.iter_mut().zip(coordinates) {
            *wide = coordinate.into();
        }
        Ok(Tile {
            map: self,
            coordinates: wide,
            shared,
        })
    }

    /// What a load puts into a chunk that is outside the tensor. The NaN is the one with all bits set but the sign: which
    /// one hardware takes is not documented.
    pub fn fill_bytes(&self) -> [u8; CHUNK as usize] {
        let mut bytes = [0; CHUNK as usize];
        let element: ElementType = self.tiled().element;
        if self.tiled().fill == Fill::Nan {
            for value in bytes.chunks_exact_mut(element.bytes() as usize) {
                value.fill(0xff);
                if let Some(last) = value.last_mut() {
                    *last = 0x7f;
                }
            }
        }
        bytes
    }
}

impl Tile<'_> {
    /// Chunks of the box, in the order of its elements.
    pub fn chunks(&self) -> impl Iterator<Item = Chunk> + '_ {
        let per_row = self.map.row_bytes() / CHUNK;
        (0..self.map.rows()).flat_map(move |row| {
            let global = self.row(row);
            let shared = self.shared + row * self.map.pitch();
            (0..per_row).map(move |i| self.chunk(i, global, shared))
        })
    }

    /// Elements of the box in order, the innermost dimension first.
    pub fn elements(&self) -> impl Iterator<Item = Element> + '_ {
        let size = self.map.tiled().element.bytes();
        self.chunks().flat_map(move |chunk| {
            (0..CHUNK).step_by(size as usize).map(move |at| Element {
                shared: chunk.shared + at,
                global: chunk
                    .inside
                    .contains(&at)
                    .then(|| chunk.global + u64::from(at - chunk.inside.start)),
            })
        })
    }

    /// The global address of coordinate 0 in a row of the box, unless the row is outside the tensor. An address past
    /// the last one stays there.
    fn row(&self, row: u32) -> Option<u64> {
        let mut rest = row;
        let mut address = self.map.tiled().address;
        let dimensions = &self.map.tiled().dimensions;
        for (i, dimension) in dimensions.iter().enumerate().skip(1) {
            let count = self.map.count(i);
            let step = i64::from((rest % count) * dimension.element_stride);
            rest /= count;
            let index = u64::try_from(self.coordinates[i] + step).ok()?;
            if index >= dimension.extent {
                return None;
            }
            address = address.saturating_add(index.saturating_mul(dimension.stride));
        }
        Some(address)
    }

    /// The chunk numbered `i` of a row that is at these addresses.
    fn chunk(&self, i: u32, row: Option<u64>, shared: u32) -> Chunk {
        let tiled = self.map.tiled();
        let size = tiled.element.bytes();
        let per_chunk = i64::from(CHUNK / size);
        let first = self.coordinates[0] + i64::from(i) * per_chunk;
        // At most 2^32.
        let extent = tiled.dimensions[0].extent as i64;
        let (start, end) = match row {
            Some(_) => (
                (-first).clamp(0, per_chunk),
                (extent - first).clamp(0, per_chunk),
            ),
            None => (0, 0),
        };
        let offset = (first + start).max(0) as u64 * u64::from(size);
        Chunk {
            shared: tiled.swizzle.apply(shared + i * CHUNK),
            inside: start as u32 * size..end.max(start) as u32 * size,
            global: row.unwrap_or(0).saturating_add(offset),
        }
    }
}
