// Tiles of 16-bit elements as copies of boxes leave them and wgmma reads them: panels of 64 columns, in which a row is 128 bytes
// and the 16-byte chunks of a row are exchanged by its number.

#pragma once

#include "ptx.cuh"

template <int ROWS, int COLUMNS>
struct PanelTile {
    static constexpr int PANEL_COLUMNS = 64, PANEL_BYTES = ROWS * 128, PANELS = (COLUMNS + 63) / 64;
    static constexpr int BYTES = PANELS * PANEL_BYTES;
    static_assert(ROWS % 8 == 0, "panels begin at multiples of 1024 bytes");

    uint32_t base;

    __device__ uint32_t at(int row, int chunk) const {
        return base + chunk / 8 * PANEL_BYTES + row * 128 + (chunk ^ row) % 8 * 16;
    }

    // Zeros in all rows but those from `begin` to `end`, by a warp.
    __device__ void keep_rows(int begin, int end) const {
        constexpr int CHUNKS = PANELS * 8;
#pragma unroll 1
        for (int i = threadIdx.x % 32; i < (begin + ROWS - end) * CHUNKS; i += 32) {
            const int row = i / CHUNKS;
            st_shared(at(row < begin ? row : row - begin + end, i % CHUNKS), make_uint4(0, 0, 0, 0));
        }
    }

    // Begins to copy a box to the rows from `first` on, a multiple of 8: all panels, which count on `barrier`.
    __device__ void copy(int first, const TensorMap *map, uint32_t barrier, int row, int head, int entry) const {
        const uint32_t to = base + first * 128;
#pragma unroll
        for (int i = 0; i < PANELS; ++i) copy_box(to + i * PANEL_BYTES, map, barrier, i * PANEL_COLUMNS, row, head, entry);
    }
};

// An operand of wgmma in such a tile. The address and the distance of the panels are in the lower half of what describes it; the
// upper says that 8 rows take 1024 bytes, and that chunks are exchanged over 128.
template <typename Tile>
struct Operand {
    static constexpr uint32_t UPPER = 1 << 30 | 1024 / 16;

    // Of addresses.
    static constexpr int UNIT = 16;

    int lower;

    // Rows from a multiple of 8 on.
    __device__ Operand(Tile tile, int row = 0) : lower((tile.base + row * 128) / 16 | Tile::PANEL_BYTES / 16 << 16) {
        hold(lower);
    }

    // Of a tile that lies so many units further.
    __device__ Operand further(int units) const {
        Operand other = *this;
        other.lower += units;
        return other;
    }

    __device__ uint64_t described(uint32_t bytes) const { return (uint64_t)UPPER << 32 | (lower + bytes / 16); }

    // Of all its rows, the c-th 16 columns.
    __device__ uint64_t columns(int c) const { return described(c / 4 * Tile::PANEL_BYTES + c % 4 * 32); }

    // The n-th 16 rows, all columns.
    __device__ uint64_t rows(int n) const { return described(n * 2048); }
};
