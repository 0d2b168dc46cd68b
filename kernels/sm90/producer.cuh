// What copies: Q, and tiles of K and V as slots become free.

#pragma once

#include "block.cuh"
#include "ring.cuh"

// One thread.
template <typename Block, typename Shared>
__device__ void produce(const AttentionParams &p, const Block &block, const Shared &shared, const TensorMap *q,
                        const TensorMap *k, const TensorMap *v) {
    const int head_k = block.head / p.group, batch = block.batch;
    shared.q.copy(q, shared.q_full, block.first_row, block.head, batch);
    Slot slot;
    auto copy_k = [&](Slot slot, int step) {
        shared.k.copy(k, slot, slot.parity ^ 1, block.first_key(step), head_k, batch);
    };
    copy_k(slot, 0);
    for (int step = 0; step < block.tiles; ++step) {
        // K of the next tile is needed before V of this one.
        const Slot next = slot.next();
        if (step + 1 < block.tiles) copy_k(next, step + 1);
        shared.v.copy(v, slot, slot.parity ^ !slot.released_once(), block.first_key(step), head_k, batch);
        slot = next;
    }
}
