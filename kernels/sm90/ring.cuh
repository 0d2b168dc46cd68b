// Tiles of keys and of values on their way through shared memory.

#pragma once

#include "tile.cuh"

constexpr int WARPGROUP = 128;

// Which tile of a ring of two a step has, and the parity of the phase in which it arrives: it changes with every second.
struct Slot {
    static constexpr int STAGES = 2, BARRIER_BYTES = 8;

    // Its place among the slots, as an offset of its barriers.
    uint32_t barrier = 0, parity = 0;

    // Slots of values but the first are released once before they have had any.
    __device__ bool released_once() const { return barrier != 0; }
    __device__ int index() const { return barrier / BARRIER_BYTES; }
    __device__ Slot next() const { return {barrier ^ BARRIER_BYTES, parity ^ barrier / BARRIER_BYTES}; }
};

// A ring of tiles. Its barriers say of each that it has arrived, and that nobody reads it any more. It is released by parts of the
// warpgroups that multiply, of so many threads.
template <typename KeyTile, int CONSUMERS, int PART>
struct Ring {
    // From an operand to that in the next slot, for each byte from barrier to barrier.
    static constexpr int TILE_STEP = KeyTile::BYTES / Operand<KeyTile>::UNIT / Slot::BARRIER_BYTES;

    uint32_t tiles, full, empty;

    __device__ void init() const {
        for (int i = 0; i < Slot::STAGES; ++i) {
            mbarrier_init(full + i * 8, 1);
            mbarrier_init(empty + i * 8, CONSUMERS * (WARPGROUP / PART));
        }
    }
    __device__ void wait_full(Slot slot) const { mbarrier_wait(full + slot.barrier, slot.parity); }
    // One thread of a part, whose products are done.
    __device__ void release(Slot slot) const {
        if (threadIdx.x % PART == 0) mbarrier_arrive(empty + slot.barrier);
    }
    __device__ KeyTile tile(Slot slot) const { return {tiles + slot.index() * KeyTile::BYTES}; }
};

// What is in shared memory for copies, and their barriers.
//
// With a HORIZON, the steps of tiles need not follow each other: who copies says which they are, and who multiplies leaves maxima.
// Products read for a whole warpgroup; what is read and left by a warp, it must release itself.
template <int D, int ROWS, int KEYS, int CONSUMERS, bool HORIZON_>
struct Shared {
    static constexpr bool HORIZON = HORIZON_;
    using QTile = PanelTile<ROWS, D>;
    using KeyTile = PanelTile<KEYS, D>;

    using KeyRing = Ring<KeyTile, CONSUMERS, HORIZON ? 32 : WARPGROUP>;

    QTile q;
    // `landed`: of a tile of values that becomes full only later.
    uint32_t q_full, landed;
    KeyRing k, v;
    // Of the slots of K: the step of the tile, or the number of all tiles after the last. Behind the barriers, and as far apart.
    int *steps;
    // Of the rows: the largest exponent so far.
    float *maxima;

    __device__ int &step(Slot slot) const { return steps[slot.barrier / sizeof(int)]; }
};
