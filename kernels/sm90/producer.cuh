// What copies: Q, and tiles of K and V as slots become free.

#pragma once

#include "block.cuh"
#include "ring.cuh"

// A warp. Of Q and of keys in one piece, one lane copies all, of keys in pages each a box.
template <typename Block, typename Shared>
struct Producer {
    const AttentionParams &p;
    const Block &block;
    const Shared &shared;
    const TensorMap *q, *k, *v;
    int lane = threadIdx.x % 32;
    uint32_t landed_parity = 0;

    // Where the lane's box of a tile lies.
    __device__ Place box(int first_key) const {
        if (!p.block_table) return {block.entry, (int)block.s.first_k + first_key};
        return place(p, block.s, block.batch, first_key + lane * block.box_keys);
    }

    __device__ void copy(const typename Shared::KeyTile &tile, const TensorMap *map, uint32_t barrier, Place box) const {
        if (lane == 0) mbarrier_expect(barrier, tile.BYTES);
        __syncwarp();
        const int first = lane * block.box_keys;
        if (first < Block::KEYS) tile.copy(first, map, barrier, box.row, block.head / p.group, box.entry);
    }

    __device__ void copy_q() const {
        if (lane != 0) return;
        mbarrier_expect(shared.q_full, shared.q.BYTES);
        shared.q.copy(0, q, shared.q_full, (int)block.s.first_q + block.first_row, block.head, block.entry);
    }

    // With a horizon, also that no step follows the last.
    __device__ void copy_k(Slot slot, int step, Place box) const {
        if (!Shared::HORIZON && step == block.tiles) return;
        const uint32_t full = shared.k.full + slot.barrier;
        mbarrier_wait(shared.k.empty + slot.barrier, slot.parity ^ 1);
        if (Shared::HORIZON && lane == 0) shared.step(slot) = step;
        if (!Shared::HORIZON || step < block.tiles) {
            copy(shared.k.tile(slot), k, full, box);
        } else if (lane == 0) {
            mbarrier_arrive(full);
        }
    }

    __device__ void copy_v(Slot slot, int first_key, Place box) {
        const auto tile = shared.v.tile(slot);
        const uint32_t full = shared.v.full + slot.barrier;
        mbarrier_wait(shared.v.empty + slot.barrier, slot.parity ^ !slot.released_once());
        if (Shared::HORIZON && p.report && lane == 0) atomicAdd((unsigned long long *)p.report + 2 * block.head, 1);
        if (!block.has_others(p, first_key)) {
            copy(tile, v, full, box);
            return;
        }
        // What is no key of the sequence weighs 0, and must be finite for that: it becomes 0.
        copy(tile, v, shared.landed, box);
        mbarrier_wait(shared.landed, landed_parity);
        landed_parity ^= 1;
        const int begin = clamp(block.first_kept(p) - first_key, 0, Block::KEYS);
        tile.keep_rows(begin, clamp(block.s.seqlen_k - first_key, begin, Block::KEYS));
        fence_async();
        __syncwarp();
        if (lane == 0) mbarrier_arrive(full);
    }

    __device__ void run() {
        copy_q();
        Slot slot;
        int first_key = block.first_key(0);
        Place here = box(first_key);
        copy_k(slot, 0, here);
        for (int step = 1; step <= block.tiles; ++step) {
            // K of the next tile is needed before V of this one.
            const Slot next = slot.next();
            const int next_key = block.first_key(step);
            const Place there = box(next_key);
            copy_k(next, step, there);
            copy_v(slot, first_key, here);
            slot = next, first_key = next_key, here = there;
        }
    }
};
