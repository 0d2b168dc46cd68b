// What copies: Q, and tiles of K and V as slots become free.

#pragma once

#include "block.cuh"
#include "ring.cuh"

// A warp, of which one lane copies.
template <typename Block, typename Shared>
struct Producer {
    const AttentionParams &p;
    const Block &block;
    const Shared &shared;
    const TensorMap *q, *k, *v;
    bool elected = elect_one();
    uint32_t landed_parity = 0;

    __device__ void copy(const typename Shared::KeyTile &tile, const TensorMap *map, uint32_t barrier, int first_key) const {
        if (elected) tile.copy(map, barrier, (int)block.s.first_k + first_key, block.head / p.group, block.entry);
    }

    __device__ void copy_k(Slot slot, int first_key) const {
        mbarrier_wait(shared.k.empty + slot.barrier, slot.parity ^ 1);
        copy(shared.k.tile(slot), k, shared.k.full + slot.barrier, first_key);
    }

    __device__ void copy_v(Slot slot, int first_key) {
        const auto tile = shared.v.tile(slot);
        const uint32_t full = shared.v.full + slot.barrier;
        mbarrier_wait(shared.v.empty + slot.barrier, slot.parity ^ !slot.released_once());
        if (!block.has_others(p, first_key)) {
            copy(tile, v, full, first_key);
            return;
        }
        // What is no key of the sequence weighs 0, and must be finite for that: it becomes 0.
        copy(tile, v, shared.landed, first_key);
        mbarrier_wait(shared.landed, landed_parity);
        landed_parity ^= 1;
        const int begin = clamp(block.s.leftpad_k - first_key, 0, Block::KEYS);
        tile.keep_rows(begin, clamp(block.s.seqlen_k - first_key, begin, Block::KEYS));
        fence_async();
        __syncwarp();
        if (elected) mbarrier_arrive(full);
    }

    __device__ void run() {
        if (elected) shared.q.copy(q, shared.q_full, (int)block.s.first_q + block.first_row, block.head, block.entry);
        Slot slot;
        copy_k(slot, block.first_key(0));
        for (int step = 0; step < block.tiles; ++step) {
            // K of the next tile is needed before V of this one.
            const Slot next = slot.next();
            if (step + 1 < block.tiles) copy_k(next, block.first_key(step + 1));
            copy_v(slot, block.first_key(step));
            slot = next;
        }
    }
};
