// Tiles of 16-bit elements in shared memory: swizzled rows that ldmatrix reads without bank conflicts.

#pragma once

#include "common/ptx.cuh"
#include "common/sequence.cuh"

// Rows of COLUMNS elements without gaps. A row is divided in chunks of 16 bytes; chunk c of a row lies at c ^ swizzle(row),
// so that one chunk of eight consecutive rows falls into eight different groups of banks, whatever the width.
template <int COLUMNS>
struct SharedTile {
    static_assert(COLUMNS % 16 == 0, "the swizzle exchanges chunks within a row");
    static constexpr int CHUNKS = COLUMNS / 8;
    static constexpr int ROW_BYTES = COLUMNS * 2;
    // The largest power of two, up to 8, that divides a row's chunks: the rows already differ by what is left of 8.
    static constexpr int SWIZZLED = CHUNKS % 8 == 0 ? 8 : CHUNKS % 4 == 0 ? 4 : 2;

    uint32_t base;

    __device__ uint32_t at(int row, int chunk) const {
        const int swizzle = row / (8 / SWIZZLED) % SWIZZLED;
        return base + row * ROW_BYTES + (chunk ^ swizzle) * 16;
    }
};

// What a lane adds to the origin of a 16x16 block to take its part in ldmatrix. Block (i, c) begins at row 16 i and chunk 2 c.
template <int COLUMNS>
struct Fragment {
    using Tile = SharedTile<COLUMNS>;

    uint32_t lane;

    Fragment() = default;
    __device__ Fragment(Tile tile, int row, int chunk) : lane(tile.at(row, chunk)) {}
    __device__ explicit Fragment(uint32_t lane) : lane(lane) {}

    // Rows 0-7 and 8-15 of the first chunk, then of the second: the operand A, and B transposed.
    __device__ static Fragment rows_first(Tile tile) { return {tile, (int)threadIdx.x % 16, (int)threadIdx.x / 16 % 2}; }

    // Both chunks of rows 0-7, then of rows 8-15: the operand B.
    __device__ static Fragment chunks_first(Tile tile) {
        return {tile, (int)(threadIdx.x / 16 % 2 * 8 + threadIdx.x % 8), (int)threadIdx.x / 8 % 2};
    }

    // Of a tile that lies so many bytes further, a multiple of 128.
    __device__ Fragment further(uint32_t bytes) const { return Fragment(lane + bytes); }

    __device__ uint32_t block(int i, int c) const {
        // Tiles begin at multiples of 128 bytes and rows at multiples of the swizzled bytes, so the bits can be exchanged in
        // the address.
        constexpr int SWIZZLED = Tile::SWIZZLED;
        return (lane ^ (2 * c % SWIZZLED * 16)) + 2 * c / SWIZZLED * SWIZZLED * 16 + i * 16 * Tile::ROW_BYTES;
    }
};

// Rows of a tensor in global memory: the first of them, and the distance between them.
struct GlobalRows {
    uint64_t first;
    int64_t stride;
};

// Rows of a tensor that is in pages, or in one piece: the first row, and the distances between pages and between rows.
struct PagedRows {
    uint64_t first;
    int64_t entry_stride, row_stride;

    // How far a row is from the first, in elements.
    __device__ int64_t offset(Place at) const { return at.entry * entry_stride + at.row * row_stride; }
};

// Of a thread that copies rows: where its chunk of the first row is and where it goes, and whether it is read or zero.
struct CopyPart {
    uint64_t from;
    uint2 to_and_reads;
};

// Copies rows of a tensor into a tile. Each thread copies the same chunk of every AT_ONCE-th row.
template <typename T, int COLUMNS, int THREADS>
struct Copy {
    using Tile = SharedTile<COLUMNS>;
    static constexpr int FITTING = THREADS / Tile::CHUNKS;
    // A multiple of 8 where it can be: then a thread's chunks are a constant apart in the tile too.
    static constexpr int AT_ONCE = FITTING < 8 ? 4 : FITTING / 8 * 8;
    static_assert(FITTING >= 4, "rows of up to 32 threads");

    __device__ static CopyPart part(Tile to, PagedRows rows, int columns) {
        const int row = threadIdx.x / Tile::CHUNKS, chunk = threadIdx.x % Tile::CHUNKS;
        return {rows.first + (row * rows.row_stride + chunk * 8) * sizeof(T), {to.at(row, chunk), chunk * 8 < columns}};
    }

    // Begins to copy ROWS rows from `first` on, which are all there, aligned, and `row_bytes` apart.
    template <int ROWS>
    __device__ static void whole_rows(const CopyPart &part, int first, int row_bytes) {
        if (AT_ONCE * Tile::CHUNKS < THREADS && threadIdx.x / Tile::CHUNKS >= AT_ONCE) return;
        static_assert(ROWS % AT_ONCE == 0, "every thread copies as many");
        const CopyPart own = part;
        const char *from = (const char *)own.from + (int64_t)first * row_bytes;
#pragma unroll
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            // Rows that are no multiple of 8 apart have their chunks in other places.
            const uint32_t to = own.to_and_reads.x ^ (i % 8 / (8 / Tile::SWIZZLED) * 16);
            cp_async(to + i * Tile::ROW_BYTES, from + (int64_t)row_bytes * i, own.to_and_reads.y);
        }
    }

    // Begins to copy rows first..first + ROWS; those outside begin..end, and columns from `columns` on, are zeros in the
    // tile and are not read.
    template <int ROWS>
    __device__ static void rows(Tile to, GlobalRows rows, int columns, int first, int begin, int end) {
        const int row = threadIdx.x / Tile::CHUNKS, chunk = threadIdx.x % Tile::CHUNKS;
        if (row >= AT_ONCE) return;
        const T *from = (const T *)rows.first + (first + row) * rows.stride + chunk * 8;
        const int64_t step = rows.stride * AT_ONCE;
        // Unsigned, so that one comparison has both ends.
        const uint32_t inside = chunk * 8 < columns ? end - begin : 0, offset = first + row - begin;
        if ((rows.first | rows.stride * sizeof(T)) % 16 == 0) {
#pragma unroll 1
            for (int i = 0; row + i < ROWS; i += AT_ONCE, from += step) {
                cp_async(to.at(row + i, chunk), from, offset + i < inside);
            }
        } else {
#pragma unroll 1
            for (int i = 0; row + i < ROWS; i += AT_ONCE, from += step) {
                st_shared(to.at(row + i, chunk), offset + i < inside ? gather(from) : make_uint4(0, 0, 0, 0));
            }
        }
    }

    // The same of rows in pages. `group_offset` of lane l is where the tile's rows from 8 l on lie, from the first row of the
    // tensor, in elements: pages hold a multiple of 8 rows.
    template <int ROWS>
    __device__ static void paged_rows(Tile to, const PagedRows &rows, int64_t group_offset, int columns, int first, int begin,
                                      int end) {
        const int row = threadIdx.x / Tile::CHUNKS, chunk = threadIdx.x % Tile::CHUNKS;
        const T *from = (const T *)rows.first + row % 8 * rows.row_stride + chunk * 8;
        const uint32_t inside = chunk * 8 < columns && row < AT_ONCE ? end - begin : 0, offset = first + row - begin;
        const bool aligned = (rows.first | (rows.entry_stride | rows.row_stride) * sizeof(T)) % 16 == 0;
#pragma unroll 4
        for (int i = 0; i < ROWS; i += AT_ONCE) {
            // Row i + row of the tile is row i % 8 + row % 8 of its group.
            const T *at = from + __shfl_sync(0xffffffff, group_offset, (row + i) / 8) + i % 8 * rows.row_stride;
            if (AT_ONCE * Tile::CHUNKS < THREADS && row >= AT_ONCE) continue;
            if (i + AT_ONCE > ROWS && row + i >= ROWS) continue;
            const bool read = offset + i < inside;
            if (aligned) {
                cp_async(to.at(row + i, chunk), at, read);
            } else {
                st_shared(to.at(row + i, chunk), read ? gather(at) : make_uint4(0, 0, 0, 0));
            }
        }
    }

    __device__ static uint4 gather(const T *from) {
        const uint16_t *x = (const uint16_t *)from;
        return make_uint4(x[0] | x[1] << 16, x[2] | x[3] << 16, x[4] | x[5] << 16, x[6] | x[7] << 16);
    }
};
